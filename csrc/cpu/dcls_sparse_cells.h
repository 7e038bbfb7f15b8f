// The gradient of a kernel at the few cells where it is wanted.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dcls_sparse_grid.h"
#include "dcls_sparse_taps.h"
#include "simd.h"

namespace convswap::sparse {

// A wanted cell and, where rows are not strided, the one below it: what is loaded for the one serves the other.
struct WantedCell {
  int64_t offset;  // in the plane, for output row and column 0
  int32_t y, x;    // y being the plane row of the offset as well
};

// Write the cells that are marked in the grid, sorted by row; how many they are.
template <typename T>
CONVSWAP_INLINE int64_t list_wanted(ElementGrid<T>& grid, const TapGeometry& geometry, int64_t pitch,
                                    WantedCell* cells) {
  uint64_t* covered = grid.scratch.data();
  std::fill(grid.scratch.begin(), grid.scratch.end(), 0);
  int64_t count = 0;
  for (int64_t i = 0; i < geometry.count; ++i) {
    const int64_t y = geometry.first + i;
    const uint64_t* used = grid.used_in(y);
    for (int64_t w = 0; w < grid.words; ++w) {
      const uint64_t here = used[w] & geometry.columns[w] & ~covered[w];
      covered[w] = geometry.pairs ? here : 0;
      for (uint64_t bits = here; bits; bits &= bits - 1) {
        const int64_t x = w * 64 + __builtin_ctzll(bits);
        cells[count++] = {(geometry.plane_row + i) * pitch + geometry.column_offsets[x], static_cast<int32_t>(y),
                          static_cast<int32_t>(x - ElementGrid<T>::MARGIN)};
      }
    }
  }
  return count;
}

// The gradient of the outputs: `rows` rows of `pitch` numbers, a whole number of vectors. Rows of zeros lie before and
// behind them.
template <typename T>
struct GradPlane {
  const T* data;
  int64_t rows, pitch;
};

// Add to the sums of K cells, and with PAIRED of the K below them: products of gradient rows [begin, end) and the
// plane.
template <typename T, int K, bool PAIRED>
CONVSWAP_INLINE void correlate_cells(const T* plane, int64_t row_step, const int64_t* offsets, const GradPlane<T>& grad,
                                     int64_t begin, int64_t end, T* sums) {
  using W = Lanes<T>;
  constexpr int SUMS = PAIRED ? 2 * K : K;
  W sum[SUMS];
#pragma GCC unroll 12
  for (int k = 0; k < SUMS; ++k) sum[k] = load<W>(sums + k * LANES<T>);
  for (int64_t x = 0; x < grad.pitch; x += LANES<T>) {
    const T* row = grad.data + begin * grad.pitch + x;
    const T* from = plane + begin * row_step + x;
    W before = load<W>(row - grad.pitch);
    for (int64_t i = begin; i < end; ++i, row += grad.pitch, from += row_step) {
      const W here = load<W>(row);
#pragma GCC unroll 12
      for (int k = 0; k < K; ++k) {
        const W value = load<W>(from + offsets[k]);
        sum[k] += here * value;
        if (PAIRED) sum[K + k] += before * value;
      }
      before = here;
    }
  }
#pragma GCC unroll 12
  for (int k = 0; k < SUMS; ++k) store(sums + k * LANES<T>, sum[k]);
}

constexpr int PAIRS_AT_ONCE = 6, SINGLES_AT_ONCE = 12;

inline int64_t cells_at_once(bool pairs) { return pairs ? PAIRS_AT_ONCE : SINGLES_AT_ONCE; }

// Vectors of sums for so many cells.
inline int64_t sums_for(int64_t cells, bool pairs) {
  return round_up(cells, cells_at_once(pairs)) * (pairs ? 2 : 1);
}

// Add one image's part to the sums of all cells.
template <typename T>
CONVSWAP_INLINE void correlate_plane(const T* plane, const Convolved& shape, const GradPlane<T>& grad,
                                     const WantedCell* cells, int64_t count, bool pairs, T* sums) {
  const int64_t stride = shape.row_stride, group = cells_at_once(pairs);
  int64_t offsets[SINGLES_AT_ONCE];
  for (int64_t first = 0; first < count; first += group, sums += sums_for(group, pairs) * LANES<T>) {
    const int64_t last = std::min(first + group, count) - 1;
    for (int64_t k = 0; k < group; ++k) offsets[k] = cells[std::min(first + k, last)].offset;
    // Gradient rows that meet the image at one cell at least; with pairs one more, whose row is before the last.
    const int64_t first_row = shape.filled_begin - cells[last].y;
    const int64_t end_row = std::max<int64_t>(shape.filled_end - cells[first].y, 0);
    const int64_t begin = std::clamp<int64_t>(stride == 1 ? first_row : first_row / stride, 0, grad.rows);
    const int64_t behind = stride == 1 ? end_row : (end_row + stride - 1) / stride;
    const int64_t end = std::clamp<int64_t>(behind, begin, grad.rows + (pairs ? 1 : 0));
    const int64_t row_step = stride * shape.pitch;
    if (pairs) correlate_cells<T, PAIRS_AT_ONCE, true>(plane, row_step, offsets, grad, begin, end, sums);
    else correlate_cells<T, SINGLES_AT_ONCE, false>(plane, row_step, offsets, grad, begin, end, sums);
  }
}

template <typename T>
CONVSWAP_INLINE T total(const T* lanes) {
  T sums[LANES<T>];
  for (int64_t i = 0; i < LANES<T>; ++i) sums[i] = lanes[i];
#pragma GCC unroll 3
  for (int64_t half = LANES<T> / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

// Put the sums of all cells where they belong in the grid, which holds zeros.
template <typename T>
CONVSWAP_INLINE void put_gradients(ElementGrid<T>& grid, const WantedCell* cells, int64_t count, bool pairs,
                                   const T* sums) {
  const int64_t group = cells_at_once(pairs);
  for (int64_t first = 0; first < count; first += group, sums += sums_for(group, pairs) * LANES<T>) {
    for (int64_t k = 0; k < std::min(group, count - first); ++k) {
      const WantedCell& cell = cells[first + k];
      T* place = grid.row(cell.y) + cell.x;
      place[0] = total(sums + k * LANES<T>);
      if (pairs && cell.y + 1 < grid.height) place[grid.pitch] = total(sums + (group + k) * LANES<T>);
    }
  }
}

}  // namespace convswap::sparse
