// Second passes of the dynamic ops, over what blocks have summed each for itself, in a fixed order.
#pragma once

#include "dynamic_plan.cuh"

namespace convswap {

inline Launch plan_dynamic_sum(Index numbers) {
  return {ceil_div<Index>(numbers, kDynamicThreads), kDynamicThreads, 0};
}

// sum[i] = parts[0][i] + parts[1][i] + ... + the bias of i's sample and channel, `plane` numbers of which follow each
// other in C order; with the channels last, `plane` is 1 and a sample has `images` times `channels` numbers.
template <typename T>
__global__ void __launch_bounds__(kDynamicThreads)
    dynamic_sum(const Sum<T>* __restrict__ parts, const T* __restrict__ bias, T* __restrict__ sum, Index numbers,
                Index splits, Index channels, Index plane, Index images, Launch launch) {
  for (Index n = blockIdx.x; n < launch.blocks; n += gridDim.x) {
    const Index i = n * kDynamicThreads + threadIdx.x;
    if (i >= numbers) break;
    Sum<T> total = 0;
    for (Index split = 0; split < splits; ++split) total += parts[split * numbers + i];
    if (bias) {
      const Index channel = i / plane % channels, sample = i / plane / channels / images;
      total += static_cast<Sum<T>>(bias[sample * channels + channel]);
    }
    sum[i] = static_cast<T>(total);
  }
}

// attention_grad (batch, kernels) from parts (batch, count, kernels). A block sums one number.
template <typename T>
__global__ void __launch_bounds__(kDynamicThreads)
    dynamic_attention_sum(const Sum<T>* __restrict__ parts, T* __restrict__ attention_grad, Index count, int kernels,
                          Launch launch) {
  using S = Sum<T>;
  CONVSWAP_SHARED(memory);
  S* totals = reinterpret_cast<S*>(memory);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (Index n = blockIdx.x; n < launch.blocks; n += gridDim.x) {
    const S* from = parts + n / kernels * count * kernels + n % kernels;
    S sum = 0;
    for (Index i = threadIdx.x; i < count; i += kDynamicThreads) sum += from[i * kernels];
    CONVSWAP_UNROLL
    for (int bits = 16; bits; bits /= 2) sum += __shfl_xor_sync(~0u, sum, bits);
    __syncthreads();  // the sums before have been read
    if (lane == 0) totals[warp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      S total = 0;
      for (int i = 0; i < kDynamicWarps; ++i) total += totals[i];
      attention_grad[n] = static_cast<T>(total);
    }
  }
}

template <typename T>
Launch plan_attention_sum(Index numbers) {
  return {numbers, kDynamicThreads, kDynamicWarps * static_cast<int>(sizeof(Sum<T>))};
}

}  // namespace convswap
