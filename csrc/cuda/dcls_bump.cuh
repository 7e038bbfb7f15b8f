// Elements of DCLS kernels that are products of one bump for each axis, a Gaussian or a triangle of learned width.
// Device code without host includes.
#pragma once

#include "dcls_element.cuh"

namespace convswap {

constexpr int kSeparableBytes = 32 * 1024;  // of shared memory for vectors at most

// A grid whose axes are padded behind: a kernel of one dimension has its cells along the first axis, in whose rows the
// threads share.
template <typename Size, typename Axis>
inline Grid make_separable_grid(int dims, Size size, Axis axes, Index kernels, Index count) {
  Grid grid = make_grid(dims, size, axes, kernels, count);
  if (dims > 1) return grid;
  grid.size[0] = grid.size[2];
  grid.row[0] = grid.row[2];
  grid.size[2] = 1;
  grid.row[2] = -1;
  return grid;
}

inline Index vector_length(const Grid& grid) {
  return static_cast<Index>(grid.size[0]) + grid.size[1] + grid.size[2];
}

// An element's bump on one axis. An axis that is not there has the value 1 in its only cell.
template <typename T, bool kGaussian>
struct Bump {
  T position, width, inverse;
  int centre;

  __device__ Bump() : position(0), width(1), inverse(1), centre(0) {}
  __device__ Bump(T P, T SIG, T least_sigma, int size)
      : position(P),
        width((SIG < static_cast<T>(0) ? -SIG : SIG) + least_sigma),
        inverse(static_cast<T>(1) / width),
        centre(size / 2) {}

  __device__ T distance(int cell) const { return static_cast<T>(cell - centre) - position; }

  __device__ T value(int cell) const {
    if (kGaussian) {
      const T ratio = distance(cell) / width;
      return exp(static_cast<T>(-0.5) * ratio * ratio);
    }
    const T height = width - fabs(distance(cell));
    return height <= static_cast<T>(0) ? static_cast<T>(0) : height;  // a NaN stays one
  }

  // Derivatives of a cell's value by position and width; at kinks the mean of both sides.
  __device__ void slopes(int cell, T value, T& by_position, T& by_width) const {
    const T d = distance(cell);
    if (kGaussian) {
      const T ratio = d * inverse;
      by_position = value * ratio * inverse;
      by_width = by_position * ratio;
    } else {
      const T height = width - fabs(d);
      by_width = height > static_cast<T>(0) ? static_cast<T>(1) : static_cast<T>(height == static_cast<T>(0) ? 0.5 : 0);
      by_position = d > static_cast<T>(0) ? by_width : d < static_cast<T>(0) ? -by_width : static_cast<T>(0);
    }
  }
};

template <typename T, bool kGaussian>
__device__ Bump<T, kGaussian> bump_of(const T* P, const T* SIG, const Grid& grid, Index element, int axis,
                                      T least_sigma) {
  if (grid.row[axis] < 0) return {};
  const Index at = grid.row[axis] * grid.kernels * grid.count + element;
  return {P[at], SIG[at], least_sigma, grid.size[axis]};
}

// The sum of a value over the `lanes` threads, a power of two up to a warp, that are neighbours.
template <typename T>
__device__ T sum_over_lanes(T value, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// Where an axis' vector begins in the three that lie one after another.
__device__ inline int vector_start(const Grid& grid, int axis) {
  return axis == 0 ? 0 : axis == 1 ? grid.size[0] : grid.size[0] + grid.size[1];
}

}  // namespace convswap
