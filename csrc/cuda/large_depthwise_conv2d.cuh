// Depthwise convolution with large kernels, and its derivatives, as correlations of tiles in shared memory.
#pragma once

#include "large_depthwise_plan.cuh"

namespace convswap {

// What a thread of a block does: its patch, and in which image or slice; those that are left over do nothing.
struct Patch {
  int column, row, slice;  // in patches

  __device__ Patch(int across, int down)
      : column(threadIdx.x % across), row(threadIdx.x / across % down), slice(threadIdx.x / (across * down)) {}
};

// Block number n of an image plan.
struct ImageBlock {
  int x, y;     // its first patch
  Index first;  // its first image
  int valid;    // how many images there are from there on, at most those of a block
  Index plane;

  __device__ ImageBlock(const ImagePlan& p, Index n, Index batch) {
    x = static_cast<int>(n % p.tiles[1]) * p.across;
    n /= p.tiles[1];
    y = static_cast<int>(n % p.tiles[0]) * p.down;
    n /= p.tiles[0];
    first = n % p.groups * p.tile.images;
    valid = static_cast<int>(least<Index>(p.tile.images, batch - first));
    plane = n / p.groups;
  }
};

// output (batch, channels multiplier, *out) from input (batch, channels, *size), weight (channels multiplier, *kernel)
// and bias (channels multiplier) or null.
template <typename T, int kRows>
__global__ void __launch_bounds__(kMostThreads)
    large_depthwise_forward(const T* input, const T* weight, const T* bias, T* output, Depthwise d, ImagePlan p) {
  using S = Sum<T>;
  CONVSWAP_SHARED(memory);
  S* tile = reinterpret_cast<S*>(memory);
  S* taps = tile + p.tile.size();
  const Patch patch(p.across, p.down);
  for (Index n = blockIdx.x; n < p.launch.blocks; n += gridDim.x) {
    const ImageBlock block(p, n, d.batch);
    const Index channel = block.plane / d.multiplier;
    const T* planes = input + (block.first * d.channels + channel) * d.input_plane();
    const T* kernel = weight + block.plane * d.kernel_plane();
    S sum[kRows][kColumns] = {};
    for (int ky = 0; ky < d.kernel[0]; ky += p.taps_down) {
      const int rows = least(p.taps_down, d.kernel[0] - ky);
      const Places y{block.y * kRows * d.stride[0] - d.before[0] + ky, d.stride[0], p.step, d.size[0]};
      for (int phase = 0; phase < least(d.stride[1], d.kernel[1]); phase += p.phases) {
        for (int tap = 0; tap < taps_of(d.kernel[1], d.stride[1], phase); tap += p.taps) {
          const int left = (block.x * kColumns + tap) * d.stride[1] - d.before[1] + phase;
          __syncthreads();
          load_tile(tile, p.tile, planes, d.channels * d.input_plane(), block.valid, y,
                    Places{left, d.stride[1], 1, d.size[1]}, (p.down * kRows - 1) * p.step + rows);
          for (int i = threadIdx.x; i < p.phases * rows * p.taps; i += blockDim.x) {
            const int k = i % p.taps, row = i / p.taps % rows, q = i / p.taps / rows;
            const int kx = (tap + k) * d.stride[1] + phase + q;
            const bool inside = kx < d.kernel[1] && phase + q < d.stride[1];
            taps[(q * p.taps_down + row) * p.taps_pitch + k] =
                inside ? static_cast<S>(kernel[static_cast<Index>(ky + row) * d.kernel[1] + kx]) : S(0);
          }
          __syncthreads();
          if (patch.slice >= block.valid) continue;
          const int line = patch.row * kRows * p.step, column = patch.column * kColumns;
          const Range along = lines_inside<kRows>(y, line, p.step, rows);
          for (int q = 0; q < p.phases && phase + q < least(d.stride[1], d.kernel[1]); ++q) {
            const Places x{left + q, d.stride[1], 1, d.size[1]};
            const int count = least(p.taps, taps_of(d.kernel[1], d.stride[1], phase + q) - tap);
            const S* own = tile + patch.slice * p.tile.image_pitch() + q * p.tile.columns + column;
            correlate<kRows>(sum, own, line - y.begin(), p.tile.line_pitch(), p.step, along,
                             taps + q * p.taps_down * p.taps_pitch, p.taps_pitch, rows, taps_inside(x, column, count));
          }
        }
      }
    }
    if (patch.slice >= block.valid) continue;
    const S start = bias ? static_cast<S>(bias[block.plane]) : S(0);
    T* out = output + ((block.first + patch.slice) * d.outputs() + block.plane) * d.output_plane();
    for (int r = 0; r < kRows; ++r) {
      const int row = (block.y + patch.row) * kRows + r;
      if (row >= d.out[0]) break;
      for (int c = 0; c < kColumns; ++c) {
        const int column = (block.x + patch.column) * kColumns + c;
        if (column < d.out[1]) out[static_cast<Index>(row) * d.out[1] + column] = static_cast<T>(sum[r][c] + start);
      }
    }
  }
}

// One axis of the gradient to the input, for the pixels v stride + residue: output v + first + i gives to them through
// tap number count - 1 - i, at place (count - 1 - i) stride + phase of the kernel.
struct Residue {
  int residue, phase, count, first;

