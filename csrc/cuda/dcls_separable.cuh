// Kernels of DCLS drawn as outer products of one vector for each axis. A thread owns a cell and adds the elements up in
// their order. Device code without host includes.
#pragma once

#include "dcls_bump.cuh"

namespace convswap {

constexpr int kSeparableThreads = 256;
constexpr int kSeparableCells = 1024;  // of a block at most

// How cells are dealt to blocks: several small kernels to each, or a tile of a large one.
struct SeparablePlan {
  int kernels;  // of a block
  int chunk;    // elements of each kernel that are staged together
  int length;   // of an element's vectors in shared memory; 0: they are too long, and computed where they are used
  int lanes;    // threads that sum a vector together
  int tiles;    // of a kernel
  Launch launch;
};

inline SeparablePlan plan_separable(const Grid& grid, int value_size, int most_bytes = kSeparableBytes) {
  SeparablePlan plan;
  const Index length = vector_length(grid) | 1;  // odd, so that neighbouring elements lie in different banks
  const Index room = most_bytes / value_size;
  const bool staged = length + 1 <= room;  // beside the vectors there is the element's share
  const Index elements = staged ? room / (length + 1) : kSeparableThreads;
  plan.length = staged ? static_cast<int>(length) : 0;
  plan.chunk = static_cast<int>(least<Index>(most<Index>(grid.count, 1), elements));
  plan.kernels = static_cast<int>(most<Index>(least<Index>(kSeparableCells / grid.cells, elements / plan.chunk), 1));
  plan.lanes = length < 128 ? 1 : 32;
  plan.tiles = ceil_div(grid.cells, kSeparableCells);
  plan.launch = {ceil_div<Index>(grid.kernels, plan.kernels) * plan.tiles, kSeparableThreads,
                 plan.kernels * plan.chunk * (plan.length + 1) * value_size};
  return plan;
}

template <typename T, bool kGaussian>
__global__ void __launch_bounds__(kSeparableThreads)
    dcls_separable_kernel(const T* weight, const T* P, const T* SIG, T* out, Grid grid, SeparablePlan plan,
                          T least_sigma) {
  CONVSWAP_SHARED(memory);
  constexpr int kPerThread = kSeparableCells / kSeparableThreads;
  T* shares = reinterpret_cast<T*>(memory);
  T* vectors = shares + plan.kernels * plan.chunk;
  const Index block = blockIdx.x;
  const Index first_kernel = block / plan.tiles * plan.kernels;
  const int kernels = static_cast<int>(least<Index>(grid.kernels - first_kernel, plan.kernels));
  const int first_cell = static_cast<int>(block % plan.tiles) * kSeparableCells;
  const int end = kernels * grid.cells;

  int cell[kPerThread][3], kernel[kPerThread];
  T sum[kPerThread];
  CONVSWAP_UNROLL
  for (int i = 0; i < kPerThread; ++i) {
    const int index = first_cell + i * kSeparableThreads + static_cast<int>(threadIdx.x);
    const bool exists = index < end;
    kernel[i] = exists ? index / grid.cells : 0;
    cell_of(exists ? index % grid.cells : 0, grid, cell[i]);
    sum[i] = 0;
  }
  const int start1 = vector_start(grid, 1), start2 = vector_start(grid, 2);
  for (Index start = 0; start < grid.count; start += plan.chunk) {
    const int chunk = static_cast<int>(least<Index>(grid.count - start, plan.chunk));
    const int elements = kernels * chunk;
    __syncthreads();
    CONVSWAP_UNROLL
    for (int axis = 0; plan.length && axis < 3; ++axis) {
      for (int i = threadIdx.x; i < elements * grid.size[axis]; i += kSeparableThreads) {
        const int slot = i / grid.size[axis], t = i % grid.size[axis];
        const Index element = (first_kernel + slot / chunk) * grid.count + start + slot % chunk;
        const auto bump = bump_of<T, kGaussian>(P, SIG, grid, element, axis, least_sigma);
        vectors[slot * plan.length + vector_start(grid, axis) + t] = bump.value(t);
      }
    }
    __syncthreads();
    // All threads of a warp go round together, for they exchange sums.
    for (int first = 0; first < elements; first += kSeparableThreads / plan.lanes) {
      const int slot = first + threadIdx.x / plan.lanes, lane = threadIdx.x % plan.lanes;
      const bool exists = slot < elements;
      const Index element =
          exists ? (first_kernel + slot / chunk) * grid.count + start + slot % chunk : first_kernel * grid.count;
      T total = 1;
      CONVSWAP_UNROLL
      for (int axis = 0; axis < 3; ++axis) {
        T part = 0;
        if (exists && plan.length) {
          const T* vector = vectors + slot * plan.length + vector_start(grid, axis);
          for (int t = lane; t < grid.size[axis]; t += plan.lanes) part += vector[t];
        } else if (exists) {
          const auto bump = bump_of<T, kGaussian>(P, SIG, grid, element, axis, least_sigma);
          for (int t = lane; t < grid.size[axis]; t += plan.lanes) part += bump.value(t);
        }
        total *= sum_over_lanes(part, plan.lanes);
      }
      if (exists && lane == 0) shares[slot] = weight[element] / normaliser(total, true);
    }
    __syncthreads();
    CONVSWAP_UNROLL
    for (int i = 0; i < kPerThread; ++i) {
      for (int e = 0; e < chunk; ++e) {
        const int slot = kernel[i] * chunk + e;
        if (plan.length) {
          const T* vector = vectors + slot * plan.length;
          sum[i] += shares[slot] * vector[cell[i][0]] * vector[start1 + cell[i][1]] * vector[start2 + cell[i][2]];
        } else {
          const Index element = (first_kernel + kernel[i]) * grid.count + start + e;
          T value = shares[slot];
          CONVSWAP_UNROLL
          for (int axis = 0; axis < 3; ++axis) {
            value *= bump_of<T, kGaussian>(P, SIG, grid, element, axis, least_sigma).value(cell[i][axis]);
          }
          sum[i] += value;
        }
      }
    }
  }
  CONVSWAP_UNROLL
  for (int i = 0; i < kPerThread; ++i) {
    const int index = first_cell + i * kSeparableThreads + static_cast<int>(threadIdx.x);
    if (index < end) out[first_kernel * grid.cells + index] = sum[i];
  }
}

}  // namespace convswap
