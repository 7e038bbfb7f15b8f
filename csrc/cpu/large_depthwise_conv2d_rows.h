// The one sum behind all three ops: rows of vectors correlated with rows of vectors, summed over pairs of rows.
#pragma once

#include <algorithm>

#include "large_depthwise_conv2d_lanes.h"

namespace convswap::lanes {

constexpr int MOST_ROWS = 4;

// out[r][p] (+)= sum over e in [first[r], last[r]) and over j < length of
//     steady[e * steady_step + shift[r] + j] * sliding[e * sliding_step + j + p]
// for r < rows and p < the block's width. Distances are in vectors. A row that is not wanted repeats row 0.
struct Block {
  const void* steady;
  const void* sliding;
  void* out;
  int64_t steady_step, sliding_step, out_row, out_column;
  int64_t length;
  int64_t shift[MOST_ROWS], first[MOST_ROWS], last[MOST_ROWS];
  int rows;
  bool add;
};

// Rows that a block sums at a time: a loaded vector serves as many products. All sums stay in registers.
constexpr int block_rows(int width, int widest) { return 2 * width <= widest ? 4 : 2; }

// Keeps the compiler from carrying what slides from one step to the next in registers, which it takes from the sums.
template <class V> CONVSWAP_INLINE void hide(const V*& pointer) { asm("" : "+r"(pointer)); }

// Keeps a vector that serves several products in a register; it would be loaded once for each.
template <class V> CONVSWAP_INLINE void hold(V& value) {
#if defined(__x86_64__)
  asm("" : "+v"(value));
#endif
}

template <class A, int BYTES, int P, int R> CONVSWAP_INLINE void correlate(const Block& b) {
  using V = Vec<A, BYTES>;
  const V* const steady = static_cast<const V*>(b.steady);
  const V* const sliding = static_cast<const V*>(b.sliding);
  const int64_t length = b.length;
  V sums[R][P] = {};
  int64_t shift[R];
  for (int r = 0; r < R; r++) shift[r] = b.shift[r];
  int64_t first = b.first[0], last = b.last[0];  // where all rows have a partner
  for (int r = 1; r < R; r++) {
    first = std::max(first, b.first[r]);
    last = std::min(last, b.last[r]);
  }
  if (first >= last) first = last = INT64_MAX;

  const auto alone = [&](V(&row)[P], int r, int64_t from, int64_t to) __attribute__((always_inline)) {
    for (int64_t e = from; e < to; e++) {
      const V* s = steady + e * b.steady_step + b.shift[r];
      const V* m = sliding + e * b.sliding_step;
      for (int64_t j = 0; j < length; j++, m++) {
        hide(m);
        const V value = s[j];
#pragma GCC unroll 16
        for (int p = 0; p < P; p++) row[p] += value * m[p];
      }
    }
  };

#pragma GCC unroll 4
  for (int r = 0; r < R; r++) {
    if (r < b.rows) alone(sums[r], r, b.first[r], std::min(b.last[r], first));
  }
  if (first != INT64_MAX) {
    for (int64_t e = first; e < last; e++) {
      const V* s = steady + e * b.steady_step;
      const V* m = sliding + e * b.sliding_step;
      for (int64_t j = 0; j < length; j++, m++) {
        hide(m);
        V values[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) values[r] = s[j + shift[r]];
#pragma GCC unroll 16
        for (int p = 0; p < P; p++) {
          V moving = m[p];
          hold(moving);
#pragma GCC unroll 4
          for (int r = 0; r < R; r++) sums[r][p] += values[r] * moving;
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      if (r < b.rows) alone(sums[r], r, std::max(b.first[r], last), b.last[r]);
    }
  }

#pragma GCC unroll 4
  for (int r = 0; r < R; r++) {
    if (r >= b.rows) break;
    V* out = static_cast<V*>(b.out) + r * b.out_row;
#pragma GCC unroll 16
    for (int p = 0; p < P; p++) {
      V* at = out + p * b.out_column;
      *at = b.add ? *at + sums[r][p] : sums[r][p];
    }
  }
}

}  // namespace convswap::lanes