  __device__ Residue(int residue, int before, int kernel, int stride) : residue(residue) {
    phase = (residue + before) % stride;
    count = taps_of(kernel, stride, phase);
    first = (residue + before) / stride - count + 1;
  }
};

// input_grad (batch, channels, *size) from grad (batch, channels multiplier, *out) and weight.
template <typename T, int kRows>
__global__ void __launch_bounds__(kMostThreads)
    large_depthwise_input_grad(const T* grad, const T* weight, T* input_grad, Depthwise d, ImagePlan p) {
  using S = Sum<T>;
  CONVSWAP_SHARED(memory);
  S* tile = reinterpret_cast<S*>(memory);
  S* taps = tile + p.tile.size();
  const Patch patch(p.across, p.down);
  const int residues[2] = {least(d.stride[0], d.size[0]), least(d.stride[1], d.size[1])};
  for (Index n = blockIdx.x; n < p.launch.blocks; n += gridDim.x) {
    const ImageBlock block(p, n, d.batch);
    const Residue ry(static_cast<int>(block.plane / residues[1] % residues[0]), d.before[0], d.kernel[0], d.stride[0]);
    const Residue rx(static_cast<int>(block.plane % residues[1]), d.before[1], d.kernel[1], d.stride[1]);
    const Index channel = block.plane / residues[1] / residues[0];
    S sum[kRows][kColumns] = {};
    for (int m = 0; m < d.multiplier; ++m) {
      const Index output = channel * d.multiplier + m;
      const T* planes = grad + (block.first * d.outputs() + output) * d.output_plane();
      const T* kernel = weight + output * d.kernel_plane();
      for (int down = 0; down < ry.count; down += p.taps_down) {
        const int rows = least(p.taps_down, ry.count - down);
        const Places y{block.y * kRows + ry.first + down, 1, 1, d.out[0]};
        for (int tap = 0; tap < rx.count; tap += p.taps) {
          const Places x{block.x * kColumns + rx.first + tap, 1, 1, d.out[1]};
          const int count = least(p.taps, rx.count - tap);
          __syncthreads();
          load_tile(tile, p.tile, planes, d.outputs() * d.output_plane(), block.valid, y, x, p.down * kRows - 1 + rows);
          for (int i = threadIdx.x; i < rows * count; i += blockDim.x) {
            const int k = i % count, row = i / count;
            const Index ky = static_cast<Index>(ry.count - 1 - down - row) * d.stride[0] + ry.phase;
            taps[row * p.taps_pitch + k] = static_cast<S>(
                kernel[ky * d.kernel[1] + static_cast<Index>(rx.count - 1 - tap - k) * d.stride[1] + rx.phase]);
          }
          __syncthreads();
          if (patch.slice >= block.valid) continue;
          const int line = patch.row * kRows, column = patch.column * kColumns;
          correlate<kRows>(sum, tile + patch.slice * p.tile.image_pitch() + column, line - y.begin(),
                           p.tile.line_pitch(), 1, lines_inside<kRows>(y, line, 1, rows), taps, p.taps_pitch, rows,
                           taps_inside(x, column, count));
        }
      }
    }
    if (patch.slice >= block.valid) continue;
    T* out = input_grad + ((block.first + patch.slice) * d.channels + channel) * d.input_plane();
    for (int r = 0; r < kRows; ++r) {
      const Index row = (static_cast<Index>(block.y + patch.row) * kRows + r) * d.stride[0] + ry.residue;
      if (row >= d.size[0]) break;
      for (int c = 0; c < kColumns; ++c) {
        const Index column = (static_cast<Index>(block.x + patch.column) * kColumns + c) * d.stride[1] + rx.residue;
        if (column < d.size[1]) out[row * d.size[1] + column] = static_cast<T>(sum[r][c]);
      }
    }
  }
}

// parts (splits, channels multiplier, *kernel), to be added up over the splits, from grad and input.
template <typename T, typename Part, int kRows>
__global__ void __launch_bounds__(kMostThreads)
    large_depthwise_weight_grad(const T* grad, const T* input, Part* parts, Depthwise d, WeightPlan p) {
  using S = Sum<T>;
  CONVSWAP_SHARED(memory);
  S* tile = reinterpret_cast<S*>(memory);
  S* taps = tile + p.tile.size();
  const Patch patch(p.across, p.down);
  const int tap = patch.slice % p.segments[1] * p.segment[1];
  const int start = patch.slice / p.segments[1] % p.segments[0] * p.segment[0];
  const int image = patch.slice / p.segments[1] / p.segments[0];
  for (Index n = blockIdx.x; n < p.launch.blocks; n += gridDim.x) {
    Index rest = n;
    const auto next = [&](Index count) {
      const Index digit = rest % count;
      rest /= count;
      return digit;
    };
    const int x0 = static_cast<int>(next(p.tiles[1])) * p.across, y0 = static_cast<int>(next(p.tiles[0])) * p.down;
    const int phase_x = static_cast<int>(next(p.phases[1])), phase_y = static_cast<int>(next(p.phases[0]));
    const Index split = next(p.splits), output = rest;
    const T* inputs = input + output / d.multiplier * d.input_plane();
    const T* grads = grad + output * d.output_plane();
    S sum[kRows][kColumns] = {};
    for (Index pass = split; pass < p.passes; pass += p.splits) {
      const int left = static_cast<int>(pass % p.bands[1]) * p.out_columns;
      const int top = static_cast<int>(pass / p.bands[1] % p.bands[0]) * p.out_rows;
      const Index first = pass / p.bands[1] / p.bands[0] * p.tile.images;
      const int valid = static_cast<int>(least<Index>(p.tile.images, d.batch - first));
      const int height = least(p.out_rows, d.out[0] - top), width = least(p.out_columns, d.out[1] - left);
      const Places y{(y0 * kRows + top) * d.stride[0] + phase_y - d.before[0], d.stride[0], 1, d.size[0]};
      const Places x{(x0 * kColumns + left) * d.stride[1] + phase_x - d.before[1], d.stride[1], 1, d.size[1]};
      __syncthreads();
      load_tile(tile, p.tile, inputs + first * d.channels * d.input_plane(), d.channels * d.input_plane(), valid, y, x,
                p.down * kRows - 1 + height);
      // All lines of this one lie inside the image, so that none is left out.
      load_tile(taps, p.taps, grads + (first * d.outputs() * d.output_plane() + static_cast<Index>(top) * d.out[1]),
                d.outputs() * d.output_plane(), valid, Places{0, 1, 1, height}, Places{left, 1, 1, d.out[1]}, height);
      __syncthreads();
      const int rows = least(p.segment[0], height - start);
      if (image >= valid || rows <= 0) continue;
      const int line = patch.row * kRows + start, column = patch.column * kColumns;
      Range across = taps_inside(x, column, width);
      across = {most(across.begin, tap), least(across.end, tap + p.segment[1])};
      correlate<kRows>(sum, tile + image * p.tile.image_pitch() + column, line - y.begin(), p.tile.columns, 1,
                       lines_inside<kRows>(y, line, 1, rows),
                       taps + image * p.taps.image_pitch() + start * p.taps.columns, p.taps.columns, rows, across);
    }
    // The slices' sums, added up in their order.
    S* sums = tile;
    const int columns = p.across * kColumns, elements = p.down * kRows * columns;
    const int slices = p.tile.images * p.segments[0] * p.segments[1];
    __syncthreads();
    if (patch.slice < slices) {
      S* own = sums + patch.slice * elements + patch.row * kRows * columns + patch.column * kColumns;
      CONVSWAP_UNROLL
      for (int r = 0; r < kRows; ++r) {
        CONVSWAP_UNROLL
        for (int c = 0; c < kColumns; ++c) own[r * columns + c] = sum[r][c];
      }
    }
    __syncthreads();
    Part* out = parts + (split * d.outputs() + output) * d.kernel_plane();
    for (int i = threadIdx.x; i < elements; i += blockDim.x) {
      const int ky = (y0 * kRows + i / columns) * d.stride[0] + phase_y;
      const int kx = (x0 * kColumns + i % columns) * d.stride[1] + phase_x;
      if (ky >= d.kernel[0] || kx >= d.kernel[1]) continue;
      S total = 0;
      for (int slice = 0; slice < slices; ++slice) total += sums[slice * elements + i];
      out[static_cast<Index>(ky) * d.kernel[1] + kx] = static_cast<Part>(total);
    }
  }
}

// weight_grad[i], the sum of parts[split][i].
template <typename T, typename S>
__global__ void __launch_bounds__(kMostThreads)
    large_depthwise_sum(const S* parts, T* weight_grad, Index elements, Index splits) {
  for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < elements;
       i += static_cast<Index>(gridDim.x) * blockDim.x) {
    S total = 0;
    for (Index split = 0; split < splits; ++split) total += parts[split * elements + i];
    weight_grad[i] = static_cast<T>(total);
  }
}

}  // namespace convswap
