// The compiled forms of the hot loops, one for each instruction set and type, chosen when an op runs.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "large_depthwise_conv2d_rows.h"

namespace convswap::lanes {

struct Kernels {
  int bytes;    // of a vector
  int lanes;    // in a vector
  int widest;   // columns that a block can sum
  int element;  // bytes of an element in storage
  void (*correlate)(int width, const Block&);
  void (*gather)(const Lanes&, int64_t count, const int32_t* place, void* to);
  void (*spread)(const void* from, int64_t count, const void* more, const Lanes&);
  void (*sum)(const void* from, int64_t count, void* to);
};

#define CONVSWAP_LANES(NAME, TARGET, BYTES, WIDEST)                                                          \
  struct NAME {                                                                                              \
    template <class A, int P> TARGET static void block(const Block& b) {                                     \
      correlate<A, BYTES, P, block_rows(P, WIDEST)>(b);                                                      \
    }                                                                                                        \
    template <class A, int... P>                                                                             \
    static void pick(int width, const Block& b, std::integer_sequence<int, P...>) {                          \
      static constexpr void (*all[])(const Block&) = {&block<A, P + 1>...};                                  \
      all[width - 1](b);                                                                                     \
    }                                                                                                        \
    template <class A> static void correlate_width(int width, const Block& b) {                              \
      pick<A>(width, b, std::make_integer_sequence<int, WIDEST>{});                                          \
    }                                                                                                        \
    template <class T> TARGET static void take(const Lanes& from, int64_t n, const int32_t* at, void* to) {  \
      gather<T, BYTES>(from, n, at, to);                                                                     \
    }                                                                                                        \
    template <class T> TARGET static void put(const void* from, int64_t n, const void* m, const Lanes& to) { \
      spread<T, BYTES>(from, n, m, to);                                                                      \
    }                                                                                                        \
    template <class A> TARGET static void sum(const void* from, int64_t n, void* to) {                       \
      add<A>(from, n * (BYTES / int64_t(sizeof(A))), to);                                                    \
    }                                                                                                        \
    template <class T> static Kernels kernels() {                                                            \
      using A = typename Sum<T>::type;                                                                       \
      return {BYTES,    int(BYTES / sizeof(A)), WIDEST,   int(sizeof(T)), &correlate_width<A>,               \
              &take<T>, &put<T>,                &sum<A>};                                                    \
    }                                                                                                        \
  }

#if defined(__x86_64__)
CONVSWAP_LANES(Avx512, __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), 64, 14);
CONVSWAP_LANES(Avx2, __attribute__((target("avx2,fma"))), 32, 6);
CONVSWAP_LANES(Baseline, , 16, 6);
#else
CONVSWAP_LANES(Baseline, , 16, 14);
#endif

template <class T> Kernels kernels() {
#if defined(__x86_64__)
  static const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  static const bool wide = fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  if (wide) return Avx512::kernels<T>();
  if (fma) return Avx2::kernels<T>();
#endif
  return Baseline::kernels<T>();
}

inline Kernels kernels_for(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float: return kernels<float>();
    case ScalarType::Double: return kernels<double>();
    case ScalarType::BFloat16: return kernels<BFloat16>();
    case ScalarType::Half: return kernels<Half>();
    default: STD_TORCH_CHECK(false, "large_depthwise_conv2d takes float32, float64, bfloat16 and float16 on the CPU, "
                             "got ", torch::headeronly::toString(dtype));
  }
}

}  // namespace convswap::lanes
