// Products of tiles in shared memory, kept in registers: on tensor cores in half precision, else by multiply-adds.
#pragma once

#include "dynamic_plan.cuh"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>
#endif

namespace convswap {

// What tensor cores take an element type for; specialised beside the types.
template <typename T>
struct TensorCoreOf {
  using type = T;
};

// The warps of a block lie kAcross by kDown over a tile of kRows by kColumns.
template <int kRows, int kColumns>
struct WarpTile {
  static constexpr int kAcross = kColumns >= 128 ? kDynamicWarps : kColumns / 16;
  static constexpr int kDown = kDynamicWarps / kAcross;
  static constexpr int rows = kRows / kDown, columns = kColumns / kAcross;

  __device__ static int row() { return static_cast<int>(threadIdx.x) / 32 / kAcross * rows; }
  __device__ static int column() { return static_cast<int>(threadIdx.x) / 32 % kAcross * columns; }
};

template <typename S>
struct alignas(16) Sixteen {  // bytes
  static constexpr int count = 16 / sizeof(S);
  S v[count];
};

// kCount numbers from an address that is a multiple of as many, in the widest accesses.
template <int kCount, typename S>
CONVSWAP_INLINE __device__ void load_run(S (&to)[kCount], const S* from) {
  constexpr int kWide = Sixteen<S>::count;
  if constexpr (kCount % kWide == 0) {
    CONVSWAP_UNROLL
    for (int i = 0; i < kCount; i += kWide) {
      const Sixteen<S> some = *reinterpret_cast<const Sixteen<S>*>(from + i);
      CONVSWAP_UNROLL
      for (int j = 0; j < kWide; ++j) to[i + j] = some.v[j];
    }
  } else {
    CONVSWAP_UNROLL
    for (int i = 0; i < kCount; ++i) to[i] = from[i];
  }
}

// A (kRows, kDepth) times B (kDepth, kColumns), added up. kInnerA: whether numbers of A that follow each other differ
// in depth rather than in row, and kInnerB likewise: as threads write them without conflicts of banks.
template <typename T, int kRows, int kColumns, int kDepth, bool kInnerA, bool kInnerB, bool kTensorCores>
class DynamicProduct;

template <typename T, int kRows, int kColumns, int kDepth, bool kInnerA, bool kInnerB>
class DynamicProduct<T, kRows, kColumns, kDepth, kInnerA, kInnerB, false> {
  using Warp = WarpTile<kRows, kColumns>;
  static constexpr int kPad = 16 / sizeof(T), kTall = Warp::rows / 8, kWide = Warp::columns / 4;
  static constexpr int kApart = Warp::columns + 1, kPatch = 8 * kApart;

 public:
  static constexpr int a_size = kDepth * (kRows + kPad), b_size = kDepth * (kColumns + kPad);
  static constexpr int patch_bytes = kDynamicWarps * kPatch * static_cast<int>(sizeof(T));  // what `each` needs

  __device__ static int a(int row, int depth) { return depth * (kRows + kPad) + row; }
  __device__ static int b(int depth, int column) { return depth * (kColumns + kPad) + column; }

  __device__ void clear() {
    CONVSWAP_UNROLL
    for (int i = 0; i < kTall; ++i) {
      CONVSWAP_UNROLL
      for (int j = 0; j < kWide; ++j) sum_[i][j] = 0;
    }
  }

  __device__ void add(const T* A, const T* B) {
    CONVSWAP_UNROLL
    for (int k = 0; k < kDepth; ++k) {
      T left[kTall], right[kWide];
      load_run(left, A + a(row(), k));
      load_run(right, B + b(k, column()));
      CONVSWAP_UNROLL
      for (int i = 0; i < kTall; ++i) {
        CONVSWAP_UNROLL
        for (int j = 0; j < kWide; ++j) sum_[i][j] += left[i] * right[j];
      }
    }
  }

  // Calls f(row, column, sum), neighbouring lanes on neighbouring columns, or on rows that lie near each other.
  template <typename Function>
  __device__ void each(void* patches, bool along_rows, Function&& f) const {
    T* patch = static_cast<T*>(patches) + static_cast<int>(threadIdx.x) / 32 * kPatch;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    CONVSWAP_UNROLL
    for (int i = 0; i < kTall; ++i) {
      CONVSWAP_UNROLL
      for (int j = 0; j < kWide; ++j) patch[lane / 4 * kApart + lane % 4 * kWide + j] = sum_[i][j];
      __syncwarp();
      CONVSWAP_ROLLED
      for (int e = lane; e < 8 * Warp::columns; e += 32) {
        const int row = along_rows ? e % 8 : e / Warp::columns, column = along_rows ? e / 8 : e % Warp::columns;
        f(Warp::row() + row * kTall + i, Warp::column() + column, patch[row * kApart + column]);
      }
      __syncwarp();
    }
  }

  // To a tile in shared memory.
  __device__ void store(T* tile, int apart) const {
    CONVSWAP_UNROLL
    for (int i = 0; i < kTall; ++i) {
      CONVSWAP_UNROLL
      for (int j = 0; j < kWide; ++j) tile[(row() + i) * apart + column() + j] = sum_[i][j];
    }
  }

