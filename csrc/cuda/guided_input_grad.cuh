// The gradient of a convolution with generated kernels to its input: each pixel gathers what outputs give to it.
#pragma once

#include "guided_memory.cuh"

namespace convswap {

// One axis, for the pixels v stride + residue: output v + first + i move gives to them through tap last - i step, for
// all i < count.
struct GuidedTaps {
  int last, count, first;

  __device__ GuidedTaps(int residue, int before, int kernel, int stride, int dilation, int step) {
    const int place = residue + before;
    int tap = 0;
    while (tap < least(step, kernel) && (place - tap * dilation) % stride != 0) ++tap;
    count = tap < least(step, kernel) ? (kernel - 1 - tap) / step + 1 : 0;
    last = tap + (count - 1) * step;
    first = count ? (place - last * dilation) / stride : 0;
  }

  // Of kernels that reach every pixel with all 3 taps.
  __device__ explicit GuidedTaps(int before) : last(2), count(3), first(before - 2) {}
};

// What a thread has of the input.
struct GuidedPair {
  int row, column, top, left;  // pixels (row stride + top, column stride + left), and of the next column
  int input, group;            // the first one in the group
  Index sample;

  __device__ GuidedPair(const GuidedReach& p, Index number) {
    if (p.items >> 31) {
      decode(p, number);
    } else {
      decode(p, static_cast<unsigned>(number));
    }
  }

  template <typename Number>
  CONVSWAP_INLINE __device__ void decode(const GuidedReach& p, Number item) {
    column = static_cast<int>(p.pairs.take(item)) * kGuidedPair;
    row = static_cast<int>(p.rows.take(item));
    left = static_cast<int>(p.residues[1].take(item));
    top = static_cast<int>(p.residues[0].take(item));
    input = static_cast<int>(p.blocks.take(item)) * p.block;
    group = static_cast<int>(p.groups.take(item));
    sample = item;
  }
};

// input_grad (batch, groups inputs, *size) from grad (batch, groups outputs, *out) and the kernels.
template <typename T, bool kWindow, bool kThree, int kBlock>
__global__ void __launch_bounds__(kGuidedThreads)
    guided_input_grad(const T* __restrict__ grad, const T* __restrict__ weight, T* __restrict__ input_grad, Guided d,
                      GuidedReach p) {
  using S = Sum<T>;
  constexpr int kRows = kBlock == 1 ? 3 : 1;  // of taps that are in flight together
  const Index plane = d.output_plane();
  for (Index n = blockIdx.x; n < p.launch.blocks; n += gridDim.x) {
    const Index number = n * kGuidedThreads + threadIdx.x;
    if (number >= p.items) break;
    const GuidedPair own(p, number);
    const Index row = static_cast<Index>(own.row) * d.stride[0] + own.top;
    if (row >= d.size[0]) continue;
    GuidedTaps down(d.before[0]), across(d.before[1]);
    if (!kThree) {
      down = {own.top, d.before[0], d.kernel[0], d.stride[0], d.dilation[0], p.step[0]};
      across = {own.left, d.before[1], d.kernel[1], d.stride[1], d.dilation[1], p.step[1]};
    }
    const int step[2] = {kThree ? 1 : p.step[0], kThree ? 1 : p.step[1]};
    const int move[2] = {kThree ? 1 : p.move[0], kWindow ? 1 : p.move[1]};
    Corners<kGuidedPair, kWindow> corners;
    CONVSWAP_UNROLL
    for (int v = 0; v < (kWindow ? 1 : kGuidedPair); ++v) {
      corners.y[v] = own.row + down.first;
      corners.x[v] = own.column + v + across.first;
    }
    S sum[kBlock][kGuidedPair] = {};
    const T* g = grad + (own.sample * d.all_outputs() + own.group * d.outputs) * plane;
    // The kernels' number for the first tap lies here, and each next one further on by a tap and a move in the output.
    const T* w = weight + (own.sample * d.sample_step + own.input * d.input_step +
                           own.group * d.outputs * d.output_step + down.last * (d.tap_step * d.kernel[1]) +
                           across.last * d.tap_step + static_cast<Index>(corners.y[0]) * d.out[1] + corners.x[0]);
    const Index next_row = static_cast<Index>(move[0]) * d.out[1] - step[0] * (d.tap_step * d.kernel[1]);
    const Index next_tap = move[1] - step[1] * d.tap_step;
    for (int o = 0; o < d.outputs; ++o, g += plane, w += d.output_step) {
      for (int i = 0; i < down.count; i += kRows) {
        for (int j = 0; j < across.count; j += kGuidedTaps) {
          const int rows = least(kRows, down.count - i), count = least(kGuidedTaps, across.count - j);
          T taps[kRows][kGuidedTaps][kBlock][kGuidedPair];
          const T* row_at = w + (i * next_row + j * next_tap);
          CONVSWAP_UNROLL
          for (int r = 0; r < kRows; ++r, advance(row_at, next_row)) {
            const T* from = row_at;
            const int y = corners.y[0] + (i + r) * move[0];
            CONVSWAP_UNROLL
            for (int t = 0; t < kGuidedTaps; ++t, advance(from, next_tap)) {
              const int x = corners.x[0] + (j + t) * move[1];
              CONVSWAP_UNROLL
              for (int v = 0; v < kGuidedPair; ++v) {
                const bool used = r < rows && t < count && in_image(y, x + v, d.out);
                CONVSWAP_UNROLL
                for (int c = 0; c < kBlock; ++c) {
                  taps[r][t][c][v] = {};
                  if (used && (kBlock == 1 || own.input + c < d.inputs)) {
                    taps[r][t][c][v] = load_number(from + c * d.input_step + v);
                  }
                }
              }
            }
          }
          CONVSWAP_UNROLL
          for (int r = 0; r < kRows; ++r) {
            if (r >= (kThree ? d.kernel[0] : down.count) - i) break;  // keeps loads together, as in guided_forward
            Seen<T, kGuidedPair, kWindow> seen;
            seen.load(g, d.out, corners, (i + r) * move[0], j * move[1], move[1], count);
            CONVSWAP_UNROLL
            for (int t = 0; t < kGuidedTaps; ++t) {
              if (t >= count) break;
              CONVSWAP_UNROLL
              for (int c = 0; c < kBlock; ++c) {
                CONVSWAP_UNROLL
                for (int v = 0; v < kGuidedPair; ++v) {
                  sum[c][v] += static_cast<S>(taps[r][t][c][v]) * seen.at(t, v);
                }
              }
            }
          }
        }
      }
    }
    T* out = input_grad +
             (own.sample * d.channels() + static_cast<Index>(own.group) * d.inputs + own.input) * d.input_plane() +
             row * d.size[1];
    CONVSWAP_UNROLL
    for (int c = 0; c < kBlock; ++c, out += d.input_plane()) {
      if (own.input + c >= d.inputs) break;
      CONVSWAP_UNROLL
      for (int v = 0; v < kGuidedPair; ++v) {
        const Index column = static_cast<Index>(own.column + v) * d.stride[1] + own.left;
        if (column < d.size[1]) out[column] = static_cast<T>(sum[c][v]);
      }
    }
  }
}

}  // namespace convswap
