// Convolution with generated kernels, and its gradient to them: threads over the pixels of the output.
#pragma once

#include "guided_memory.cuh"

namespace convswap {

// What a thread of a pixel plan has.
template <int kPixels, bool kWindow>
struct GuidedItem {
  Index pixel;  // its first one in a plane of the output
  int output;   // its first one in the group
  int group;
  Index sample;
  Corners<kPixels, kWindow> corners;

  __device__ GuidedItem(const Guided& d, const GuidedPixels& p, Index number) {
    if (p.items >> 31) {
      decode(d, p, number);
    } else {
      decode(d, p, static_cast<unsigned>(number));
    }
  }

  template <typename Number>
  CONVSWAP_INLINE __device__ void decode(const Guided& d, const GuidedPixels& p, Number item) {
    const Number first = static_cast<Number>(p.vectors.take(item)) * kPixels;
    pixel = first;
    output = static_cast<int>(p.blocks.take(item)) * p.block;
    group = static_cast<int>(p.groups.take(item));
    sample = item;
    CONVSWAP_UNROLL
    for (int i = 0; i < (kWindow ? 1 : kPixels); ++i) {
      Number row = first + i;
      const int column = static_cast<int>(p.columns.take(row));
      corners.y[i] = static_cast<int>(row) * d.stride[0] - d.before[0];
      corners.x[i] = column * d.stride[1] - d.before[1];
    }
  }

  __device__ int first_output(const Guided& d) const { return group * d.outputs + output; }

