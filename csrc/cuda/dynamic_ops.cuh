// The launches that the dynamic ops are made of. `run(launch, kernel, arguments...)` launches; `scratch(n, zero)` gives
// room for n numbers of the type of zero. enough: blocks that keep a GPU busy.
#pragma once

#include "dynamic_narrow.cuh"
#include "dynamic_sums.cuh"
#include "dynamic_weight_grad.cuh"

namespace convswap {

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

template <typename T, int kRows, int kSamples, typename Run, typename Scratch>
void run_dynamic_tiles(Run&& run, Scratch&& scratch, const Dynamic& d, const DynamicView& v, const T* source,
                       const T* weight, const T* attention, const T* bias, T* result, Index enough) {
  using S = Sum<T>;
  using Block = DynamicBlock<T, kRows, kSamples>;
  DynamicTiles p = plan_dynamic_tiles(d, v, kRows, Block::columns, Block::depth, kSamples, enough);
  p.launch.shared_bytes = Block::shared_bytes;
  const Index channels = static_cast<Index>(d.groups) * v.rows, numbers = d.batch * channels * v.result_plane();
  S* parts = p.splits > 1 ? scratch(p.splits * numbers, S(0)) : nullptr;
  run(p.launch, dynamic_conv2d<T, kRows, kSamples>, source, weight, attention, bias, result, parts, d, v, p);
  if (p.splits == 1) return;
  const Launch launch = plan_dynamic_sum(numbers);
  const bool last = v.result_row_step == 1;
  run(launch, dynamic_sum<T>, static_cast<const S*>(parts), bias, result, numbers, p.splits, channels,
      last ? Index{1} : v.result_plane(), last ? v.result_plane() : Index{1}, launch);
}

template <typename T, int kRows, int kPixels, typename Run>
void run_dynamic_narrow(Run&& run, const Dynamic& d, const DynamicView& v, const T* source, const T* weight,
                        const T* attention, const T* bias, T* result) {
  const DynamicNarrow p = plan_dynamic_narrow(d, v, kRows, kPixels, sizeof(Sum<T>));
  run(p.launch, dynamic_narrow<T, kRows, kPixels>, source, weight, attention, bias, result, d, v, p);
}

// The convolution, or the gradient to the input; bias may be null.
template <typename T, typename Run, typename Scratch>
void run_dynamic_conv2d(Run&& run, Scratch&& scratch, const Dynamic& d, const DynamicView& v, const T* source,
                        const T* weight, const T* attention, const T* bias, T* result, Index enough = kDynamicFull) {
  if (v.rows == 1) return run_dynamic_narrow<T, 1, 4>(run, d, v, source, weight, attention, bias, result);
  if (v.rows <= kDynamicNarrow) return run_dynamic_narrow<T, 4, 2>(run, d, v, source, weight, attention, bias, result);
  const auto tiles = [&](auto rows, auto samples) {
    run_dynamic_tiles<T, decltype(rows)::value, decltype(samples)::value>(run, scratch, d, v, source, weight, attention,
                                                                          bias, result, enough);
  };
  if constexpr (sizeof(T) < 8) {  // few compute in double precision: one form does for them
    if (v.rows <= 32) return tiles(Count<16>{}, Count<1>{});
    if (shares_tile(v, d.batch, DynamicForm<T>::columns, 4)) return tiles(Count<64>{}, Count<4>{});
  }
  tiles(Count<64>{}, Count<1>{});
}

template <typename T, typename Run, typename Scratch>
void run_dynamic_weight_grad(Run&& run, Scratch&& scratch, const Dynamic& d, const T* grad, const T* input,
                             const T* weight, const T* attention, T* weight_grad, T* attention_grad,
                             Index enough = kDynamicFull) {
  using S = Sum<T>;
  const auto with = [&](DynamicGrad p, int shared_bytes, auto kernel) {
    p.launch.shared_bytes = shared_bytes;
    const Index numbers = d.kernels * d.kernel_step;
    S* parts = scratch(p.items * p.units * d.kernels, S(0));
    S* sums = p.splits > 1 ? scratch(p.splits * numbers, S(0)) : nullptr;
    run(p.launch, kernel, grad, input, weight, attention, weight_grad, sums, parts, d, p);
    if (p.splits > 1) {
      const Launch launch = plan_dynamic_sum(numbers);
      const T* none = nullptr;
      run(launch, dynamic_sum<T>, static_cast<const S*>(sums), none, weight_grad, numbers, p.splits, Index{1}, Index{1},
          Index{1}, launch);
    }
    const Launch launch = plan_attention_sum<T>(d.batch * d.kernels);
    run(launch, dynamic_attention_sum<T>, static_cast<const S*>(parts), attention_grad, p.chunks * p.units, d.kernels,
        launch);
  };
  const auto tiles = [&](auto form) {
    using Block = decltype(form);
    constexpr int kRows = Block::rows, kColumns = Block::columns;
    with(plan_dynamic_grad(d, kRows, kColumns, kDynamicKernels<T>, Block::depth, 1, enough), Block::shared_bytes,
         dynamic_weight_grad<T, kRows, kColumns>);
  };
  if (d.outputs <= kDynamicNarrow) {
    return with(plan_dynamic_grad(d, 1, kNarrowTaps, kDynamicKernels<T>, 32, kDynamicWarps, enough), 0,
                dynamic_narrow_grad<T>);
  }
  if constexpr (sizeof(T) < 8) {
    if (d.outputs <= 32) return tiles(DynamicGradBlock<T, 16, 128>{});
  }
  tiles(DynamicGradBlock<T, 64, 64>{});
}

}  // namespace convswap
