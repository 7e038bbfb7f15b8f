// What all device code shares. No header of the host is included by any .cuh: such a file compiles as well under a
// run-time compiler, and as plain C++ under tests/csrc/cuda_emulation.h, which is how it is tested without a GPU.
#pragma once

// Shared memory whose size the launch gives; aligned for fragments of tensor cores.
#if defined(__CUDACC__)
#define CONVSWAP_SHARED(name) extern __shared__ __align__(32) unsigned char name[]
#define CONVSWAP_INLINE __forceinline__
#define CONVSWAP_UNROLL _Pragma("unroll")
#else
#define CONVSWAP_SHARED(name) unsigned char* const name = emulation::shared_memory()
#define CONVSWAP_INLINE inline
#define CONVSWAP_UNROLL
#endif

namespace convswap {

using Index = long long;  // an offset into a tensor

// What a launch asks for. Computed by functions that the .cu files and the emulation have in common.
struct Launch {
  Index blocks;  // work for so many; the kernels step through it by gridDim.x
  int threads;
  int shared_bytes;

  // Blocks to launch: what the first axis of a grid holds.
  __host__ __device__ unsigned grid() const { return static_cast<unsigned>(blocks < 0x7fffffff ? blocks : 0x7fffffff); }
};

// Every GPU gives this much shared memory to a block without being asked.
constexpr int kSharedBytes = 48 * 1024;

// The type that sums are kept in.
template <typename T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
template <typename T>
using Sum = typename SumOf<T>::type;

template <typename T>
__host__ __device__ constexpr T least(T a, T b) {
  return b < a ? b : a;
}

template <typename T>
__host__ __device__ constexpr T most(T a, T b) {
  return a < b ? b : a;
}

// Of a >= 0 and b > 0.
template <typename T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

}  // namespace convswap
