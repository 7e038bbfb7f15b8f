// The ops that draw DCLS kernels as triangles: checks, memory and launches.
#include "dcls_arguments.h"

#include "dcls_scatter.cuh"

namespace convswap {
namespace {

Tensor scatter(const Tensor& weight, const Tensor& P, Sizes size, Sizes axes, bool normalise, bool) {
  check_grid(weight, P, size, axes);
  const OnDevice run(weight);
  const Tensor w = in_order(weight), p = in_order(P);
  const Tensor kernel = torch::stable::new_empty(w, kernel_shape(w, size));
  if (kernel.numel() == 0) return kernel;
  const Grid grid = make_grid(static_cast<int>(size.size()), size, axes, w.size(0) * w.size(1), w.size(2));
  with_floating(w, [&](auto zero) {
    using T = decltype(zero);
    const ScatterPlan plan = plan_scatter(grid, sizeof(T));
    run(plan.launch, dcls_scatter_kernel<T>, data<T>(w), data<T>(p), data<T>(kernel), grid, plan, normalise);
  });
  return kernel;
}

std::tuple<Tensor, Tensor> scatter_backward(const Tensor& grad, const Tensor& weight, const Tensor& P, Sizes axes,
                                            bool normalise, bool right_slope) {
  const Sizes size = kernel_size_of(grad);
  check_grid(weight, P, size, axes);
  check_kernel_grad(grad, weight);
  const OnDevice run(weight);
  const Tensor g = in_order(grad), w = in_order(weight), p = in_order(P);
  const Tensor weight_grad = torch::stable::empty_like(w), P_grad = torch::stable::empty_like(p);
  const Grid grid = make_grid(static_cast<int>(size.size()), size, axes, w.size(0) * w.size(1), w.size(2));
  with_floating(w, [&](auto zero) {
    using T = decltype(zero);
    run(scatter_backward_launch(grid), dcls_scatter_backward_kernel<T>, data<T>(g), data<T>(w), data<T>(p),
        data<T>(weight_grad), data<T>(P_grad), grid, normalise, right_slope);
  });
  return {weight_grad, P_grad};
}

}  // namespace
}  // namespace convswap

CONVSWAP_LIBRARY(m) {
  m.impl("dcls_scatter", TORCH_BOX(&convswap::scatter));
  m.impl("dcls_scatter_backward", TORCH_BOX(&convswap::scatter_backward));
}
