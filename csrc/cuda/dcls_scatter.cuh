// Kernels of DCLS drawn as triangles, and their gradient. Nothing is scattered: a thread owns a cell and looks through
// the elements in their order, so that sums are the same at every run. Device code without host includes.
#pragma once

#include "dcls_element.cuh"

namespace convswap {

constexpr int kScatterThreads = 256;
constexpr int kScatterCells = 1024;   // of a block at most
constexpr int kStagedElements = 512;  // in shared memory at a time

__host__ __device__ constexpr int staged_bytes(int value_size) {
  return kStagedElements * (4 * value_size + 3 * static_cast<int>(sizeof(int)));
}

// How cells are dealt to blocks: several small kernels to each, or a tile of a large one.
struct ScatterPlan {
  int kernels;  // of a block
  int chunk;    // elements of each kernel that are staged together
  int tiles;    // of a kernel
  Launch launch;
};

inline ScatterPlan plan_scatter(const Grid& grid, int value_size) {
  ScatterPlan plan;
  plan.chunk = static_cast<int>(least<Index>(most<Index>(grid.count, 1), kStagedElements));
  const Index kernels = least<Index>(kScatterCells / grid.cells, kStagedElements / plan.chunk);
  plan.kernels = static_cast<int>(most<Index>(kernels, 1));
  plan.tiles = ceil_div(grid.cells, kScatterCells);
  plan.launch = {ceil_div<Index>(grid.kernels, plan.kernels) * plan.tiles, kScatterThreads, staged_bytes(value_size)};
  return plan;
}

// Elements in shared memory, as cells look through them.
template <typename T>
struct StagedElements {
  T* share;        // weight over the normaliser
  T* fraction[3];
  int* base[3];

  __device__ explicit StagedElements(unsigned char* memory) {
    share = reinterpret_cast<T*>(memory);
    int* bases = reinterpret_cast<int*>(memory + kStagedElements * 4 * sizeof(T));
    CONVSWAP_UNROLL
    for (int axis = 0; axis < 3; ++axis) {
      fraction[axis] = share + (axis + 1) * kStagedElements;
      base[axis] = bases + axis * kStagedElements;
    }
  }

  __device__ void put(int place, const Element<T>& element, T weight, bool normalise) const {
    share[place] = weight / normaliser(element.value_sum(), normalise);
    CONVSWAP_UNROLL
    for (int axis = 0; axis < 3; ++axis) {
      fraction[axis][place] = element.along[axis].fraction;
      base[axis][place] = element.along[axis].base;
    }
  }

  // The triangle on an axis of the element at `place`.
  __device__ Triangle<T> along(int place, int axis, const Grid& grid, bool right_slope) const {
    Triangle<T> triangle;
    triangle.base = base[axis][place];
    triangle.size = grid.size[axis];
    triangle.fraction = fraction[axis][place];
    triangle.centred = triangle.fraction == static_cast<T>(0) && !right_slope;
    return triangle;
  }

  // What the element at `place` adds to a cell.
  __device__ T at(int place, const int (&cell)[3]) const {
    T value = share[place];
    CONVSWAP_UNROLL
    for (int axis = 0; axis < 3; ++axis) {
      const int offset = cell[axis] - base[axis][place];
      if (offset != 0 && offset != 1) return 0;
      const T part = fraction[axis][place];
      value *= offset == 0 ? static_cast<T>(1) - part : part;
    }
    return value;
  }
};

template <typename T>
__global__ void __launch_bounds__(kScatterThreads)
    dcls_scatter_kernel(const T* weight, const T* P, T* out, Grid grid, ScatterPlan plan, bool normalise) {
  CONVSWAP_SHARED(memory);
  constexpr int kPerThread = kScatterCells / kScatterThreads;
  StagedElements<T> staged(memory);
  const Index block = blockIdx.x;
  const Index first_kernel = block / plan.tiles * plan.kernels;
  const int kernels = static_cast<int>(least<Index>(grid.kernels - first_kernel, plan.kernels));
  const int first_cell = static_cast<int>(block % plan.tiles) * kScatterCells;
  const int end = kernels * grid.cells;  // one past the last cell that exists, counted from the first kernel

  int cell[kPerThread][3], kernel[kPerThread];
  T sum[kPerThread];
  CONVSWAP_UNROLL
  for (int i = 0; i < kPerThread; ++i) {
    const int index = first_cell + i * kScatterThreads + static_cast<int>(threadIdx.x);
    const bool exists = index < end;
    kernel[i] = exists ? index / grid.cells : 0;
    cell_of(exists ? index % grid.cells : 0, grid, cell[i]);
    sum[i] = 0;
  }
  for (Index start = 0; start < grid.count; start += plan.chunk) {
    const int chunk = static_cast<int>(least<Index>(grid.count - start, plan.chunk));
    __syncthreads();
    for (int i = threadIdx.x; i < kernels * chunk; i += kScatterThreads) {
      const Index element = (first_kernel + i / chunk) * grid.count + start + i % chunk;
      staged.put(i, Element<T>(P, grid, element, true), weight[element], normalise);
    }
    __syncthreads();
    CONVSWAP_UNROLL
    for (int i = 0; i < kPerThread; ++i) {
      for (int e = 0; e < chunk; ++e) sum[i] += staged.at(kernel[i] * chunk + e, cell[i]);
    }
  }
  CONVSWAP_UNROLL
  for (int i = 0; i < kPerThread; ++i) {
    const int index = first_cell + i * kScatterThreads + static_cast<int>(threadIdx.x);
    if (index < end) out[first_kernel * grid.cells + index] = sum[i];
  }
}

constexpr int kElementThreads = 128;

inline Launch scatter_backward_launch(const Grid& grid) {
  return {ceil_div<Index>(grid.kernels * grid.count, kElementThreads), kElementThreads, 0};
}

template <typename T>
__global__ void __launch_bounds__(kElementThreads)
    dcls_scatter_backward_kernel(const T* grad, const T* weight, const T* P, T* weight_grad, T* P_grad, Grid grid,
                                 bool normalise, bool right_slope) {
  const Index elements = grid.kernels * grid.count;
  const Index index = static_cast<Index>(blockIdx.x) * kElementThreads + threadIdx.x;
  if (index >= elements) return;
  const Element<T> element(P, grid, index, right_slope);
  const ElementGrad<T> found =
      element_backward(element, grad + index / grid.count * grid.cells, weight[index], normalise);
  weight_grad[index] = found.weight;
  CONVSWAP_UNROLL
  for (int axis = 0; axis < 3; ++axis) {
    if (grid.row[axis] >= 0) P_grad[grid.row[axis] * elements + index] = found.position[axis];
  }
}

}  // namespace convswap
