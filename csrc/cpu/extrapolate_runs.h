// Sums of runs of numbers, each times a weight, and rows of pixels that are padded.
#pragma once

#include <algorithm>
#include <cstring>

#include "extrapolate_axes.h"
#include "guided_numbers.h"

namespace convswap::extrapolate {

using guided::Computed;
using guided::ComputedVec;
using guided::LANES;

// `make` gives a vector of the results from one number on, and may read as many from then on.
template <int BYTES, typename T, typename Make>
CONVSWAP_INLINE void fill(int64_t count, T* to, const Make& make) {
  constexpr int64_t L = LANES<BYTES, T>;
  int64_t i = 0;
  for (; i + L <= count; i += L) guided::put<BYTES>(to + i, make(i));
  if (i < count) guided::put<BYTES>(to + count - L, make(count - L));
}

// The same of less than a vector.
template <int BYTES, typename F>
CONVSWAP_INLINE auto few(const F* from, int64_t count) {
  F some[LANES<BYTES, F>] = {};
  std::memcpy(static_cast<void*>(some), from, count * sizeof(F));
  return guided::widened<BYTES>(static_cast<const F*>(some));
}

template <int BYTES, typename T, typename V>
CONVSWAP_INLINE void put_few(T* to, V value, int64_t count) {
  T some[LANES<BYTES, T>];
  guided::put<BYTES>(static_cast<T*>(some), value);
  for (int64_t k = 0; k < count; ++k) to[k] = some[k];
}

// Lines `step` numbers apart, each with a weight.
template <typename F>
struct Lines {
  const F* first;
  int64_t step, count;
  const Computed<F>* weights;
};

template <typename F>
CONVSWAP_INLINE Lines<F> lines(const F* first, int64_t step, int64_t count, const Computed<F>* weights) {
  return {first, step, count, weights};
}

template <int BYTES, typename F, typename V>
CONVSWAP_INLINE V plus(V sum, const Lines<F>& all, int64_t i) {
  for (int64_t k = 0; k < all.count; ++k) sum += guided::widened<BYTES>(all.first + k * all.step + i) * all.weights[k];
  return sum;
}

template <int BYTES, typename F, typename V>
CONVSWAP_INLINE V plus_few(V sum, const Lines<F>& all, int64_t count) {
  for (int64_t k = 0; k < all.count; ++k) sum += few<BYTES>(all.first + k * all.step, count) * all.weights[k];
  return sum;
}

// The sum of lines. What is called by its level is compiled once for each instruction set, not wherever it is needed.
struct SumOf {
  template <int BYTES, typename F, typename T>
  static CONVSWAP_INLINE void run(const Lines<F>& all, int64_t count, T* to) {
    using V = ComputedVec<BYTES, F>;
    if (count < LANES<BYTES, F>) return put_few<BYTES>(to, plus_few<BYTES>(V{}, all, count), count);
    fill<BYTES>(count, to, [&](int64_t i) __attribute__((always_inline)) { return plus<BYTES>(V{}, all, i); });
  }
};

// A line and those on both sides.
struct SumWith {
  template <int BYTES, typename F, typename T>
  static CONVSWAP_INLINE void run(const F* own, const Lines<F>& before, const Lines<F>& after, int64_t count, T* to) {
    if (count < LANES<BYTES, F>) {
      const auto sum = plus_few<BYTES>(few<BYTES>(own, count), before, count);
      return put_few<BYTES>(to, plus_few<BYTES>(sum, after, count), count);
    }
    fill<BYTES>(count, to, [&](int64_t i) __attribute__((always_inline)) {
      return plus<BYTES>(plus<BYTES>(guided::widened<BYTES>(own + i), before, i), after, i);
    });
  }
};

template <int BYTES, typename F, typename T>
CONVSWAP_INLINE void sum_of(const Lines<F>& all, int64_t count, T* to) {
  Level<SumOf, BYTES>::run(all, count, to);
}

template <int BYTES, typename F, typename T>
CONVSWAP_INLINE void sum_with(const F* own, const Lines<F>& before, const Lines<F>& after, int64_t count, T* to) {
  Level<SumWith, BYTES>::run(own, before, after, count, to);
}

// Numbers as they are, or to another type.
template <int BYTES, typename F, typename T>
CONVSWAP_INLINE void copy_run(const F* from, int64_t count, T* to) {
  if constexpr (std::is_same_v<F, T>) {
    constexpr int64_t L = 32 / sizeof(T);
    if (count < L || count > 32 * L) {
      std::memcpy(static_cast<void*>(to), from, count * sizeof(T));
      return;
    }
    using V = Vec<char, 32>;
    int64_t i = 0;
    for (; i + L <= count; i += L) store(to + i, load<V>(from + i));
    if (i < count) store(to + count - L, load<V>(from + count - L));
  } else if (count < LANES<BYTES, F>) {
    put_few<BYTES>(to, few<BYTES>(from, count), count);
  } else {
    fill<BYTES>(count, to, [&](int64_t i) __attribute__((always_inline)) { return guided::widened<BYTES>(from + i); });
  }
}

// Pixels of one number that are sums of those at an edge: as many at once as a vector has, one in each lane.
template <int BYTES, typename F, typename T>
CONVSWAP_INLINE void pixels_beyond(const F* edge, const Side<Computed<F>>& side, T* to) {
  constexpr int64_t L = LANES<BYTES, F>;
  for (int64_t t = 0; t < side.pad; t += L) {
    ComputedVec<BYTES, F> sum{};
    for (int64_t j = 0; j < side.taps; ++j) {
      sum += load<ComputedVec<BYTES, F>>(side.of_tap(j) + t) * static_cast<Computed<F>>(edge[j]);
    }
    put_few<BYTES>(to + t, sum, std::min(L, side.pad - t));
  }
}

// FEW pixels of one number, of which those beyond the border are sums of those at the edge; others are no numbers.
template <typename F, typename T>
CONVSWAP_INLINE void few_beyond(const F* edge, const Side<Computed<F>>& side, T* to) {
  using A = Computed<F>;
  constexpr int FEW = Side<A>::FEW, BYTES = FEW * sizeof(A);
  Vec<A, BYTES> sum{};
  for (int64_t j = 0; j < side.taps; ++j) {
    sum += load<Vec<A, BYTES>>(side.few_pads.data() + j * FEW) * static_cast<A>(edge[j]);
  }
  guided::put<BYTES>(to, sum);
}

// A row of the image to one of the padded image.
struct ExtendRow {
  template <int BYTES, typename F, typename T>
  static CONVSWAP_INLINE void run(const Axes<Computed<F>>& axes, const F* from, T* to) {
    const Side<Computed<F>>&before = *axes.pixels.before, &after = *axes.pixels.after;
    const int64_t n = axes.pixel, width = axes.pixels.size;
    T *const own = to + before.pad * n, *const behind = own + width * n;
    const F* const last = from + (width - after.taps) * n;
    if (axes.few_pads()) {  // what are no numbers is written over
      if (after.pad > 0) few_beyond(last, after, behind + after.pad - after.FEW);
      if (before.pad > 0) few_beyond(from, before, to);
      return copy_run<BYTES>(from, width, own);
    }
    if (n == 1) {
      pixels_beyond<BYTES>(from, before, to);
      copy_run<BYTES>(from, width, own);
      pixels_beyond<BYTES>(last, after, behind);
      return;
    }
    for (int64_t t = 0; t < before.pad; ++t) {
      sum_of<BYTES>(lines(from, n, before.taps, before.of_pad(t)), n, to + t * n);
    }
    copy_run<BYTES>(from, width * n, own);
    for (int64_t t = 0; t < after.pad; ++t) {
      sum_of<BYTES>(lines(last, n, after.taps, after.of_pad(t)), n, behind + t * n);
    }
  }
};

// Pixels of one number at an edge, with what those beyond it add to them.
template <int BYTES, typename F, typename T>
CONVSWAP_INLINE void pixels_at_edge(const F* own, const F* beyond, const Side<Computed<F>>& side, T* to) {
  constexpr int64_t L = LANES<BYTES, F>;
  for (int64_t j = 0; j < side.taps; j += L) {
    const int64_t count = std::min(L, side.taps - j);
    ComputedVec<BYTES, F> sum = few<BYTES>(own + j, count);
    for (int64_t t = 0; t < side.pad; ++t) {
      sum += load<ComputedVec<BYTES, F>>(side.of_pad(t) + j) * static_cast<Computed<F>>(beyond[t]);
    }
    put_few<BYTES>(to + j, sum, count);
  }
}

// FEW pixels of one number, to those of which that are at the edge is added what those beyond add.
template <typename F, typename T>
CONVSWAP_INLINE void few_at_edge(const F* own, const F* beyond, const Side<Computed<F>>& side, T* to) {
  using A = Computed<F>;
  constexpr int FEW = Side<A>::FEW, BYTES = FEW * sizeof(A);
  using V = Vec<A, BYTES>;
  const V alone = guided::widened<BYTES>(own);
  V sum = alone;
  for (int64_t t = 0; t < side.pad; ++t) {
    sum += load<V>(side.few_taps.data() + t * FEW) * static_cast<A>(beyond[t]);
  }
  using Mask = decltype(alone == alone);
  guided::put<BYTES>(to, (V)guided::choose(load<Mask>(side.is_tap.data()), (Mask)sum, (Mask)alone));
}

// The way back: a row of the padded image, added up, to one of the image.
struct FoldRow {
  template <int BYTES, typename F, typename T>
  static CONVSWAP_INLINE void run(const Axes<Computed<F>>& axes, const F* from, T* to) {
    const Axis<Computed<F>>& pixels = axes.pixels;
    const Side<Computed<F>>&before = *pixels.before, &after = *pixels.after;
    const int64_t n = axes.pixel, width = pixels.size, first = before.taps, last = width - after.taps;
    const F *const own = from + before.pad * n, *const behind = own + width * n;
    if (axes.few_taps()) {
      copy_run<BYTES>(own + first, last - first, to + first);
      if (before.pad > 0) few_at_edge(own, from, before, to);
      if (after.pad > 0) few_at_edge(behind - after.FEW, behind, after, to + width - after.FEW);
      return;
    }
    const bool apart = first <= last;
    if (n == 1 && apart) {
      pixels_at_edge<BYTES>(own, from, before, to);
      copy_run<BYTES>(own + first, last - first, to + first);
      pixels_at_edge<BYTES>(own + last, behind, after, to + last);
      return;
    }
    for (int64_t x = 0; x < width; ++x) {
      if (x == first && apart) {
        copy_run<BYTES>(own + x * n, (last - first) * n, to + x * n);
        x = last;
        if (x == width) break;
      }
      const bool one = pixels.at_first_edge(x), other = pixels.at_last_edge(x);
      sum_with<BYTES>(own + x * n, lines(from, n, one ? before.pad : 0, one ? before.of_tap(x) : nullptr),
                      lines(behind, n, other ? after.pad : 0, other ? after.of_tap(x - last) : nullptr), n, to + x * n);
    }
  }
};

}  // namespace convswap::extrapolate
