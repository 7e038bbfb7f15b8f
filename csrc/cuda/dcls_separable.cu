// The ops that draw DCLS kernels as outer products: checks, memory and launches.
#include "dcls_arguments.h"

#include "dcls_separable.cuh"
#include "dcls_separable_backward.cuh"

namespace convswap {
namespace {

Tensor separable(const Tensor& weight, const Tensor& P, const Tensor& SIG, Sizes size, Sizes axes, bool gaussian,
                 double least_sigma) {
  check_grid(weight, P, size, axes);
  check_elements(SIG, "SIG", weight, static_cast<int64_t>(size.size()));
  const OnDevice run(weight);
  const Tensor w = in_order(weight), p = in_order(P), s = in_order(SIG);
  const Tensor kernel = torch::stable::new_empty(w, kernel_shape(w, size));
  if (kernel.numel() == 0) return kernel;
  const Grid grid = make_separable_grid(static_cast<int>(size.size()), size, axes, w.size(0) * w.size(1), w.size(2));
  with_floating(w, [&](auto zero) {
    using T = decltype(zero);
    const SeparablePlan plan = plan_separable(grid, sizeof(T));
    run(plan.launch, gaussian ? dcls_separable_kernel<T, true> : dcls_separable_kernel<T, false>, data<T>(w),
        data<T>(p), data<T>(s), data<T>(kernel), grid, plan, static_cast<T>(least_sigma));
  });
  return kernel;
}

std::tuple<Tensor, Tensor, Tensor> separable_backward(const Tensor& grad, const Tensor& weight, const Tensor& P,
                                                      const Tensor& SIG, Sizes axes, bool gaussian,
                                                      double least_sigma) {
  const Sizes size = kernel_size_of(grad);
  check_grid(weight, P, size, axes);
  check_elements(SIG, "SIG", weight, static_cast<int64_t>(size.size()));
  check_kernel_grad(grad, weight);
  const OnDevice run(weight);
  const Tensor g = in_order(grad), w = in_order(weight), p = in_order(P), s = in_order(SIG);
  const Tensor weight_grad = torch::stable::empty_like(w), P_grad = torch::stable::empty_like(p),
               SIG_grad = torch::stable::empty_like(s);
  const Grid grid = make_separable_grid(static_cast<int>(size.size()), size, axes, w.size(0) * w.size(1), w.size(2));
  with_floating(w, [&](auto zero) {
    using T = decltype(zero);
    const SeparableBackwardPlan plan = plan_separable_backward(grid, sizeof(T));
    run(plan.launch, gaussian ? dcls_separable_backward_kernel<T, true> : dcls_separable_backward_kernel<T, false>,
        data<T>(g), data<T>(w), data<T>(p), data<T>(s), data<T>(weight_grad), data<T>(P_grad), data<T>(SIG_grad), grid,
        plan, static_cast<T>(least_sigma));
  });
  return {weight_grad, P_grad, SIG_grad};
}

}  // namespace
}  // namespace convswap

CONVSWAP_LIBRARY(m) {
  m.impl("dcls_separable", TORCH_BOX(&convswap::separable));
  m.impl("dcls_separable_backward", TORCH_BOX(&convswap::separable_backward));
}
