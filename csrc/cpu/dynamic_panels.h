// Between tensors and panels: blocks of kernels, padded images, and sums that go where images are.
#pragma once

#include <algorithm>
#include <cstdint>

#include "guided_sheets.h"
#include "transpose.h"

namespace convswap::dynamic {

using guided::Computed;
using guided::narrow_run;
using guided::widen_run;

// to[j * to_step + i] = from[i * from_step + j] for i < rows, j < columns, of any number.
template <typename T>
CONVSWAP_INLINE void turn(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t rows, int64_t columns) {
  if (sizeof(T) == 4 && rows >= 8 && columns >= 8) {
    for (int64_t next_row = 0; next_row < rows; next_row += 8) {
      for (int64_t next = 0; next < columns; next += 8) {  // the last blocks overlap those before
        const int64_t i = std::min(next_row, rows - 8), j = std::min(next, columns - 8);
        transpose<Vec<T, 32>>(from + i * from_step + j, from_step, to + j * to_step + i, to_step, 8, 8);
      }
    }
    return;
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[j * to_step + i] = from[i * from_step + j];
  }
}

// Where in a tensor of kernels the numbers of a panel lie: those of row t at steps[t], neighbouring lanes `lane` apart.
struct KernelBlock {
  const int64_t* steps;
  int64_t terms, lane, lanes, width;  // `lanes` of a panel's `width` are in use

  // Of rows from t on that are neighbours in memory.
  CONVSWAP_INLINE int64_t run(int64_t t) const {
    int64_t next = t + 1;
    while (next < terms && steps[next] == steps[next - 1] + 1) ++next;
    return next - t;
  }
};

constexpr int64_t LANES_AT_ONCE = 8;

// Fetch what lies in `rows` runs, `step` apart. Runs are too short for the processor to see what comes next.
template <typename S>
CONVSWAP_INLINE void fetch(const S* from, int64_t step, int64_t rows, int64_t length) {
  for (int64_t i = 0; i < rows; ++i) {
    const char* const row = reinterpret_cast<const char*>(from + i * step);
    const int64_t bytes = length * static_cast<int64_t>(sizeof(S));
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at);
    __builtin_prefetch(row + bytes - 1);
  }
}

// Kernels to a panel, zeros in lanes that are not in use. `scratch` holds LANES_AT_ONCE * terms numbers.
struct Stage {
  template <int BYTES, typename S>
  static CONVSWAP_INLINE void run(const S* from, const KernelBlock& b, Computed<S>* scratch, Computed<S>* panel) {
    using T = Computed<S>;
    if (b.lanes < b.width) std::fill_n(panel, b.terms * b.width, T(0));
    if (b.lane == 1) {
      for (int64_t t = 0; t < b.terms; ++t) {
        if (t + 8 < b.terms) fetch(from + b.steps[t + 8], 0, 1, b.lanes);
        widen_run<BYTES>(from + b.steps[t], b.lanes, panel + t * b.width);
      }
      return;
    }
    for (int64_t t = 0, length; t < b.terms; t += length) {
      length = b.run(t);
      const bool more = t + length < b.terms;
      for (int64_t l = 0; l < b.lanes; l += LANES_AT_ONCE) {
        const int64_t count = std::min(LANES_AT_ONCE, b.lanes - l), next = l + count;
        const S* rows = from + b.steps[t] + l * b.lane;
        if (more) fetch(from + b.steps[t + length] + l * b.lane, b.lane, count, length);
        else fetch(from + b.steps[t] + next * b.lane, b.lane, std::min(LANES_AT_ONCE, b.lanes - next), length);
        T* const to = panel + t * b.width + l;
        if constexpr (std::is_same_v<S, T>) {
          turn(rows, b.lane, to, b.width, count, length);
        } else {
          for (int64_t i = 0; i < count; ++i) widen_run<BYTES>(rows + i * b.lane, length, scratch + i * length);
          turn(scratch, length, to, b.width, count, length);
        }
      }
    }
  }
};

