// The loops over numbers of a dynamic convolution: mixing a block of kernels, and multiplying with it at once.
//
// A panel is a matrix with a row for each term of a sum and a column for each lane, 1 or 2 vectors of them.
#pragma once

#include <cstdint>

#include "simd.h"

namespace convswap::dynamic {

// Sums side by side: as many as stay in registers.
template <int BYTES>
constexpr int SUMS = BYTES == 64 ? 12 : 6;

inline int vector_bytes() {
#if CONVSWAP_X86_LEVELS
  if (__builtin_cpu_supports("x86-64-v4")) return 64;
  if (__builtin_cpu_supports("x86-64-v3")) return 32;
#endif
  return 16;
}

inline int most_sums() { return vector_bytes() == 64 ? SUMS<64> : SUMS<16>; }

// What one call of Multiply computes: sums[i][lane], plus the sum over t < terms of
// panel[t][lane] * source[steps[t] + at[i]].
template <typename T>
struct Product {
  const T* panel;
  const int64_t* steps;
  int64_t terms;
  const T* source;
  const int64_t* at;
  T* sums;
  bool add;
};

struct Multiply {
  template <int BYTES, typename T>
  static CONVSWAP_INLINE void run(const Product<T>& p, int count, int vectors) {
    if (vectors == 1) tiles<BYTES, 1>(p, count);
    else tiles<BYTES, 2>(p, count);
  }

  template <int BYTES, int VECTORS, typename T>
  static CONVSWAP_INLINE void tiles(const Product<T>& p, int count) {
    switch (count) {
      case 1: return tile<BYTES, VECTORS, 1>(p);
      case 2: return tile<BYTES, VECTORS, 2>(p);
      case 3: return tile<BYTES, VECTORS, 3>(p);
      case 4: return tile<BYTES, VECTORS, 4>(p);
      case 5: return tile<BYTES, VECTORS, 5>(p);
      case 6: return tile<BYTES, VECTORS, 6>(p);
    }
    if constexpr (SUMS<BYTES> > 6) {
      switch (count) {
        case 7: return tile<BYTES, VECTORS, 7>(p);
        case 8: return tile<BYTES, VECTORS, 8>(p);
        case 9: return tile<BYTES, VECTORS, 9>(p);
        case 10: return tile<BYTES, VECTORS, 10>(p);
        case 11: return tile<BYTES, VECTORS, 11>(p);
        case 12: return tile<BYTES, VECTORS, 12>(p);
      }
    }
  }

  template <int BYTES, int VECTORS, int COUNT, typename T>
  static CONVSWAP_INLINE void tile(const Product<T>& p) {
    using V = Vec<T, BYTES>;
    constexpr int64_t L = BYTES / sizeof(T), WIDTH = VECTORS * L;
    V sum[COUNT][VECTORS];
    const T* from[COUNT];
#pragma GCC unroll 12
    for (int i = 0; i < COUNT; ++i) {
      from[i] = p.source + p.at[i];
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) sum[i][v] = p.add ? load<V>(p.sums + i * WIDTH + v * L) : V{};
    }
    const T* panel = p.panel;
    const int64_t* const end = p.steps + p.terms;
    for (const int64_t* step = p.steps; step != end; ++step, panel += WIDTH) {
      V row[VECTORS];
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) row[v] = load<V>(panel + v * L);
#pragma GCC unroll 12
      for (int i = 0; i < COUNT; ++i) {
        const T factor = from[i][*step];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sum[i][v] += factor * row[v];
      }
    }
#pragma GCC unroll 12
    for (int i = 0; i < COUNT; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) store(p.sums + i * WIDTH + v * L, sum[i][v]);
    }
  }
};

// mixed[i] = sum over k of shares[k] * stacked[k * size + i], size being a multiple of the vector.
struct Mix {
  template <int BYTES, typename T>
  static CONVSWAP_INLINE void run(const T* stacked, const T* shares, int64_t kernels, int64_t size, T* mixed) {
    if (kernels == 4) return kernels_at_once<BYTES, 4>(stacked, shares, size, false, mixed);
    int64_t k = 0;
    for (; k + 4 <= kernels; k += 4) {
      kernels_at_once<BYTES, 4>(stacked + k * size, shares + k, size, k > 0, mixed);
    }
    for (; k < kernels; ++k) kernels_at_once<BYTES, 1>(stacked + k * size, shares + k, size, k > 0, mixed);
  }

