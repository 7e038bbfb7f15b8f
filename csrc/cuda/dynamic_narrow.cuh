// Convolution with a kernel mixed for each sample, and its gradient to the input, where groups have few rows, as
// depthwise ones: each thread has pixels of its own, and the mixed taps, which all share, lie in shared memory.
#pragma once

#include "dynamic_conv2d.cuh"

namespace convswap {

// Arguments as of dynamic_conv2d.
template <typename T, int kRows, int kPixels>
__global__ void __launch_bounds__(kDynamicThreads, sizeof(T) < 8 ? 3 : 2)
    dynamic_narrow(const T* __restrict__ source, const T* __restrict__ weight, const T* __restrict__ attention,
                   const T* __restrict__ bias, T* __restrict__ result, Dynamic d, DynamicView v, DynamicNarrow p) {
  using S = Sum<T>;
  CONVSWAP_SHARED(memory);
  const int units = kDynamicThreads / p.span, unit = static_cast<int>(threadIdx.x) / p.span;
  const int lane = static_cast<int>(threadIdx.x) % p.span;
  S* mixed = reinterpret_cast<S*>(memory) + unit * (kNarrowChunk * kRows);  // [place][row]
  for (Index n = blockIdx.x; n < p.launch.blocks; n += gridDim.x) {
    const Index number = n * units + unit;
    const bool used = number < p.units;
    Index rest = used ? number : 0;
    const Index tile = rest % p.tiles;
    rest /= p.tiles;
    const int residue = static_cast<int>(rest % p.residues);
    rest /= p.residues;
    const Index sample = rest % p.samples;
    rest /= p.samples;
    const int first_row = static_cast<int>(rest % p.row_tiles) * kRows, group = static_cast<int>(rest / p.row_tiles);
    const DynamicAxis y(d, v, 0, residue / v.residues[1]), x(d, v, 1, residue % v.residues[1]);
    const int depth = used ? v.channels * y.count * x.count : 0;

    DynamicColumn own[kPixels];
    CONVSWAP_UNROLL
    for (int i = 0; i < kPixels; ++i) own[i] = dynamic_column(d, v, y, x, sample, (tile * kPixels + i) * p.span + lane);
    S sum[kRows][kPixels] = {};
    const T* from = source + (sample * d.groups + group) * v.channels * v.source_plane();
    const T* kernels = weight + group * d.outputs * d.output_step + first_row * v.row_step;
    const T* shares = attention + sample * d.kernels;
    DynamicWalk at(v, y, x, 0);
    for (int chunk = 0; chunk < p.chunks; ++chunk) {  // as many for all units: they wait for each other
      const int begin = chunk * kNarrowChunk, count = least(kNarrowChunk, depth - begin);
      __syncthreads();  // the taps before have been used
      for (int i = lane; i < count * kRows; i += p.span) {
        const int row = i % kRows;
        S value = 0;
        if (first_row + row < v.rows) {
          const T* w = kernels + weight_place(d, v, y, x, DynamicWalk(v, y, x, begin + i / kRows)) + row * v.row_step;
          for (int k = 0; k < d.kernels; ++k, w += d.kernel_step) {
            value += static_cast<S>(shares[k]) * static_cast<S>(*w);
          }
        }
        mixed[i] = value;
      }
      __syncthreads();
      for (int i = 0; i < count; ++i, at.next(v, y, x)) {
        const T* plane = from + at.channel * v.source_plane();
        S row[kRows];
        load_run(row, mixed + i * kRows);
        CONVSWAP_UNROLL
        for (int j = 0; j < kPixels; ++j) {
          const int down = own[j].y + at.down * y.move, across = own[j].x + at.across * x.move;
          S seen = 0;
          if (in_image(down, across, v.source)) {
            seen = static_cast<S>(plane[static_cast<Index>(down) * v.source[1] + across]);
          }
          CONVSWAP_UNROLL
          for (int r = 0; r < kRows; ++r) sum[r][j] += row[r] * seen;
        }
      }
    }
    if (!used) continue;
    CONVSWAP_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (first_row + r >= v.rows) break;
      const Index channel = static_cast<Index>(group) * v.rows + first_row + r;
      const S start = bias ? static_cast<S>(bias[sample * d.groups * v.rows + channel]) : S(0);
      CONVSWAP_UNROLL
      for (int j = 0; j < kPixels; ++j) {
        if (own[j].result < 0) continue;
        result[own[j].result + channel * v.result_row_step] = static_cast<T>(sum[r][j] + start);
      }
    }
  }
}

}  // namespace convswap