// The way back.
struct Unstage {
  template <int BYTES, typename S>
  static CONVSWAP_INLINE void run(const Computed<S>* panel, const KernelBlock& b, Computed<S>* scratch, S* to) {
    if (b.lane == 1) {
      for (int64_t t = 0; t < b.terms; ++t) narrow_run<BYTES>(panel + t * b.width, b.lanes, to + b.steps[t]);
      return;
    }
    for (int64_t t = 0, length; t < b.terms; t += length) {
      length = b.run(t);
      for (int64_t l = 0; l < b.lanes; l += LANES_AT_ONCE) {
        const int64_t count = std::min(LANES_AT_ONCE, b.lanes - l);
        S* const rows = to + b.steps[t] + l * b.lane;
        turn(panel + t * b.width + l, b.width, scratch, length, length, count);
        for (int64_t i = 0; i < count; ++i) narrow_run<BYTES>(scratch + i * length, length, rows + i * b.lane);
      }
    }
  }
};

// Sums (pixels, width) and a number for each lane to an image whose lanes are `lane` apart; pixel p lies at places[p].
// `scratch` holds LANES_AT_ONCE * pixels numbers.
struct PutSums {
  template <int BYTES, typename S>
  static CONVSWAP_INLINE void run(const Computed<S>* sums, int64_t pixels, const int64_t* places, int64_t width,
                                  int64_t lanes, const S* start, Computed<S>* scratch, int64_t lane, S* image) {
    using T = Computed<S>;
    if (lane == 1) {
      for (int64_t p = 0; p < pixels; ++p) {
        const T* own = sums + p * width;
        if (start) {
          for (int64_t l = 0; l < lanes; ++l) scratch[l] = own[l] + static_cast<T>(start[l]);
          own = scratch;
        }
        narrow_run<BYTES>(own, lanes, image + places[p]);
      }
      return;
    }
    const bool together = places[pixels - 1] - places[0] == pixels - 1;
    for (int64_t first = 0; first < lanes; first += LANES_AT_ONCE) {
      const int64_t count = std::min(LANES_AT_ONCE, lanes - first);
      turn(sums + first, width, scratch, pixels, pixels, count);
      for (int64_t i = 0; i < count; ++i) {
        T* const row = scratch + i * pixels;
        if (start) {
          const T more = static_cast<T>(start[first + i]);
          for (int64_t p = 0; p < pixels; ++p) row[p] += more;
        }
        S* const to = image + (first + i) * lane;
        if (together) {
          narrow_run<BYTES>(row, pixels, to + places[0]);
        } else {
          for (int64_t p = 0; p < pixels; ++p) to[places[p]] = static_cast<S>(row[p]);
        }
      }
    }
  }
};

// The pixels of an image (lanes `lane` apart, pixels `pixel` apart) to a panel, zeros in lanes that are not in use.
// `scratch` holds LANES_AT_ONCE * pixels numbers.
struct GetPixels {
  template <int BYTES, typename S>
  static CONVSWAP_INLINE void run(const S* image, int64_t pixels, int64_t pixel, int64_t lane, int64_t lanes,
                                  int64_t width, Computed<S>* scratch, Computed<S>* panel) {
    using T = Computed<S>;
    if (lanes < width) std::fill_n(panel, pixels * width, T(0));
    if (lane == 1) {
      for (int64_t p = 0; p < pixels; ++p) widen_run<BYTES>(image + p * pixel, lanes, panel + p * width);
      return;
    }
    for (int64_t first = 0; first < lanes; first += LANES_AT_ONCE) {
      const int64_t count = std::min(LANES_AT_ONCE, lanes - first);
      for (int64_t i = 0; i < count; ++i) {
        widen_run<BYTES>(image + (first + i) * lane, pixels, scratch + i * pixels);
      }
      turn(static_cast<const T*>(scratch), pixels, panel + first, width, count, pixels);
    }
  }
};

}  // namespace convswap::dynamic
