// The non-zero taps of a kernel as a list, sorted by row, and convolution of a plane with them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "dcls_sparse_grid.h"
#include "padded_plane.h"
#include "simd.h"

namespace convswap::sparse {

// A tap, or two that are neighbours in a column: what the upper reads for one row of outputs, the lower reads for the
// row before, so that one load serves two products.
template <typename T>
struct Tap {
  int64_t offset;
  T upper, lower;
};

// Which kernel rows and columns a pass takes, in the order of the plane rows that they read: all of them, or those of
// one residue, last first, where a strided convolution is transposed.
struct TapGeometry {
  int64_t first, step, count;           // kernel rows first, first + step, ...
  int64_t plane_row;                    // that the first of them reads for output row 0
  std::vector<uint64_t> columns;        // a bit for each kernel column that is taken, margin included
  std::vector<int32_t> column_offsets;  // the plane column that a kernel column reads for output column 0
  bool pairs;                           // whether neighbours in `count` read neighbouring rows
};

// Taps of many kernels one behind the other, and where those of each row begin.
template <typename T>
class TapLists {
 public:
  // For `kernels` kernels of at most `taps` taps, whose geometry counts `rows` rows.
  TapLists(int64_t kernels, int64_t taps, int64_t rows)
      : pairs(new Tap<T>[kernels * taps / 2 + 1]),
        singles(new Tap<T>[kernels * taps + 1]),
        pair_starts(new int32_t[kernels * (rows + 1)]),
        single_starts(new int32_t[kernels * (rows + 1)]),
        rows(rows) {}

  std::unique_ptr<Tap<T>[]> pairs, singles;
  std::unique_ptr<int32_t[]> pair_starts, single_starts;  // rows + 1 of each for a kernel
  int64_t rows;
  int32_t listed_pairs = 0, listed_singles = 0;
};

// Put the kernel in the grid into the lists as kernel `index`, all before being there.
template <typename T>
CONVSWAP_INLINE void list_taps(ElementGrid<T>& grid, const TapGeometry& geometry, int64_t pitch, int64_t index,
                               TapLists<T>& lists) {
  uint64_t* taken = grid.scratch.data();  // lower taps of pairs
  std::fill(grid.scratch.begin(), grid.scratch.end(), 0);
  Tap<T>*pairs = lists.pairs.get(), *singles = lists.singles.get();
  int32_t pair = index ? lists.listed_pairs : 0, single = index ? lists.listed_singles : 0;
  int32_t* pair_starts = lists.pair_starts.get() + index * (geometry.count + 1);
  int32_t* single_starts = lists.single_starts.get() + index * (geometry.count + 1);
  for (int64_t i = 0; i < geometry.count; ++i) {
    pair_starts[i] = pair;
    single_starts[i] = single;
    const int64_t y = geometry.first + i * geometry.step;
    const T *values = grid.row(y) - ElementGrid<T>::MARGIN, *next = values + geometry.step * grid.pitch;
    const bool may_pair = geometry.pairs && i + 1 < geometry.count;
    const int64_t row = (geometry.plane_row + i) * pitch;
    for (int64_t w = 0; w < grid.words; ++w) {
      const uint64_t here = grid.used_in(y)[w] & geometry.columns[w] & ~taken[w];
      const uint64_t both = may_pair ? here & grid.used_in(y + geometry.step)[w] : 0;
      taken[w] = both;
      for (uint64_t bits = both; bits; bits &= bits - 1) {
        const int64_t x = w * 64 + __builtin_ctzll(bits);
        pairs[pair++] = {row + geometry.column_offsets[x], values[x], next[x]};
      }
      for (uint64_t bits = here & ~both; bits; bits &= bits - 1) {
        const int64_t x = w * 64 + __builtin_ctzll(bits);
        singles[single++] = {row + geometry.column_offsets[x], values[x], static_cast<T>(0)};
      }
    }
  }
  pair_starts[geometry.count] = lists.listed_pairs = pair;
  single_starts[geometry.count] = lists.listed_singles = single;
}

template <typename T>
struct TapRange {
  const Tap<T>*begin, *end;
};

// R rows by V vectors of outputs from the taps of two ranges, pairs and singles.
template <typename T, int R, int V>
CONVSWAP_INLINE void convolve_block(const T* plane, int64_t row_step, TapRange<T> pairs, TapRange<T> singles, T* out,
                                    int64_t out_pitch, bool accumulate) {
  using W = Lanes<T>;
  W sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = accumulate ? load<W>(out + r * out_pitch + v * LANES<T>) : W{};
  }
  for (const Tap<T>* tap = pairs.begin; tap != pairs.end; ++tap) {
    const T *from = plane + tap->offset, upper = tap->upper, lower = tap->lower;
#pragma GCC unroll 9
    for (int r = 0; r <= R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const W value = load<W>(from + r * row_step + v * LANES<T>);
        if (r < R) sum[r][v] += value * upper;
        if (r > 0) sum[r - 1][v] += value * lower;
      }
    }
  }
  for (const Tap<T>* tap = singles.begin; tap != singles.end; ++tap) {
    const T *from = plane + tap->offset, upper = tap->upper;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] += load<W>(from + r * row_step + v * LANES<T>) * upper;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(out + r * out_pitch + v * LANES<T>, sum[r][v]);
  }
}

