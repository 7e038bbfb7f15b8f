// The gradients to the kernels and to the attention. An item, which is some pixels of a sample, gives a gradient to the
// mixed kernel; a block has a tile of it, adds it to the gradients of some kernels, and multiplies it with them.
#pragma once

#include "dynamic_product.cuh"

namespace convswap {

// Kernels that a thread keeps gradients of.
template <typename T>
constexpr int kDynamicKernels = sizeof(T) == 8 ? 2 : 4;

// A tap of an input: where that lies among the group's images, and how far the tap is from a pixel's corner. Taps are
// counted as they lie in the weight.
struct alignas(16) DynamicTap {
  Index plane;
  int down, across;

  __device__ DynamicTap(const Dynamic& d, Index number) : plane(0), down(kNone), across(kNone) {
    if (number >= d.output_step) return;
    const Index channel = d.tap_step == 1 ? number / d.taps() : number % d.inputs;
    const int tap = static_cast<int>(d.tap_step == 1 ? number % d.taps() : number / d.inputs);
    plane = channel * d.input_plane();
    down = tap / d.kernel[1] * d.dilation[0];
    across = tap % d.kernel[1] * d.dilation[1];
  }

  static constexpr int kNone = -(1 << 30);  // outside of every image
};

// What the first tap of a pixel of the output reads.
struct DynamicCorner {
  int y, x;

  __device__ DynamicCorner(const Dynamic& d, const DynamicGrad& p, Index pixel) {
    int row;
    if (d.output_plane() >> 31) {
      x = static_cast<int>(p.columns.take(pixel));
      row = static_cast<int>(pixel);
    } else {
      unsigned rest = static_cast<unsigned>(pixel);
      x = static_cast<int>(p.columns.take(rest));
      row = static_cast<int>(rest);
    }
    y = row * d.stride[0] - d.before[0];
    x = x * d.stride[1] - d.before[1];
  }
};

// What a block, or a warp, has to do.
struct DynamicShare {
  Index column_tile, row_tile, unit, begin, end;  // items from begin to end
  int group, first_kernel;
  Index split;