  // Where the kernels lie of the first tap of the group's first input.
  __device__ Index weights(const Guided& d) const {
    return sample * d.sample_step + first_output(d) * d.output_step + pixel;
  }
};

// output (batch, groups outputs, *out) from input (batch, groups inputs, *size), the kernels and bias (batch, groups
// outputs) or null.
template <typename T, int kPixels, bool kWindow, bool kThree, int kBlock>
__global__ void __launch_bounds__(kGuidedThreads, kThree && kBlock == 1 && sizeof(T) < 8 ? 7 : 1)
    guided_forward(const T* __restrict__ input, const T* __restrict__ weight, const T* __restrict__ bias,
                   T* __restrict__ output, Guided d, GuidedPixels p) {
  using S = Sum<T>;
  constexpr int kRows = kBlock == 1 ? 3 : 1;  // of the kernel that are in flight together
  const int height = kThree ? 3 : d.kernel[0], width = kThree ? 3 : d.kernel[1];
  const Index plane = d.output_plane();
  for (Index n = blockIdx.x; n < p.launch.blocks; n += gridDim.x) {
    const Index number = n * kGuidedThreads + threadIdx.x;
    if (number >= p.items) break;
    const GuidedItem<kPixels, kWindow> item(d, p, number);
    const T* x = input + (item.sample * d.channels() + static_cast<Index>(item.group) * d.inputs) * d.input_plane();
    const T* w = weight + item.weights(d);
    S sum[kBlock][kPixels] = {};
    for (int i = 0; i < d.inputs; ++i, x += d.input_plane(), w += d.input_step) {
      for (int ky = 0; ky < height; ky += kRows) {
        for (int kx = 0; kx < width; kx += kGuidedTaps) {
          // The compiler puts off loads until their use, to save registers, so that one waits for the other; but not
          // those on a condition, as even a 3x3 kernel's number of rows is here.
          const int rows = least(kRows, d.kernel[0] - ky), count = least(kGuidedTaps, width - kx);
          Pixels<T, kPixels> taps[kRows][kGuidedTaps][kBlock];
          const T* row = w + (static_cast<Index>(ky) * width + kx) * d.tap_step;
          CONVSWAP_UNROLL
          for (int r = 0; r < kRows; ++r, advance(row, width * d.tap_step)) {
            const T* from = row;
            CONVSWAP_UNROLL
            for (int t = 0; t < kGuidedTaps; ++t, advance(from, d.tap_step)) {
              CONVSWAP_UNROLL
              for (int o = 0; o < kBlock; ++o) {
                const bool used = r < rows && t < count && (kBlock == 1 || item.output + o < d.outputs);
                if (kBlock > 1) taps[r][t][o] = {};
                if (used) taps[r][t][o] = load_once<T, kPixels>(from + o * d.output_step);
              }
            }
          }
          CONVSWAP_UNROLL
          for (int r = 0; r < kRows; ++r) {
            if (r >= rows) break;
            Seen<T, kPixels, kWindow> seen;
            const int down = (ky + r) * d.dilation[0], apart = kWindow ? 1 : d.dilation[1];
            seen.load(x, d.size, item.corners, down, kx * apart, apart, count);
            CONVSWAP_UNROLL
            for (int t = 0; t < kGuidedTaps; ++t) {
              if (t >= count) break;
              CONVSWAP_UNROLL
              for (int o = 0; o < kBlock; ++o) {
                CONVSWAP_UNROLL
                for (int v = 0; v < kPixels; ++v) sum[o][v] += static_cast<S>(taps[r][t][o].v[v]) * seen.at(t, v);
              }
            }
          }
        }
      }
    }
    const Index first = item.sample * d.all_outputs() + item.first_output(d);
    CONVSWAP_UNROLL
    for (int o = 0; o < kBlock; ++o) {
      if (item.output + o >= d.outputs) break;
      const S start = bias ? static_cast<S>(bias[first + o]) : S(0);
      Pixels<T, kPixels> result;
      CONVSWAP_UNROLL
      for (int v = 0; v < kPixels; ++v) result.v[v] = static_cast<T>(sum[o][v] + start);
      store_once<T, kPixels>(output + (first + o) * plane + item.pixel, result);
    }
  }
}

// weight_grad, laid out as the kernels, from grad (batch, groups outputs, *out) and input. Nothing is summed.
template <typename T, int kPixels, bool kWindow, int kBlock>
__global__ void __launch_bounds__(kGuidedThreads)
    guided_weight_grad(const T* __restrict__ grad, const T* __restrict__ input, T* __restrict__ weight_grad, Guided d,
                       GuidedPixels p) {
  using S = Sum<T>;
  const Index plane = d.output_plane();
  for (Index n = blockIdx.x; n < p.launch.blocks; n += gridDim.x) {
    const Index number = n * kGuidedThreads + threadIdx.x;
    if (number >= p.items) break;
    const GuidedItem<kPixels, kWindow> item(d, p, number);
    const T* x = input + (item.sample * d.channels() + static_cast<Index>(item.group) * d.inputs) * d.input_plane();
    const T* grads = grad + (item.sample * d.all_outputs() + item.first_output(d)) * plane + item.pixel;
    T* w = weight_grad + item.weights(d);
    Pixels<T, kPixels> own[kBlock];
    CONVSWAP_UNROLL
    for (int o = 0; o < kBlock; ++o) {
      own[o] = {};
      if (item.output + o < d.outputs) own[o] = *reinterpret_cast<const Pixels<T, kPixels>*>(grads + o * plane);
    }
    for (int i = 0; i < d.inputs; ++i, x += d.input_plane(), w += d.input_step) {
      for (int ky = 0; ky < d.kernel[0]; ++ky) {
        for (int kx = 0; kx < d.kernel[1]; kx += kGuidedTaps) {
          const int count = least(kGuidedTaps, d.kernel[1] - kx);
          Seen<T, kPixels, kWindow> seen;
          const int apart = kWindow ? 1 : d.dilation[1];
          seen.load(x, d.size, item.corners, ky * d.dilation[0], kx * apart, apart, count);
          T* to = w + (static_cast<Index>(ky) * d.kernel[1] + kx) * d.tap_step;
          CONVSWAP_UNROLL
          for (int t = 0; t < kGuidedTaps; ++t, advance(to, d.tap_step)) {
            if (t >= count) break;
            CONVSWAP_UNROLL
            for (int o = 0; o < kBlock; ++o) {
              if (item.output + o >= d.outputs) break;
              Pixels<T, kPixels> result;
              CONVSWAP_UNROLL
              for (int v = 0; v < kPixels; ++v) {
                result.v[v] = static_cast<T>(static_cast<S>(own[o].v[v]) * seen.at(t, v));
              }
              store_once<T, kPixels>(to + o * d.output_step, result);
            }
          }
        }
      }
    }
  }
}

}  // namespace convswap