 private:
  __device__ static int row() { return Warp::row() + static_cast<int>(threadIdx.x) % 32 / 4 * kTall; }
  __device__ static int column() { return Warp::column() + static_cast<int>(threadIdx.x) % 4 * kWide; }

  T sum_[kTall][kWide];
};

template <typename T, int kRows, int kColumns, int kDepth, bool kInnerA, bool kInnerB>
class DynamicProduct<T, kRows, kColumns, kDepth, kInnerA, kInnerB, true> {
  using Warp = WarpTile<kRows, kColumns>;
  using Element = typename TensorCoreOf<T>::type;
  using RowMajor = nvcuda::wmma::row_major;
  using ColumnMajor = nvcuda::wmma::col_major;
  static constexpr int kPad = 8;  // keeps rows of 16 bytes, as fragments want them, off each other's banks
  static constexpr int kApartA = (kInnerA ? kDepth : kRows) + kPad, kApartB = (kInnerB ? kDepth : kColumns) + kPad;
  static constexpr int kTall = Warp::rows / 16, kWide = Warp::columns / 16, kPatch = 20;

 public:
  static constexpr int a_size = (kInnerA ? kRows : kDepth) * kApartA;
  static constexpr int b_size = (kInnerB ? kColumns : kDepth) * kApartB;
  static constexpr int patch_bytes = kDynamicWarps * 16 * kPatch * static_cast<int>(sizeof(float));

  __device__ static int a(int row, int depth) { return kInnerA ? row * kApartA + depth : depth * kApartA + row; }
  __device__ static int b(int depth, int column) {
    return kInnerB ? column * kApartB + depth : depth * kApartB + column;
  }

  __device__ void clear() {
    CONVSWAP_UNROLL
    for (int i = 0; i < kTall; ++i) {
      CONVSWAP_UNROLL
      for (int j = 0; j < kWide; ++j) nvcuda::wmma::fill_fragment(sum_[i][j], 0.0f);
    }
  }

  __device__ void add(const T* A, const T* B) {
    using namespace nvcuda::wmma;
    CONVSWAP_UNROLL
    for (int k = 0; k < kDepth; k += 16) {
      fragment<matrix_a, 16, 16, 16, Element, If<kInnerA, RowMajor, ColumnMajor>> left[kTall];
      CONVSWAP_UNROLL
      for (int i = 0; i < kTall; ++i) {
        load_matrix_sync(left[i], reinterpret_cast<const Element*>(A + a(Warp::row() + 16 * i, k)), kApartA);
      }
      CONVSWAP_UNROLL
      for (int j = 0; j < kWide; ++j) {
        fragment<matrix_b, 16, 16, 16, Element, If<kInnerB, ColumnMajor, RowMajor>> right;
        load_matrix_sync(right, reinterpret_cast<const Element*>(B + b(k, Warp::column() + 16 * j)), kApartB);
        CONVSWAP_UNROLL
        for (int i = 0; i < kTall; ++i) mma_sync(sum_[i][j], left[i], right, sum_[i][j]);
      }
    }
  }

  // Calls f(row, column, sum), neighbouring lanes on neighbouring rows or on neighbouring columns.
  template <typename Function>
  __device__ void each(void* patches, bool along_rows, Function&& f) const {
    float* patch = static_cast<float*>(patches) + static_cast<int>(threadIdx.x) / 32 * 16 * kPatch;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    CONVSWAP_UNROLL
    for (int i = 0; i < kTall; ++i) {
      CONVSWAP_UNROLL
      for (int j = 0; j < kWide; ++j) {
        nvcuda::wmma::store_matrix_sync(patch, sum_[i][j], kPatch, nvcuda::wmma::mem_row_major);
        __syncwarp();
        CONVSWAP_ROLLED
        for (int e = lane; e < 256; e += 32) {
          const int row = along_rows ? e % 16 : e / 16, column = along_rows ? e / 16 : e % 16;
          f(Warp::row() + 16 * i + row, Warp::column() + 16 * j + column, patch[row * kPatch + column]);
        }
        __syncwarp();
      }
    }
  }

  __device__ void store(float* tile, int apart) const {
    CONVSWAP_UNROLL
    for (int i = 0; i < kTall; ++i) {
      CONVSWAP_UNROLL
      for (int j = 0; j < kWide; ++j) {
        float* to = tile + (Warp::row() + 16 * i) * apart + Warp::column() + 16 * j;
        nvcuda::wmma::store_matrix_sync(to, sum_[i][j], apart, nvcuda::wmma::mem_row_major);
      }
    }
  }

 private:
  template <bool kCondition, typename Yes, typename No>
  struct Choice {
    using type = Yes;
  };
  template <typename Yes, typename No>
  struct Choice<false, Yes, No> {
    using type = No;
  };
  template <bool kCondition, typename Yes, typename No>
  using If = typename Choice<kCondition, Yes, No>::type;

  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sum_[kTall][kWide];
};

}  // namespace convswap
