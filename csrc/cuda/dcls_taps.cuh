// Lists of the few cells of a DCLS kernel that its elements reach. Device code without host includes.
#pragma once

#include "dcls_scatter.cuh"

namespace convswap {

enum class Taps {
  kDrawn,     // cells whose value is not 0
  kMirrored,  // the same for the way back: for each phase of the stride its cells, at -(cell / stride)
  kTouched,   // cells whose gradient the elements' gradients are made of, the ones that only have a slope among them
};

// For each kernel and phase of a stride the cells in their order; kernels lie in two dimensions.
template <typename T>
struct TapLists {
  int* start;   // (kernels, phases + 1): where the taps of a phase begin
  int* row;     // (kernels, capacity)
  int* column;  // (kernels, capacity)
  T* value;     // (kernels, capacity), or null for kTouched
  Index capacity;
  int stride[2];  // as many phases on an axis
};

constexpr int kTapThreads = 256;

inline Index tap_capacity(Taps which, const Grid& grid) {
  // An element touches six cells at most: two, with three in the other direction around them that only have slopes.
  return least<Index>(grid.cells, (which == Taps::kTouched ? 6 : 4) * grid.count);
}

inline Index tap_phases(Taps which, int stride_y, int stride_x) {
  return which == Taps::kMirrored ? static_cast<Index>(stride_y) * stride_x : 1;
}

// How many ints of scratch the lists need.
inline Index tap_ints(Taps which, const Grid& grid, int stride_y, int stride_x) {
  return grid.kernels * (tap_phases(which, stride_y, stride_x) + 1 + 2 * tap_capacity(which, grid));
}

template <typename T>
TapLists<T> tap_lists(Taps which, const Grid& grid, int stride_y, int stride_x, int* ints, T* values) {
  const bool mirrored = which == Taps::kMirrored;
  const Index capacity = tap_capacity(which, grid);
  int* row = ints + grid.kernels * (tap_phases(which, stride_y, stride_x) + 1);
  int* column = row + grid.kernels * capacity;
  return {ints, row, column, values, capacity, {mirrored ? stride_y : 1, mirrored ? stride_x : 1}};
}

inline Launch tap_launch(const Grid& grid, int value_size) {
  return {grid.kernels, kTapThreads, staged_bytes(value_size) + kTapThreads / 32 * static_cast<int>(sizeof(int))};
}

// How many of the threads before this one keep something, and how many do in all. `totals` holds one int for each warp.
__device__ inline int count_before(bool keep, int* totals, int& all) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int upto = keep;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, upto, step);
    if (lane >= step) upto += other;
  }
  __syncthreads();
  if (lane == 31) totals[warp] = upto;
  __syncthreads();
  int before = upto - keep;
  all = 0;
  for (int w = 0; w < kTapThreads / 32; ++w) {
    if (w < warp) before += totals[w];
    all += totals[w];
  }
  return before;
}

template <typename T>
__device__ bool touches(const StagedElements<T>& staged, int place, const Grid& grid, const int (&cell)[3],
                        bool right_slope) {
  const Triangle<T> y = staged.along(place, 1, grid, right_slope), x = staged.along(place, 2, grid, right_slope);
  const int down = cell[1] - y.base, right = cell[2] - x.base;
  return down >= y.first() && down <= 1 && right >= x.first() && right <= 1 &&
         (y.value(down) != static_cast<T>(0) || x.value(right) != static_cast<T>(0));
}

template <typename T>
__global__ void __launch_bounds__(kTapThreads)
    dcls_list_taps(const T* weight, const T* P, TapLists<T> lists, Grid grid, Taps which, bool normalise,
                   bool right_slope) {
  CONVSWAP_SHARED(memory);
  const StagedElements<T> staged(memory);
  int* totals = reinterpret_cast<int*>(memory + staged_bytes(sizeof(T)));
  const int phases = lists.stride[0] * lists.stride[1];
  for (Index kernel = blockIdx.x; kernel < grid.kernels; kernel += gridDim.x) {
    int* start = lists.start + kernel * (phases + 1);
    int found = 0;
    bool fresh = true;  // elements of this kernel have yet to be staged
    for (int phase = 0; phase < phases; ++phase) {
      if (threadIdx.x == 0) start[phase] = found;
      const int phase_y = phase / lists.stride[1], phase_x = phase % lists.stride[1];
      const int height = (grid.size[1] - phase_y + lists.stride[0] - 1) / lists.stride[0];
      const int width = (grid.size[2] - phase_x + lists.stride[1] - 1) / lists.stride[1];
      const int cells = height * width;
      for (int first = 0; first < cells; first += kTapThreads) {
        const int index = first + static_cast<int>(threadIdx.x);
        const int y = index / width, x = index % width;
        const int cell[3] = {0, y * lists.stride[0] + phase_y, x * lists.stride[1] + phase_x};
        T value = 0;
        bool touched = false;
        for (Index from = 0; from < grid.count; from += kStagedElements) {
          const int chunk = static_cast<int>(least<Index>(grid.count - from, kStagedElements));
          if (fresh || grid.count > kStagedElements) {
            __syncthreads();
            for (int i = threadIdx.x; i < chunk; i += kTapThreads) {
              const Index element = kernel * grid.count + from + i;
              staged.put(i, Element<T>(P, grid, element, right_slope), weight[element], normalise);
            }
            __syncthreads();
          }
          for (int e = 0; e < chunk; ++e) {
            if (which == Taps::kTouched) {
              touched = touched || touches(staged, e, grid, cell, right_slope);
            } else {
              value += staged.at(e, cell);
            }
          }
        }
        fresh = false;
        const bool keep = index < cells && (which == Taps::kTouched ? touched : value != static_cast<T>(0));
        int all;
        const int place = found + count_before(keep, totals, all);
        if (keep) {
          const bool mirrored = which == Taps::kMirrored;
          lists.row[kernel * lists.capacity + place] = mirrored ? -y : y;
          lists.column[kernel * lists.capacity + place] = mirrored ? -x : x;
          if (lists.value) lists.value[kernel * lists.capacity + place] = value;
        }
        found += all;
      }
    }
    if (threadIdx.x == 0) start[phases] = found;
    __syncthreads();
  }
}

}  // namespace convswap
