// The two loops that read or write generated kernels, over runs of pixels that are neighbours in memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "guided_numbers.h"

namespace convswap::guided {

// Kernels' numbers for a run of pixels, and what they are multiplied with.
template <typename S>
struct Term {
  const S* weight;
  const Computed<S>* pixels;
};

// Where the products of a run with `pixels` go.
template <typename S>
struct Target {
  S* weight;
  const Computed<S>* pixels;
};

// Runs that are read or written side by side: more than a processor can see coming are no gain.
constexpr int64_t MOST_RUNS = 16;
constexpr int64_t VECTORS_AT_ONCE = 4;

// Bytes of a result from which on it is large.
constexpr int64_t LARGE_BYTES = 1 << 23;

template <int BYTES, int N, typename S>
CONVSWAP_INLINE void sum_block(const Term<S>* terms, int64_t count, int64_t at, ComputedVec<BYTES, S> (&sums)[N]) {
  for (int64_t k = 0; k < count; ++k) {
    const S* weight = terms[k].weight + at;
    const Computed<S>* pixels = terms[k].pixels + at;
#pragma GCC unroll 8
    for (int u = 0; u < N; ++u) {
      sums[u] += widened<BYTES>(weight + u * LANES<BYTES, S>) *
                 load<ComputedVec<BYTES, S>>(pixels + u * LANES<BYTES, S>);
    }
  }
}

// out[p] = start, or out[p] if `add`, plus the sum of weight[p] * pixels[p] over all terms.
struct SumProducts {
  template <int BYTES, typename S>
  static CONVSWAP_INLINE void run(const Term<S>* terms, int64_t count, int64_t length, Computed<S> start, bool add,
                                  Computed<S>* out) {
    while (count > MOST_RUNS) {
      pass<BYTES>(terms, MOST_RUNS, length, start, add, out);
      terms += MOST_RUNS;
      count -= MOST_RUNS;
      add = true;
    }
    pass<BYTES>(terms, count, length, start, add, out);
  }

  template <int BYTES, typename S>
  static CONVSWAP_INLINE void pass(const Term<S>* terms, int64_t count, int64_t length, Computed<S> start, bool add,
                                   Computed<S>* out) {
    using V = ComputedVec<BYTES, S>;
    constexpr int64_t L = LANES<BYTES, S>, N = VECTORS_AT_ONCE;
    if (length < L) {
      for (int64_t p = 0; p < length; ++p) {
        Computed<S> sum = add ? out[p] : start;
        for (int64_t k = 0; k < count; ++k) sum += static_cast<Computed<S>>(terms[k].weight[p]) * terms[k].pixels[p];
        out[p] = sum;
      }
      return;
    }
    // The last vector overlaps those before: it is summed before they change and stored after them.
    V last[1] = {add ? load<V>(out + length - L) : V{} + start};
    if (length % L) sum_block<BYTES>(terms, count, length - L, last);
    int64_t p = 0;
    for (; p + N * L <= length; p += N * L) {
      V sums[N];
#pragma GCC unroll 8
      for (int u = 0; u < N; ++u) sums[u] = add ? load<V>(out + p + u * L) : V{} + start;
      sum_block<BYTES>(terms, count, p, sums);
#pragma GCC unroll 8
      for (int u = 0; u < N; ++u) store(out + p + u * L, sums[u]);
    }
    for (; p + L <= length; p += L) {
      V sums[1] = {add ? load<V>(out + p) : V{} + start};
      sum_block<BYTES>(terms, count, p, sums);
      store(out + p, sums[0]);
    }
    if (length % L) store(out + length - L, last[0]);
  }
};

// weight[p] = grad[p] * pixels[p] for each target. What is `large` would not stay in the caches until it is read.
struct SpreadProducts {
  template <int BYTES, typename S>
  static CONVSWAP_INLINE void run(const Computed<S>* grad, const Target<S>* targets, int64_t count, int64_t length,
                                  bool large) {
    constexpr int64_t L = LANES<BYTES, S>;
    bool aligned = true;
    for (int64_t k = 0; k < count; ++k) aligned &= reinterpret_cast<uintptr_t>(targets[k].weight) % (L * sizeof(S)) == 0;
    if (large && aligned) {
      blocks<BYTES, true>(grad, targets, count, length);
      finish_stores_past_caches();
    } else {
      blocks<BYTES, false>(grad, targets, count, length);
    }
  }

  template <int BYTES, bool PAST_CACHES, typename S>
  static CONVSWAP_INLINE void blocks(const Computed<S>* grad, const Target<S>* targets, int64_t count, int64_t length) {
    constexpr int64_t L = LANES<BYTES, S>, N = VECTORS_AT_ONCE;
    if (length < L) {
      for (int64_t k = 0; k < count; ++k) {
        for (int64_t p = 0; p < length; ++p) targets[k].weight[p] = static_cast<S>(grad[p] * targets[k].pixels[p]);
      }
      return;
    }
    int64_t p = 0;
    for (; p + N * L <= length; p += N * L) block<BYTES, N, PAST_CACHES>(grad, targets, count, p);
    for (; p + L <= length; p += L) block<BYTES, 1, PAST_CACHES>(grad, targets, count, p);
    if (p < length) block<BYTES, 1, false>(grad, targets, count, length - L);
  }

  template <int BYTES, int N, bool PAST_CACHES, typename S>
  static CONVSWAP_INLINE void block(const Computed<S>* grad, const Target<S>* targets, int64_t count, int64_t at) {
    using V = ComputedVec<BYTES, S>;
    constexpr int64_t L = LANES<BYTES, S>;
    V own[N];
#pragma GCC unroll 8
    for (int u = 0; u < N; ++u) own[u] = load<V>(grad + at + u * L);
    for (int64_t k = 0; k < count; ++k) {
#pragma GCC unroll 8
      for (int u = 0; u < N; ++u) {
        put<BYTES, PAST_CACHES>(targets[k].weight + at + u * L, own[u] * load<V>(targets[k].pixels + at + u * L));
      }
    }
  }
};

}  // namespace convswap::guided