  template <int BYTES, int COUNT, typename T>
  static CONVSWAP_INLINE void kernels_at_once(const T* stacked, const T* shares, int64_t size, bool add, T* mixed) {
    using V = Vec<T, BYTES>;
    constexpr int64_t L = BYTES / sizeof(T);
    V share[COUNT];
#pragma GCC unroll 4
    for (int k = 0; k < COUNT; ++k) share[k] = V{} + shares[k];
    for (int64_t i = 0; i < size; i += L) {
      V sum = add ? load<V>(mixed + i) : V{};
#pragma GCC unroll 4
      for (int k = 0; k < COUNT; ++k) sum += share[k] * load<V>(stacked + k * size + i);
      store(mixed + i, sum);
    }
  }
};

// What blocks of the gradients to the kernels of some samples, `apart` from each other, add to the gradients of all
// kernels: to[k * size + i] += the sum over samples b of shares[b * kernels + k] * found[b * apart + i]. And to the
// vectors dots[b * kernels + k], of which each lane is a sum: stacked[k * size + i] * found[b * apart + i].
template <typename T>
struct Block {
  const T *found, *stacked, *shares;
  int64_t apart, kernels, size, length;
  T *to, *dots;
};

struct Update {
  static constexpr int64_t DOTS = 16;  // numbers of a vector, at most

  template <int BYTES, typename T>
  static CONVSWAP_INLINE void run(const Block<T>& block, int64_t samples) {
    int64_t k = 0;
    for (; k + 4 <= block.kernels; k += 4) {
      add<BYTES, 4>(block, samples, k);
      int64_t b = 0;
      for (; b + 4 <= samples; b += 4) multiply<BYTES, 4, 4>(block, b, k);
      for (; b < samples; ++b) multiply<BYTES, 1, 4>(block, b, k);
    }
    for (; k < block.kernels; ++k) {
      add<BYTES, 1>(block, samples, k);
      int64_t b = 0;
      for (; b + 4 <= samples; b += 4) multiply<BYTES, 4, 1>(block, b, k);
      for (; b < samples; ++b) multiply<BYTES, 1, 1>(block, b, k);
    }
  }

  template <int BYTES, int KERNELS, typename T>
  static CONVSWAP_INLINE void add(const Block<T>& block, int64_t samples, int64_t first) {
    using V = Vec<T, BYTES>;
    T* const to = block.to + first * block.size;
    for (int64_t i = 0; i < block.length; i += BYTES / sizeof(T)) {
      V sum[KERNELS];
#pragma GCC unroll 4
      for (int k = 0; k < KERNELS; ++k) sum[k] = load<V>(to + k * block.size + i);
      const T *found = block.found + i, *shares = block.shares + first;
      for (int64_t b = 0; b < samples; ++b, found += block.apart, shares += block.kernels) {
        const V own = load<V>(found);
#pragma GCC unroll 4
        for (int k = 0; k < KERNELS; ++k) sum[k] += shares[k] * own;
      }
#pragma GCC unroll 4
      for (int k = 0; k < KERNELS; ++k) store(to + k * block.size + i, sum[k]);
    }
  }

  template <int BYTES, int SAMPLES, int KERNELS, typename T>
  static CONVSWAP_INLINE void multiply(const Block<T>& block, int64_t sample, int64_t first) {
    using V = Vec<T, BYTES>;
    const T *found = block.found + sample * block.apart, *stacked = block.stacked + first * block.size;
    T* const dots = block.dots + (sample * block.kernels + first) * DOTS;
    V sum[SAMPLES][KERNELS];
#pragma GCC unroll 4
    for (int b = 0; b < SAMPLES; ++b) {
#pragma GCC unroll 4
      for (int k = 0; k < KERNELS; ++k) sum[b][k] = load<V>(dots + (b * block.kernels + k) * DOTS);
    }
    for (int64_t i = 0; i < block.length; i += BYTES / sizeof(T)) {
      V other[KERNELS];
#pragma GCC unroll 4
      for (int k = 0; k < KERNELS; ++k) other[k] = load<V>(stacked + k * block.size + i);
#pragma GCC unroll 4
      for (int b = 0; b < SAMPLES; ++b) {
        const V own = load<V>(found + b * block.apart + i);
#pragma GCC unroll 4
        for (int k = 0; k < KERNELS; ++k) sum[b][k] += own * other[k];
      }
    }
#pragma GCC unroll 4
    for (int b = 0; b < SAMPLES; ++b) {
#pragma GCC unroll 4
      for (int k = 0; k < KERNELS; ++k) store(dots + (b * block.kernels + k) * DOTS, sum[b][k]);
    }
  }
};

}  // namespace convswap::dynamic