  __device__ DynamicShare(const DynamicGrad& p, const Dynamic& d, Index number, int kernels) {
    unit = number % p.units;
    const Index rest = number / p.units;
    column_tile = unit % p.column_tiles;
    row_tile = unit / p.column_tiles % p.row_tiles;
    group = static_cast<int>(unit / p.column_tiles / p.row_tiles);
    first_kernel = static_cast<int>(rest % p.kernel_tiles) * kernels;
    split = rest / p.kernel_tiles;
    begin = split * p.split_items;
    end = least(begin + p.split_items, p.items);
  }
};

template <typename T, int kRows, int kColumns>
struct DynamicGradBlock {
  static constexpr int rows = kRows, columns = kColumns, depth = sizeof(T) < 4 ? 32 : 16;
  static constexpr int apart = kColumns + 8;  // of the rows of a tile that is done
  using Product = DynamicProduct<T, kRows, kColumns, depth, true, true, (sizeof(T) < 4)>;
  static constexpr int tap_bytes = kColumns * static_cast<int>(sizeof(DynamicTap));
  static constexpr int tile_bytes = most((Product::a_size + Product::b_size) * static_cast<int>(sizeof(T)),
                                         kRows * apart * static_cast<int>(sizeof(Sum<T>)));
  static constexpr int total_bytes = kDynamicWarps * kDynamicKernels<T> * static_cast<int>(sizeof(Sum<T>));
  static constexpr int shared_bytes = tap_bytes + tile_bytes + total_bytes;
};

// A number of the gradient to the weight, or of the sums over a split if there are several.
template <typename T, typename S>
CONVSWAP_INLINE __device__ void store_gradient(T* weight_grad, S* sums, const Dynamic& d, const DynamicGrad& p,
                                               Index split, Index place, S value) {
  if (p.splits == 1) {
    weight_grad[place] = static_cast<T>(value);
  } else {
    sums[split * d.kernels * d.kernel_step + place] = value;
  }
}

// weight_grad, laid out as the weight, or its sums over each split (splits, as weight_grad), and each item's and unit's
// part of the attention's gradient (items, units, kernels), from grad (batch, groups outputs, *out), input, weight and
// attention.
template <typename T, int kRows, int kColumns>
__global__ void __launch_bounds__(kDynamicThreads, sizeof(T) < 8 ? 2 : 1)
    dynamic_weight_grad(const T* __restrict__ grad, const T* __restrict__ input, const T* __restrict__ weight,
                        const T* __restrict__ attention, T* __restrict__ weight_grad, Sum<T>* __restrict__ sums,
                        Sum<T>* __restrict__ parts, Dynamic d, DynamicGrad p) {
  using S = Sum<T>;
  using Block = DynamicGradBlock<T, kRows, kColumns>;
  using Product = typename Block::Product;
  constexpr int kDepth = Block::depth, kPass = kDynamicThreads / kDepth, kKernels = kDynamicKernels<T>;
  constexpr int kOwn = kRows * kColumns / kDynamicThreads, kApart = kDynamicThreads / kColumns;
  CONVSWAP_SHARED(memory);
  DynamicTap* taps = reinterpret_cast<DynamicTap*>(memory);
  T* A = reinterpret_cast<T*>(memory + Block::tap_bytes);
  T* B = A + Product::a_size;
  S* tile = reinterpret_cast<S*>(A);  // takes their place
  S* totals = reinterpret_cast<S*>(memory + Block::tap_bytes + Block::tile_bytes);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int own_depth = thread % kDepth, own_pass = thread / kDepth;
  const Index plane = d.output_plane();
  for (Index n = blockIdx.x; n < p.launch.blocks; n += gridDim.x) {
    const DynamicShare share(p, d, n, kKernels);
    const int first_row = static_cast<int>(share.row_tile) * kRows;
    const Index first_column = share.column_tile * kColumns;
    // The block before is past the barriers after its last use of these.
    for (int i = thread; i < kColumns; i += kDynamicThreads) taps[i] = DynamicTap(d, first_column + i);
    __syncthreads();
    // What a thread has of a tile that is done: a column, and rows that lie kApart.
    const Index column = first_column + thread % kColumns;
    const int row = first_row + thread / kColumns;
    const Index own = (static_cast<Index>(share.group) * d.outputs + row) * d.output_step + column +
                      share.first_kernel * d.kernel_step;
    const int rows = column < d.output_step ? ceil_div(most(d.outputs - row, 0), kApart) : 0;  // of them, that exist
    S gradient[kKernels][kOwn];
    CONVSWAP_UNROLL
    for (int k = 0; k < kKernels; ++k) {
      CONVSWAP_UNROLL
      for (int i = 0; i < kOwn; ++i) gradient[k][i] = 0;
    }
    for (Index item = share.begin; item < share.end; ++item) {
      const Index sample = item / p.chunks, first_pixel = item % p.chunks * p.chunk;
      const Index last_pixel = least(first_pixel + p.chunk, plane);
      const T* g = grad + (sample * d.all_outputs() + static_cast<Index>(share.group) * d.outputs + first_row) * plane;
      const T* x = input + (sample * d.groups + share.group) * d.inputs * d.input_plane();
      Product product;
      product.clear();
      for (Index start = first_pixel; start < last_pixel; start += kDepth) {
        const Index pixel = start + own_depth;
        const bool used = pixel < last_pixel;
        const DynamicCorner corner(d, p, used ? pixel : 0);
        CONVSWAP_UNROLL
        for (int i = own_pass; i < kRows; i += kPass) {
          A[Product::a(i, own_depth)] = used && first_row + i < d.outputs ? g[i * plane + pixel] : T(0);
        }
        CONVSWAP_ROLLED
        for (int some = own_pass; some < kColumns; some += 4 * kPass) {
          CONVSWAP_UNROLL
          for (int i = some; i < some + 4 * kPass; i += kPass) {
            const DynamicTap tap = taps[i];
            const int down = corner.y + tap.down, across = corner.x + tap.across;
            T value = T(0);
            if (used && in_image(down, across, d.size)) {
              value = x[tap.plane + static_cast<Index>(down) * d.size[1] + across];
            }
            B[Product::b(own_depth, i)] = value;
          }
        }
        __syncthreads();
        product.add(A, B);
        __syncthreads();
      }
      product.store(tile, Block::apart);
      __syncthreads();
      S sum[kKernels] = {};
      CONVSWAP_UNROLL
      for (int k = 0; k < kKernels; ++k) {
        if (share.first_kernel + k >= d.kernels) break;
        const S factor = static_cast<S>(attention[sample * d.kernels + share.first_kernel + k]);
        CONVSWAP_UNROLL
        for (int i = 0; i < kOwn; ++i) {
          if (i >= rows) break;
          const S value = tile[(thread / kColumns + i * kApart) * Block::apart + thread % kColumns];
          gradient[k][i] += factor * value;
          sum[k] += static_cast<S>(weight[own + k * d.kernel_step + i * kApart * d.output_step]) * value;
        }
      }
      CONVSWAP_UNROLL
      for (int k = 0; k < kKernels; ++k) {
        CONVSWAP_UNROLL
        for (int bits = 16; bits; bits /= 2) sum[k] += __shfl_xor_sync(~0u, sum[k], bits);
        if (lane == 0) totals[warp * kKernels + k] = sum[k];
      }
      __syncthreads();
      if (thread < kKernels && share.first_kernel + thread < d.kernels) {
        S total = 0;
        for (int i = 0; i < kDynamicWarps; ++i) total += totals[i * kKernels + thread];
        parts[(item * p.units + share.unit) * d.kernels + share.first_kernel + thread] = total;
      }
    }
    CONVSWAP_UNROLL
    for (int k = 0; k < kKernels; ++k) {
      if (share.first_kernel + k >= d.kernels) break;
      CONVSWAP_UNROLL
      for (int i = 0; i < kOwn; ++i) {
        if (i >= rows) break;
        const Index place = own + k * d.kernel_step + i * kApart * d.output_step;
        store_gradient(weight_grad, sums, d, p, share.split, place, gradient[k][i]);
      }
    }
  }
}

// The same where groups have few outputs: a warp has some taps of an output, of which lane i keeps the gradient of the
// i-th, and its lanes share the pixels.
constexpr int kNarrowTaps = 9;

template <typename T>
__global__ void __launch_bounds__(kDynamicThreads)
    dynamic_narrow_grad(const T* __restrict__ grad, const T* __restrict__ input, const T* __restrict__ weight,
                        const T* __restrict__ attention, T* __restrict__ weight_grad, Sum<T>* __restrict__ sums,
                        Sum<T>* __restrict__ parts, Dynamic d, DynamicGrad p) {
  using S = Sum<T>;
  constexpr int kKernels = kDynamicKernels<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const Index plane = d.output_plane();
  for (Index n = blockIdx.x; n < p.launch.blocks; n += gridDim.x) {
    const Index number = n * kDynamicWarps + warp;
    if (number >= p.units * p.kernel_tiles * p.splits) break;  // the whole warp
    const DynamicShare share(p, d, number, kKernels);
    const Index first = share.column_tile * kNarrowTaps;
    const Index output = static_cast<Index>(share.group) * d.outputs + share.row_tile;
    const Index own = output * d.output_step + first + lane + share.first_kernel * d.kernel_step;
    const bool owner = lane < kNarrowTaps && first + lane < d.output_step;
    int down[kNarrowTaps], across[kNarrowTaps];
    Index image[kNarrowTaps];
    CONVSWAP_UNROLL
    for (int i = 0; i < kNarrowTaps; ++i) {
      const DynamicTap tap(d, first + i);
      down[i] = tap.down;
      across[i] = tap.across;
      image[i] = tap.plane;
    }
    S gradient[kKernels] = {};
    for (Index item = share.begin; item < share.end; ++item) {
      const Index sample = item / p.chunks, first_pixel = item % p.chunks * p.chunk;
      const Index last_pixel = least(first_pixel + p.chunk, plane);
      const T* g = grad + (sample * d.all_outputs() + output) * plane;
      const T* x = input + (sample * d.groups + share.group) * d.inputs * d.input_plane();
      S found[kNarrowTaps] = {};
      for (Index pixel = first_pixel + lane; pixel < last_pixel; pixel += 32) {
        const DynamicCorner corner(d, p, pixel);
        const S value = static_cast<S>(g[pixel]);
        CONVSWAP_UNROLL
        for (int i = 0; i < kNarrowTaps; ++i) {
          const int y = corner.y + down[i], along = corner.x + across[i];
          if (in_image(y, along, d.size)) {
            found[i] += value * static_cast<S>(x[image[i] + static_cast<Index>(y) * d.size[1] + along]);
          }
        }
      }
      S mine = 0;
      CONVSWAP_UNROLL
      for (int i = 0; i < kNarrowTaps; ++i) {
        CONVSWAP_UNROLL
        for (int bits = 16; bits; bits /= 2) found[i] += __shfl_xor_sync(~0u, found[i], bits);
        if (lane == i) mine = found[i];
      }
      CONVSWAP_UNROLL
      for (int k = 0; k < kKernels; ++k) {
        const int kernel = share.first_kernel + k;
        if (kernel >= d.kernels) break;
        S product = 0;
        if (owner) {
          gradient[k] += static_cast<S>(attention[sample * d.kernels + kernel]) * mine;
          product = static_cast<S>(weight[own + k * d.kernel_step]) * mine;
        }
        CONVSWAP_UNROLL
        for (int bits = 16; bits; bits /= 2) product += __shfl_xor_sync(~0u, product, bits);
        if (lane == 0) parts[(item * p.units + share.unit) * d.kernels + kernel] = product;
      }
    }
    CONVSWAP_UNROLL
    for (int k = 0; k < kKernels; ++k) {
      if (!owner || share.first_kernel + k >= d.kernels) break;
      store_gradient(weight_grad, sums, d, p, share.split, own + k * d.kernel_step, gradient[k]);
    }
  }
}

}  // namespace convswap
