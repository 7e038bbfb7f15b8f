// Products of small matrices in a thread's scratch.
#pragma once

#include <cstdint>

#include "simd.h"

namespace convswap {

// A matrix whose rows and columns may be exchanged by exchanging the steps.
template <typename T>
struct Steps {
  const T* from;
  int64_t row, column;

  CONVSWAP_INLINE Steps at(int64_t y, int64_t x) const { return {from + y * row + x * column, row, column}; }
  CONVSWAP_INLINE T operator()(int64_t y, int64_t x) const { return from[y * row + x * column]; }
};

// ROWS rows of `out` and a few vectors of columns, R being a vector.
template <int ROWS, int VECTORS, typename R, typename T>
CONVSWAP_INLINE void product_tile(
    Steps<T> left, const T* right, int64_t right_step, int64_t terms, T* out, int64_t out_step, bool add) {
  constexpr int N = sizeof(R) / sizeof(T);
  R sum[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int y = 0; y < ROWS; ++y) {
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) sum[y][v] = add ? load<R>(out + y * out_step + v * N) : R{};
  }
  for (int64_t k = 0; k < terms; ++k) {
    R factor[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) factor[v] = load<R>(right + k * right_step + v * N);
#pragma GCC unroll 8
    for (int y = 0; y < ROWS; ++y) {
      const T scale = left(y, k);
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) sum[y][v] += scale * factor[v];
    }
  }
#pragma GCC unroll 8
  for (int y = 0; y < ROWS; ++y) {
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) store(out + y * out_step + v * N, sum[y][v]);
  }
}

template <int ROWS, typename R, typename T>
CONVSWAP_INLINE void product_rows(
    Steps<T> left, const T* right, int64_t right_step, int64_t terms, T* out, int64_t out_step, int64_t columns,
    bool add) {
  constexpr int N = sizeof(R) / sizeof(T), half = ROWS > 1 ? ROWS / 2 : 1;
  int64_t x = 0;
  for (; x + N < columns; x += 2 * N) {
    // Half the rows at a time, so that all sums stay in registers.
    for (int y = 0; y < ROWS; y += half) {
      product_tile<half, 2, R>(left.at(y, 0), right + x, right_step, terms, out + y * out_step + x, out_step, add);
    }
  }
  if (x < columns) product_tile<ROWS, 1, R>(left, right + x, right_step, terms, out + x, out_step, add);
}

// out[y][x] = sum over k of left(y, k) * right[k][x], plus out[y][x] if `add`. Both rows and columns are computed by
// eights, but for a last row that is alone: what lies beyond the last ones is read, and overwritten with anything.
template <typename R, typename T>
CONVSWAP_INLINE void small_product(
    Steps<T> left, const T* right, int64_t right_step, int64_t terms, T* out, int64_t out_step, int64_t rows,
    int64_t columns, bool add) {
  int64_t y = 0;
  for (; y + 1 < rows; y += 8) {
    product_rows<8, R>(left.at(y, 0), right, right_step, terms, out + y * out_step, out_step, columns, add);
  }
  if (y < rows) product_rows<1, R>(left.at(y, 0), right, right_step, terms, out + y * out_step, out_step, columns, add);
}

}  // namespace convswap
