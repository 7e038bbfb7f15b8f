// The launches that the ops of DCLS' sparse path are made of. `run(launch, kernel, arguments...)` launches, on a GPU or
// in the emulation. Device code without host includes.
#pragma once

#include "dcls_sparse_conv2d.cuh"
#include "dcls_sparse_kernel_grad.cuh"

namespace convswap {

// A depthwise convolution with a DCLS kernel; pairs are height and width.
struct SparseShape {
  Index batch, channels;
  int multiplier;  // outputs of a channel
  int size[2], out[2], stride[2], before[2];
  Grid grid;  // of kernels for channels * multiplier outputs
  bool normalise, right_slope;

  // Of a single output the stride says nothing, but has as many phases.
  int step(int axis) const { return out[axis] > 1 ? stride[axis] : 1; }
  int kernel(int axis) const { return grid.size[1 + axis]; }
  SparseAxis output_axis(int axis) const {
    return convswap::output_axis(size[axis], out[axis], kernel(axis), step(axis), before[axis]);
  }
  SparseAxis input_grad_axis(int axis) const {
    return convswap::input_grad_axis(size[axis], out[axis], kernel(axis), step(axis), before[axis]);
  }
};

// Sizes of an op's scratch, in numbers.
struct SparseScratch {
  Index ints;     // of tap lists
  Index values;   // of tap lists, or sums of parts and then the kernels' gradient; in the type of sums
};

inline SparseScratch sparse_scratch(Taps which, const SparseShape& shape) {
  const Index taps = shape.grid.kernels * tap_capacity(which, shape.grid);
  return {tap_ints(which, shape.grid, shape.step(0), shape.step(1)), taps};
}

template <typename T, typename Run>
TapLists<Sum<T>> list_taps(const Run& run, Taps which, const SparseShape& shape, const Sum<T>* weight, const Sum<T>* P,
                           int* ints, Sum<T>* values) {
  using S = Sum<T>;
  const TapLists<S> lists = tap_lists<S>(which, shape.grid, shape.step(0), shape.step(1), ints, values);
  run(tap_launch(shape.grid, sizeof(S)), dcls_list_taps<S>, weight, P, lists, shape.grid, which, shape.normalise,
      shape.right_slope);
  return lists;
}

template <typename T, typename Run>
void sparse_forward(const Run& run, const SparseShape& shape, const T* input, SparseImages input_at,
                    const Sum<T>* weight, const Sum<T>* P, T* out, SparseImages out_at, int* ints, Sum<T>* values,
                    int plane_bytes = kPlaneBytes) {
  const TapLists<Sum<T>> lists = list_taps<T>(run, Taps::kDrawn, shape, weight, P, ints, values);
  SparseGather gather{shape.output_axis(0), shape.output_axis(1), input_at, out_at, shape.batch,
                      shape.channels * shape.multiplier, 1, shape.multiplier, {}, {}};
  plan_gather(gather, sizeof(Sum<T>), plane_bytes);
  run(gather.launch, dcls_sparse_gather<T>, input, lists, out, gather);
}

template <typename T, typename Run>
void sparse_input_grad(const Run& run, const SparseShape& shape, const T* grad, SparseImages grad_at,
                       const Sum<T>* weight, const Sum<T>* P, T* input_grad, SparseImages input_at, int* ints,
                       Sum<T>* values, int plane_bytes = kPlaneBytes) {
  const TapLists<Sum<T>> lists = list_taps<T>(run, Taps::kMirrored, shape, weight, P, ints, values);
  SparseGather gather{shape.input_grad_axis(0), shape.input_grad_axis(1), grad_at, input_at, shape.batch,
                      shape.channels, shape.multiplier, 1, {}, {}};
  plan_gather(gather, sizeof(Sum<T>), plane_bytes);
  run(gather.launch, dcls_sparse_gather<T>, grad, lists, input_grad, gather);
}

// Fills in all but the pointers; its `parts` and the capacity of kTouched tell how large `partial` is.
template <typename T>
SparseKernelGrad sparse_kernel_grad_plan(const SparseShape& shape, SparseImages grad_at, SparseImages input_at,
                                         int plane_bytes = kPlaneBytes) {
  SparseKernelGrad plan{shape.output_axis(0), shape.output_axis(1), input_at, grad_at, shape.batch,
                        shape.channels * shape.multiplier, shape.multiplier, 0, {}, {}};
  plan_kernel_grad(plan, sizeof(Sum<T>), plane_bytes);
  return plan;
}

// `partial` holds kernels * parts * capacity numbers, `kernel_grad` one for each cell of the kernels.
template <typename T, typename Run>
void sparse_kernel_grad(const Run& run, const SparseShape& shape, const SparseKernelGrad& plan, const T* grad,
                        const T* input, const Sum<T>* weight, const Sum<T>* P, Sum<T>* weight_grad, Sum<T>* P_grad,
                        int* ints, Sum<T>* partial, Sum<T>* kernel_grad) {
  using S = Sum<T>;
  const TapLists<S> lists = list_taps<T>(run, Taps::kTouched, shape, weight, P, ints, static_cast<S*>(nullptr));
  run(plan.launch, dcls_sparse_kernel_grad_parts<T>, input, grad, lists, partial, plan);
  run(sum_parts_launch(shape.grid.kernels, lists.capacity), dcls_sum_parts<S>, static_cast<const S*>(partial), lists,
      kernel_grad, shape.grid, plan.parts);
  run(scatter_backward_launch(shape.grid), dcls_scatter_backward_kernel<S>, static_cast<const S*>(kernel_grad), weight,
      P, weight_grad, P_grad, shape.grid, shape.normalise, shape.right_slope);
}

}  // namespace convswap
