// The launches that the guided ops are made of. `run(launch, kernel, arguments...)` launches. kMost: outputs, or inputs
// for their gradient, that a thread has at most, 1 where they share nothing.
#pragma once

#include "guided_conv2d.cuh"
#include "guided_input_grad.cuh"

namespace convswap {

// Whether vectors of so many bytes can be read and written there.
inline bool aligned(const void* a, const void* b, int bytes) {
  return (reinterpret_cast<unsigned long long>(a) | reinterpret_cast<unsigned long long>(b)) % bytes == 0;
}

// The kernels of a plan differ by these.
template <int kPixels, bool kWindow, bool kThree, int kBlock>
struct GuidedForm {
  static constexpr int pixels = kPixels, block = kBlock;
  static constexpr bool window = kWindow, three = kThree;
};

template <int kPixels, int kBlock, typename Function>
void with_guided_pixels(const GuidedPixels& plan, Function&& f) {
  if (plan.three) return f(GuidedForm<kPixels, true, true, kBlock>{});
  if (plan.window) return f(GuidedForm<kPixels, true, false, kBlock>{});
  if (plan.pixels > 1) return f(GuidedForm<kPixels, false, false, kBlock>{});
  f(GuidedForm<1, false, false, kBlock>{});
}

template <typename T, int kMost, typename Function>
void with_guided_form(const Guided& d, const void* kernels, const void* images, Index enough, Function&& f) {
  constexpr int kPixels = kGuidedPixels<T>;
  const bool vectors = aligned(kernels, images, kPixels * static_cast<int>(sizeof(T)));
  const GuidedPixels plan = plan_guided_pixels(d, vectors ? kPixels : 1, kMost, enough);
  const auto call = [&](auto form) { f(plan, form); };
  if (plan.block == kMost) return with_guided_pixels<kPixels, kMost>(plan, call);
  with_guided_pixels<kPixels, 1>(plan, call);
}

template <typename T, int kMost, typename Run>
void run_guided_forward(Run&& run, const Guided& d, const T* input, const T* weight, const T* bias, T* output,
                        Index enough = kGuidedFull) {
  with_guided_form<T, kMost>(d, weight, output, enough, [&](const GuidedPixels& plan, auto form) {
    using Form = decltype(form);
    run(plan.launch, guided_forward<T, Form::pixels, Form::window, Form::three, Form::block>, input, weight, bias,
        output, d, plan);
  });
}

template <typename T, int kMost, typename Run>
void run_guided_weight_grad(Run&& run, const Guided& d, const T* grad, const T* input, T* weight_grad,
                            Index enough = kGuidedFull) {
  with_guided_form<T, kMost>(d, weight_grad, grad, enough, [&](const GuidedPixels& plan, auto form) {
    using Form = decltype(form);
    run(plan.launch, guided_weight_grad<T, Form::pixels, Form::window, Form::block>, grad, input, weight_grad, d, plan);
  });
}

template <typename T, int kMost, typename Run>
void run_guided_input_grad(Run&& run, const Guided& d, const T* grad, const T* weight, T* input_grad,
                           Index enough = kGuidedFull) {
  const GuidedReach plan = plan_guided_reach(d, kMost, enough);
  const auto launch = [&](auto kernel) { run(plan.launch, kernel, grad, weight, input_grad, d, plan); };
  const auto with_block = [&](auto block) {
    constexpr int kBlock = decltype(block)::block;
    if (plan.three) return launch(guided_input_grad<T, true, true, kBlock>);
    if (plan.window) return launch(guided_input_grad<T, true, false, kBlock>);
    launch(guided_input_grad<T, false, false, kBlock>);
  };
  if (plan.block == kMost) return with_block(GuidedForm<1, false, false, kMost>{});
  with_block(GuidedForm<1, false, false, 1>{});
}

}  // namespace convswap
