// Convolution with a kernel mixed for each sample, and its gradient to the input, as products of tiles: a block mixes
// the tile of the kernel that it needs next while it loads it.
#pragma once

#include "dynamic_product.cuh"

namespace convswap {

// A place in the reduction over channels and taps of a residue.
struct DynamicWalk {
  int channel, down, across;

  __device__ DynamicWalk(const DynamicView& v, const DynamicAxis& y, const DynamicAxis& x, int place) {
    const int taps = most(y.count * x.count, 1), width = most(x.count, 1);  // of an empty one as well
    const int channels = most(v.channels, 1);
    const int tap = v.taps_first ? place % taps : place / channels;
    channel = v.taps_first ? place / taps : place % channels;
    down = tap / width;
    across = tap % width;
  }

  __device__ void next(const DynamicView& v, const DynamicAxis& y, const DynamicAxis& x) {
    if (!v.taps_first && ++channel < v.channels) return;
    if (!v.taps_first) channel = 0;
    if (++across < x.count) return;
    across = 0;
    if (++down < y.count) return;
    down = 0;
    if (v.taps_first) ++channel;
  }
};

// Where the numbers of a reduction's place lie in the weight's first kernel, from the group's first row on.
CONVSWAP_INLINE __device__ Index weight_place(const Dynamic& d, const DynamicView& v, const DynamicAxis& y,
                                              const DynamicAxis& x, const DynamicWalk& at) {
  const int tap = (y.tap + at.down * y.tap_step) * d.kernel[1] + x.tap + at.across * x.tap_step;
  return at.channel * v.channel_step + tap * d.tap_step;
}

// A column of a tile: what the first tap of its pixel reads, and where its results go, from a group's first one on.
struct alignas(16) DynamicColumn {
  int y, x;
  Index result;  // negative: there is none
};

constexpr int kNowhere = -0x7fffffff;  // outside of every image, whatever tap is added

CONVSWAP_INLINE __device__ DynamicColumn dynamic_column(const Dynamic& d, const DynamicView& v, const DynamicAxis& y,
                                                        const DynamicAxis& x, Index sample, Index place) {
  if (sample >= d.batch || place >= static_cast<Index>(y.places) * x.places) return {kNowhere, kNowhere, -1};
  const int row = static_cast<int>(place / x.places), column = static_cast<int>(place % x.places);
  const Index down = static_cast<Index>(row) * y.scale + y.start;
  const Index across = static_cast<Index>(column) * x.scale + x.start;
  const Index first = sample * d.groups * v.rows * v.result_plane();
  return {row * y.pace + y.first, column * x.pace + x.first, first + (down * v.result[1] + across) * v.result_pixel};
}

// Shared memory: columns, then the tiles of the mixed kernels and of the source, which the results take over.
template <typename T, int kRows, int kSamples>
struct DynamicBlock {
  static constexpr int columns = DynamicForm<T>::columns, depth = DynamicForm<T>::depth;
  using Product = DynamicProduct<T, kRows, columns, depth, true, false, (sizeof(T) < 4)>;
  static constexpr int tile_bytes = (kSamples * Product::a_size + Product::b_size) * static_cast<int>(sizeof(T));
  static constexpr int shared_bytes =
      columns * static_cast<int>(sizeof(DynamicColumn)) + most(tile_bytes, Product::patch_bytes);
};

// result (batch, groups rows, *result) from source (batch, groups channels, *source), the kernels' weight, attention
// (batch, kernels) and bias (batch, groups rows) or null. If the reduction is split, its parts' sums go to `parts`
// (splits, as result) instead, without the bias. A tile has columns of kSamples samples.
template <typename T, int kRows, int kSamples>
__global__ void __launch_bounds__(kDynamicThreads, sizeof(T) < 8 ? 2 : 1)
    dynamic_conv2d(const T* __restrict__ source, const T* __restrict__ weight, const T* __restrict__ attention,
                   const T* __restrict__ bias, T* __restrict__ result, Sum<T>* __restrict__ parts, Dynamic d,
                   DynamicView v, DynamicTiles p) {
  using S = Sum<T>;
  constexpr int kColumns = DynamicForm<T>::columns, kDepth = DynamicForm<T>::depth, kPart = kColumns / kSamples;
  constexpr int kPass = kDynamicThreads / kDepth;          // rows that threads mix at a time, ...
  constexpr int kTall = least(most(kRows / kPass, 1), 4);  // ... and that a thread does
  constexpr int kApart = kDynamicThreads / kColumns;       // threads of a column, ...
  constexpr int kTogether = least(kDepth / kApart, 8);     // ... and what each loads at a time
  using Product = typename DynamicBlock<T, kRows, kSamples>::Product;
  CONVSWAP_SHARED(memory);
  DynamicColumn* columns = reinterpret_cast<DynamicColumn*>(memory);
  T* A = reinterpret_cast<T*>(columns + kColumns);
  T* B = A + kSamples * Product::a_size;
  const int thread = static_cast<int>(threadIdx.x);
  const int own_column = thread % kColumns, own_depth = thread % kDepth, own_row = thread / kDepth;
  for (Index n = blockIdx.x; n < p.launch.blocks; n += gridDim.x) {
    // Blocks that run together mix the same part of the kernels, for other samples and pixels.
    Index rest = n;
    const Index first_sample = rest % p.samples * kSamples;
    rest /= p.samples;
    const Index first_place = rest % p.tiles * kPart;
    rest /= p.tiles;
    const int residue = static_cast<int>(rest % p.residues);
    rest /= p.residues;
    const int split = static_cast<int>(rest % p.splits);
    rest /= p.splits;
    const int first_row = static_cast<int>(rest % p.row_tiles) * kRows, group = static_cast<int>(rest / p.row_tiles);
    const DynamicAxis y(d, v, 0, residue / v.residues[1]), x(d, v, 1, residue % v.residues[1]);
    if (first_place >= static_cast<Index>(y.places) * x.places) continue;  // the whole block: a smaller residue
    const int taps = y.count * x.count, depth = v.channels * taps;
    const int begin = split * p.split_steps * kDepth, end = least<int>(depth, begin + p.split_steps * kDepth);

    __syncthreads();  // the block before is done with this memory
    if (thread < kColumns) {
      columns[thread] = dynamic_column(d, v, y, x, first_sample + thread / kPart, first_place + thread % kPart);
    }
    __syncthreads();
    const DynamicColumn own = columns[own_column];
    const Index own_sample = least<Index>(first_sample + own_column / kPart, d.batch - 1);
    const T* from = source + (own_sample * d.groups + group) * v.channels * v.source_plane();
    const T* kernels = weight + group * d.outputs * d.output_step + first_row * v.row_step;
    DynamicWalk at(v, y, x, begin < end ? begin + thread / kColumns : 0);
    Product product;
    product.clear();
    for (int step = begin; step < end; step += kDepth) {
      // The source: a thread has a column.
      CONVSWAP_ROLLED
      for (int some = 0; some < kDepth; some += kTogether * kApart) {
        CONVSWAP_UNROLL
        for (int i = 0; i < kTogether; ++i) {
          const int within = some + i * kApart + thread / kColumns;
          const int down = own.y + at.down * y.move, across = own.x + at.across * x.move;
          T value = T(0);
          if (step + within < end && in_image(down, across, v.source)) {
            value = from[at.channel * v.source_plane() + static_cast<Index>(down) * v.source[1] + across];
          }
          B[Product::b(within, own_column)] = value;
          CONVSWAP_UNROLL
          for (int j = 0; j < kApart; ++j) at.next(v, y, x);
        }
      }
      // The kernels: a thread has a place in the reduction, and some of the rows at a time.
      const int place = step + own_depth;
      const T* kernel = kernels + weight_place(d, v, y, x, DynamicWalk(v, y, x, least(place, end - 1)));
      CONVSWAP_ROLLED
      for (int top = own_row; top < kRows; top += kTall * kPass) {
        S mixed[kSamples][kTall];
        CONVSWAP_UNROLL
        for (int s = 0; s < kSamples; ++s) {
          CONVSWAP_UNROLL
          for (int i = 0; i < kTall; ++i) mixed[s][i] = 0;
        }
        const T* w = kernel + top * v.row_step;
        const T* a = attention + first_sample * d.kernels;
        for (int k = 0; k < d.kernels; ++k, w += d.kernel_step, ++a) {
          T numbers[kTall];
          CONVSWAP_UNROLL
          for (int i = 0; i < kTall; ++i) {
            numbers[i] = T(0);
            if (place < end && first_row + top + i * kPass < v.rows) numbers[i] = w[i * kPass * v.row_step];
          }
          CONVSWAP_UNROLL
          for (int s = 0; s < kSamples; ++s) {
            if (first_sample + s >= d.batch) break;
            const S share = static_cast<S>(a[static_cast<Index>(s) * d.kernels]);
            CONVSWAP_UNROLL
            for (int i = 0; i < kTall; ++i) mixed[s][i] += share * static_cast<S>(numbers[i]);
          }
        }
        CONVSWAP_UNROLL
        for (int s = 0; s < kSamples; ++s) {
          CONVSWAP_UNROLL
          for (int i = 0; i < kTall; ++i) {
            A[s * Product::a_size + Product::a(top + i * kPass, own_depth)] = static_cast<T>(mixed[s][i]);
          }
        }
      }
      __syncthreads();
      product.add(A + WarpTile<kRows, kColumns>::column() / kPart * Product::a_size, B);
      __syncthreads();
    }
    const int channels = d.groups * v.rows, first_channel = group * v.rows + first_row;
    T* to = result + first_channel * v.result_row_step;
    S* to_parts = p.splits > 1 ? parts + split * d.batch * channels * v.result_plane() +
                                     first_channel * v.result_row_step
                               : nullptr;
    const T* biases = bias ? bias + first_sample * channels + first_channel : nullptr;
    product.each(A, v.result_row_step == 1, [&](int row, int column, S value) {
      const Index place = columns[column].result;
      if (place < 0 || first_row + row >= v.rows) return;
      if (to_parts) {
        to_parts[place + row * v.result_row_step] = value;
        return;
      }
      if (biases) value += static_cast<S>(biases[column / kPart * channels + row]);
      to[place + row * v.result_row_step] = static_cast<T>(value);
    });
  }
}

}  // namespace convswap
