// Correlating tiles in shared memory, the inner loop of all large depthwise ops. A thread has a patch of sums, kRows
// rows of 4 columns, in registers; a line of the tile is read once for all its rows.
#pragma once

#include "common.cuh"

namespace convswap {

constexpr int kColumns = 4;  // of a thread's patch: what one load brings

// Where the places of a tile lie on one axis of an image: place t is pixel origin + t / step * stride + t % step. With
// step < stride only those pixels have a place that are used, as when a stride is larger than the kernel.
struct Places {
  int origin, stride, step;
  int size;  // pixels of the image; what lies outside is zero

  __device__ int pixel(int t) const { return origin + (step == 1 ? t * stride : t / step * stride + t % step); }
  // The first place inside the image, and the first behind it.
  __device__ int begin() const { return first(-origin); }
  __device__ int end() const { return first(size - origin); }

 private:
  __device__ int first(int distance) const {
    return distance <= 0 ? 0 : distance / stride * step + least(distance % stride, step);
  }
};

// Layout of a tile: images of `lines` lines; a line has a part for each phase, the columns that lie `phases` apart.
struct TileShape {
  int images, lines, phases, columns;
  int lane_bits;  // 2^lane_bits threads load a line

  __host__ __device__ int line_pitch() const { return phases * columns; }
  __host__ __device__ int image_pitch() const { return lines * phases * columns; }
  __host__ __device__ int size() const { return images * image_pitch(); }
};

// Fills a tile from the planes at source, image_stride apart. Lines outside the image have no room in it: the first one
// stored is y.begin(). Images from `valid` on are zero. Column i of phase q is x's place i, q pixels to the right.
template <typename T, typename S>
CONVSWAP_INLINE __device__ void load_tile(S* tile, const TileShape& shape, const T* source, Index image_stride,
                                          int valid, const Places& y, const Places& x, int lines) {
  const int begin = y.begin(), count = least(y.end(), lines) - begin;
  if (count <= 0) return;
  const int lanes = 1 << shape.lane_bits, lane = threadIdx.x & (lanes - 1);
  const int width = shape.line_pitch();
  for (int n = threadIdx.x >> shape.lane_bits; n < shape.images * count; n += blockDim.x >> shape.lane_bits) {
    const int image = n / count, line = n - image * count;
    const T* from = source + image * image_stride + static_cast<Index>(y.pixel(begin + line)) * x.size;
    S* to = tile + image * shape.image_pitch() + line * width;
    for (int i = lane; i < width; i += lanes) {
      const int place = shape.phases == 1 ? i : i / shape.phases, phase = i - place * shape.phases;
      const int pixel = x.pixel(place) + phase;
      const bool inside = image < valid && pixel >= 0 && pixel < x.size;
      to[phase * shape.columns + place] = inside ? static_cast<S>(from[pixel]) : S(0);
    }
  }
}

template <typename S>
struct alignas(16) Four {
  S v[4];
};

template <typename S>
CONVSWAP_INLINE __device__ Four<S> load_four(const S* from) {
  return *reinterpret_cast<const Four<S>*>(from);
}

// The lines and taps that a thread has to go through, so that zeros around the image cost nothing.
struct Range {
  int begin, end;
};

// One line of `correlate`. Of a patch's rows, those take part that meet a row of taps; kAll: they all do.
template <int kRows, bool kAll, typename S>
CONVSWAP_INLINE __device__ void correlate_line(S (&sum)[kRows][kColumns], const S* source, int line, int step,
                                               const S* taps, int taps_pitch, int rows, Range across) {
  S x[2 * kColumns];
  const auto load = [&](int to, int k) {
    const Four<S> four = load_four(source + k);
    CONVSWAP_UNROLL
    for (int c = 0; c < kColumns; ++c) x[to + c] = four.v[c];
  };
  const int back = step * taps_pitch;
  const auto add = [&](int k, int count) {
    const S* row_taps = taps + (line * taps_pitch + k);
    CONVSWAP_UNROLL
    for (int r = 0; r < kRows; ++r, row_taps -= back) {
      if (!kAll && static_cast<unsigned>(line - r * step) >= static_cast<unsigned>(rows)) continue;
      const Four<S> tap = load_four(row_taps);
      CONVSWAP_UNROLL
      for (int t = 0; t < kColumns; ++t) {
        if (t >= count) break;
        CONVSWAP_UNROLL
        for (int c = 0; c < kColumns; ++c) sum[r][c] += x[c + t] * tap.v[t];
      }
    }
  };
  load(0, across.begin);
  int k = across.begin;
  for (; k + kColumns <= across.end; k += kColumns) {
    load(kColumns, k + kColumns);
    add(k, kColumns);
    CONVSWAP_UNROLL
    for (int c = 0; c < kColumns; ++c) x[c] = x[kColumns + c];
  }
  if (k == across.end) return;
  load(kColumns, k + kColumns);
  add(k, across.end - k);
}

// sum[r][c] += tile[(shift + r step + i) pitch + c + k] taps[i taps_pitch + k] over i < rows and the taps k of
// `across`, for the lines r step + i of `along`. Aligned to 4 elements are tile, taps, both pitches and the begin of `across`.
template <int kRows, typename S>
CONVSWAP_INLINE __device__ void correlate(S (&sum)[kRows][kColumns], const S* tile, int shift, int pitch, int step,
                                          Range along, const S* taps, int taps_pitch, int rows, Range across) {
  if (across.begin >= across.end) return;
  for (int line = along.begin; line < along.end; ++line) {
    const S* source = tile + (shift + line) * pitch;
    if (line >= (kRows - 1) * step && line < rows) {
      correlate_line<kRows, true>(sum, source, line, step, taps, taps_pitch, rows, across);
    } else {
      correlate_line<kRows, false>(sum, source, line, step, taps, taps_pitch, rows, across);
    }
  }
}

// The lines of a patch whose first is `line` that lie inside the image; y is the tile's, rows that of the taps.
template <int kRows>
CONVSWAP_INLINE __device__ Range lines_inside(const Places& y, int line, int step, int rows) {
  return {most(y.begin() - line, 0), least(y.end() - line, (kRows - 1) * step + rows)};
}

// The taps that meet the image from a patch whose first column is `column`.
CONVSWAP_INLINE __device__ Range taps_inside(const Places& x, int column, int taps) {
  return {most(x.begin() - column - (kColumns - 1), 0) & ~3, least(x.end() - column, taps)};
}

// Calls f with a Rows<n> of the number of rows that a plan chose.
template <int kRows>
struct Rows {
  static constexpr int value = kRows;
};

template <typename Function>
void with_rows(int rows, Function&& f) {
  if (rows == 1) return f(Rows<1>{});
  if (rows == 4) return f(Rows<4>{});
  f(Rows<7>{});
}

}  // namespace convswap
