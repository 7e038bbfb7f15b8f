// Gradient of DCLS kernels that are drawn as outer products. Device code without host includes.
#pragma once

#include "dcls_bump.cuh"

namespace convswap {

constexpr int kSeparableGradThreads = 128;

struct SeparableBackwardPlan {
  int lanes;   // threads of an element, among which the rows of its grid are dealt
  int length;  // of an element's vectors in shared memory; 0: they are too long, and computed where they are used
  Launch launch;
};

inline SeparableBackwardPlan plan_separable_backward(const Grid& grid, int value_size,
                                                     int most_bytes = kSeparableBytes) {
  SeparableBackwardPlan plan;
  const int rows = grid.size[0] * grid.size[1];
  const Index bytes = (vector_length(grid) | 1) * value_size;  // odd, so that elements lie in different banks
  plan.lanes = grid.cells <= 64 ? 1 : grid.cells <= 400 ? 4 : grid.cells <= 1600 ? 8 : 32;
  while (plan.lanes > 1 && plan.lanes > rows) plan.lanes /= 2;
  while (plan.lanes < 32 && kSeparableGradThreads / plan.lanes * bytes > most_bytes) plan.lanes *= 2;
  const Index elements = kSeparableGradThreads / plan.lanes;
  const bool staged = elements * bytes <= most_bytes;
  plan.length = staged ? static_cast<int>(bytes / value_size) : 0;
  plan.launch = {ceil_div<Index>(grid.kernels * grid.count, elements), kSeparableGradThreads,
                 staged ? static_cast<int>(elements * bytes) : 0};
  return plan;
}

// Values of a bump, kept in shared memory or computed anew.
template <typename T, bool kGaussian>
struct Along {
  Bump<T, kGaussian> bump;
  const T* kept;  // or null

  __device__ T value(int cell) const { return kept ? kept[cell] : bump.value(cell); }
  __device__ T with_slopes(int cell, T& by_position, T& by_width) const {
    const T found = value(cell);
    bump.slopes(cell, found, by_position, by_width);
    return found;
  }
};

template <typename T, bool kGaussian>
__global__ void __launch_bounds__(kSeparableGradThreads)
    dcls_separable_backward_kernel(const T* grad, const T* weight, const T* P, const T* SIG, T* weight_grad, T* P_grad,
                                   T* SIG_grad, Grid grid, SeparableBackwardPlan plan, T least_sigma) {
  CONVSWAP_SHARED(memory);
  const int slots = kSeparableGradThreads / plan.lanes;
  const int slot = threadIdx.x / plan.lanes, lane = threadIdx.x % plan.lanes;
  const Index elements = grid.kernels * grid.count;
  const Index wanted = static_cast<Index>(blockIdx.x) * slots + slot;
  const bool exists = wanted < elements;
  const Index element = exists ? wanted : elements - 1;  // of the last block, to keep its warps whole

  T* kept = plan.length ? reinterpret_cast<T*>(memory) + slot * plan.length : nullptr;
  const auto along = [&](int axis) {
    const auto bump = bump_of<T, kGaussian>(P, SIG, grid, element, axis, least_sigma);
    T* vector = kept ? kept + vector_start(grid, axis) : nullptr;
    for (int t = lane; kept && t < grid.size[axis]; t += plan.lanes) vector[t] = bump.value(t);
    return Along<T, kGaussian>{bump, vector};
  };
  const Along<T, kGaussian> a = along(0), b = along(1), c = along(2);
  __syncthreads();

  // The gradient against the element as it is drawn, and with the derivative of one axis in the place of its bump.
  T drawn = 0, moved[3] = {0, 0, 0}, widened[3] = {0, 0, 0};
  const T* from = grad + element / grid.count * grid.cells;
  const int rows = grid.size[0] * grid.size[1];
  for (int row = lane; row < rows; row += plan.lanes) {
    T line = 0, line_moved = 0, line_widened = 0;
    for (int x = 0; x < grid.size[2]; ++x) {
      const T g = from[row * grid.size[2] + x];
      T by_position, by_width;
      line += g * c.with_slopes(x, by_position, by_width);
      line_moved += g * by_position;
      line_widened += g * by_width;
    }
    T a_moved, a_widened, b_moved, b_widened;
    const T of_a = a.with_slopes(row / grid.size[1], a_moved, a_widened);
    const T of_b = b.with_slopes(row % grid.size[1], b_moved, b_widened);
    drawn += of_a * of_b * line;
    moved[0] += a_moved * of_b * line;
    widened[0] += a_widened * of_b * line;
    moved[1] += of_a * b_moved * line;
    widened[1] += of_a * b_widened * line;
    moved[2] += of_a * of_b * line_moved;
    widened[2] += of_a * of_b * line_widened;
  }

  T sum[3], sum_moved[3], sum_widened[3];
  const auto add_up = [&](int axis, const Along<T, kGaussian>& along) {
    T value = 0, by_position = 0, by_width = 0;
    for (int t = lane; t < grid.size[axis]; t += plan.lanes) {
      T one_moved, one_widened;
      value += along.with_slopes(t, one_moved, one_widened);
      by_position += one_moved;
      by_width += one_widened;
    }
    sum[axis] = sum_over_lanes(value, plan.lanes);
    sum_moved[axis] = sum_over_lanes(by_position, plan.lanes);
    sum_widened[axis] = sum_over_lanes(by_width, plan.lanes);
    moved[axis] = sum_over_lanes(moved[axis], plan.lanes);
    widened[axis] = sum_over_lanes(widened[axis], plan.lanes);
  };
  add_up(0, a);
  add_up(1, b);
  add_up(2, c);
  drawn = sum_over_lanes(drawn, plan.lanes);

  if (!exists || lane != 0) return;
  const T share = static_cast<T>(1) / normaliser(sum[0] * sum[1] * sum[2], true);
  const T lost = drawn * share;  // what a larger sum takes from the element
  const T scale = weight[element] * share;
  weight_grad[element] = drawn * share;
  CONVSWAP_UNROLL
  for (int axis = 0; axis < 3; ++axis) {
    if (grid.row[axis] < 0) continue;
    const Index at = grid.row[axis] * elements + element;
    const T others = axis == 0 ? sum[1] * sum[2] : axis == 1 ? sum[0] * sum[2] : sum[0] * sum[1];
    P_grad[at] = scale * (moved[axis] - lost * sum_moved[axis] * others);
    const T by_width = scale * (widened[axis] - lost * sum_widened[axis] * others);
    SIG_grad[at] = SIG[at] < static_cast<T>(0) ? -by_width : by_width;
  }
}

}  // namespace convswap
