// The launches that the large depthwise ops are made of. `run(launch, kernel, arguments...)` launches.
#pragma once

#include "large_depthwise_conv2d.cuh"

namespace convswap {

template <typename T, typename Run>
void run_large_depthwise_forward(Run&& run, const Depthwise& d, const T* input, const T* weight, const T* bias,
                                 T* output, int shared_bytes = kSharedBytes) {
  const ImagePlan plan = plan_forward(sizeof(Sum<T>), d, shared_bytes);
  with_rows(plan.rows, [&](auto rows) {
    run(plan.launch, large_depthwise_forward<T, decltype(rows)::value>, input, weight, bias, output, d, plan);
  });
}

template <typename T, typename Run>
void run_large_depthwise_input_grad(Run&& run, const Depthwise& d, const T* grad, const T* weight, T* input_grad,
                                    int shared_bytes = kSharedBytes) {
  const ImagePlan plan = plan_input_grad(sizeof(Sum<T>), d, shared_bytes);
  with_rows(plan.rows, [&](auto rows) {
    run(plan.launch, large_depthwise_input_grad<T, decltype(rows)::value>, grad, weight, input_grad, d, plan);
  });
}

// `scratch(n)` gives room for n of its argument's type, or null for 0.
template <typename T, typename Run, typename Scratch>
void run_large_depthwise_weight_grad(Run&& run, Scratch&& scratch, const Depthwise& d, const T* grad, const T* input,
                                     T* weight_grad, int shared_bytes = kSharedBytes) {
  using S = Sum<T>;
  const WeightPlan plan = plan_weight_grad(sizeof(S), d, shared_bytes);
  const Index elements = d.outputs() * d.kernel_plane();
  S* parts = scratch(plan.splits > 1 ? plan.splits * elements : 0, S(0));
  with_rows(plan.rows, [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    if (plan.splits > 1) {
      run(plan.launch, large_depthwise_weight_grad<T, S, kRows>, grad, input, parts, d, plan);
    } else {
      run(plan.launch, large_depthwise_weight_grad<T, T, kRows>, grad, input, weight_grad, d, plan);
    }
  });
  if (plan.splits > 1) run(plan_sum(elements), large_depthwise_sum<T, S>, parts, weight_grad, elements, plan.splits);
}

}  // namespace convswap