// Rows of outputs that are computed together: 7, 4 of what is left, or a single one.
inline int64_t block_rows(int64_t rows_left, bool single) {
  if (single) return 1;
  return rows_left <= 4 || rows_left == 8 ? 4 : 7;
}

// Rows that the blocks cover.
inline int64_t blocked_rows(int64_t rows) {
  int64_t covered = 0;
  while (covered < rows) covered += block_rows(rows - covered, rows == 1);
  return covered;
}

// What of a plane is convolved: `rows` by `columns` outputs, which read every `row_stride`th of its rows. The image is
// in plane rows [filled_begin, filled_end): taps that read none of them are passed over.
struct Convolved {
  int64_t rows, columns, row_stride;
  int64_t filled_begin, filled_end;
  int64_t pitch, out_pitch;
};

// Convolve with kernel `index` of the lists, whose geometry has `count` rows. What is written is rounded up to whole
// blocks of rows and vectors.
template <typename T>
CONVSWAP_INLINE void convolve_plane(const T* plane, const Convolved& shape, const TapLists<T>& lists,
                                    const TapGeometry& geometry, int64_t index, T* out, bool accumulate) {
  const int64_t count = geometry.count, row_step = shape.row_stride * shape.pitch;
  const int32_t* pair_starts = lists.pair_starts.get() + index * (count + 1);
  const int32_t* single_starts = lists.single_starts.get() + index * (count + 1);
  const Tap<T>*all_pairs = lists.pairs.get(), *all_singles = lists.singles.get();
  for (int64_t y = 0, block; y < shape.rows; y += block) {
    block = block_rows(shape.rows - y, shape.rows == 1);
    const int64_t last = std::min(y + block, shape.rows) - 1;
    const int64_t first_tap = shape.filled_begin - last * shape.row_stride - geometry.plane_row;
    const int64_t end_tap = shape.filled_end - y * shape.row_stride - geometry.plane_row;
    const int64_t end = std::clamp<int64_t>(end_tap, 0, count);
    const int64_t first_pair = std::clamp<int64_t>(first_tap - 1, 0, end);
    const int64_t first_single = std::clamp<int64_t>(first_tap, 0, end);
    const TapRange<T> pairs{all_pairs + pair_starts[first_pair], all_pairs + pair_starts[end]};
    const TapRange<T> singles{all_singles + single_starts[first_single], all_singles + single_starts[end]};
    for (int64_t x = 0; x < shape.columns;) {
      const T* from = plane + y * row_step + x;
      T* to = out + y * shape.out_pitch + x;
      const int64_t left = shape.columns - x;
      auto run = [&](auto rows, auto vectors) __attribute__((always_inline)) {
        constexpr int R = decltype(rows)::value, V = decltype(vectors)::value;
        convolve_block<T, R, V>(from, row_step, pairs, singles, to, shape.out_pitch, accumulate);
        x += V * LANES<T>;
      };
      using std::integral_constant;
      if (block == 1) {
        if (left > 3 * LANES<T>) run(integral_constant<int, 1>{}, integral_constant<int, 4>{});
        else run(integral_constant<int, 1>{}, integral_constant<int, 1>{});
      } else if (block == 4) {
        if (left > LANES<T>) run(integral_constant<int, 4>{}, integral_constant<int, 2>{});
        else run(integral_constant<int, 4>{}, integral_constant<int, 1>{});
      } else {
        if (left > LANES<T>) run(integral_constant<int, 7>{}, integral_constant<int, 2>{});
        else run(integral_constant<int, 7>{}, integral_constant<int, 1>{});
      }
    }
  }
}

}  // namespace convswap::sparse
