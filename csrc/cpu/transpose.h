// Transposition of matrices whose sides are multiples of 8.
#pragma once

#include <cstdint>

#include "simd.h"

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define CONVSWAP_SHUFFLES 1
#endif
#endif

namespace convswap {

#ifdef CONVSWAP_SHUFFLES
// Two vectors as one row of pairs, split in the middle.
CONVSWAP_INLINE void interleave(Vec<float, 16> a, Vec<float, 16> b, Vec<float, 16>& low, Vec<float, 16>& high) {
  low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
CONVSWAP_INLINE void interleave(Vec<float, 32> a, Vec<float, 32> b, Vec<float, 32>& low, Vec<float, 32>& high) {
  low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}

// A square with one row in each vector: interleaving the first half of the rows with the second, log2(N) times.
template <typename R, int N>
CONVSWAP_INLINE void transpose_square(R (&rows)[N]) {
#pragma GCC unroll 3
  for (int done = 1; done < N; done *= 2) {
    R mixed[N];
#pragma GCC unroll 4
    for (int i = 0; i < N / 2; ++i) interleave(rows[i], rows[i + N / 2], mixed[2 * i], mixed[2 * i + 1]);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) rows[i] = mixed[i];
  }
}
#endif

// to[j * to_step + i] = from[i * from_step + j] for i < rows, j < columns. R is a vector of at most 8 numbers.
template <typename R, typename T>
CONVSWAP_INLINE void transpose(
    const T* from, int64_t from_step, T* to, int64_t to_step, int64_t rows, int64_t columns) {
#ifdef CONVSWAP_SHUFFLES
  if constexpr (sizeof(T) == 4) {
    constexpr int N = sizeof(R) / sizeof(T);
    for (int64_t i = 0; i < rows; i += N) {
      for (int64_t j = 0; j < columns; j += N) {
        R square[N];
#pragma GCC unroll 8
        for (int k = 0; k < N; ++k) square[k] = load<R>(from + (i + k) * from_step + j);
        transpose_square(square);
#pragma GCC unroll 8
        for (int k = 0; k < N; ++k) store(to + (j + k) * to_step + i, square[k]);
      }
    }
    return;
  }
#endif
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[j * to_step + i] = from[i * from_step + j];
  }
}

}  // namespace convswap
