// Depthwise convolution with the listed taps of DCLS kernels alone, and its gradient to the input. Device code without
// host includes.
#pragma once

#include "dcls_sparse_tile.cuh"
#include "dcls_taps.cuh"

namespace convswap {

constexpr int kTapChunk = 256;  // taps in shared memory at a time
constexpr int kPixelsPerThread = 4;

// A convolution and its gradient to the input are one and the same: a target pixel gathers source pixels at taps.
struct SparseGather {
  SparseAxis y, x;
  SparseImages source, target;  // neighbours in memory
  Index batch, channels;        // of the target
  int lists_per_target;         // taps lists that a target channel gathers with, each from a source channel of its own
  int lists_per_source;         // neighbouring lists that look at the same source channel
  SparseTile tile;
  Launch launch;
};

// A tap in shared memory, read by all threads at once. For a staged plane `row` is the tap's offset in it.
template <typename S>
struct alignas(16) SparseTap {
  S value;
  int row, column;
};

// Fills in the tile and the launch, once all else is there.
inline void plan_gather(SparseGather& gather, int value_size, int plane_bytes = kPlaneBytes) {
  SparseTile& tile = gather.tile = sparse_tile(gather.y, gather.x, gather.batch, value_size, plane_bytes);
  const Index phases = static_cast<Index>(gather.y.target_step) * gather.x.target_step;
  gather.launch.blocks = tile.tiles() * phases * gather.channels;
  gather.launch.threads = most(ceil_div(tile.pixels(), 32 * kPixelsPerThread) * 32, 64);
  gather.launch.shared_bytes = kTapChunk * 16 + tile.plane() * tile.images * value_size;
}

template <typename T>
__global__ void __launch_bounds__(kTilePixels / kPixelsPerThread)
    dcls_sparse_gather(const T* source, TapLists<Sum<T>> lists, T* target, SparseGather g) {
  using S = Sum<T>;
  CONVSWAP_SHARED(memory);
  static_assert(sizeof(SparseTap<S>) == 16);
  SparseTap<S>* staged = reinterpret_cast<SparseTap<S>*>(memory);
  S* plane = reinterpret_cast<S*>(staged + kTapChunk);
  const int phases = g.y.target_step * g.x.target_step, pixels = g.tile.pixels();

  for (Index block = blockIdx.x; block < g.launch.blocks; block += gridDim.x) {
    const Index channel = block % g.channels;
    const int phase = static_cast<int>(block / g.channels % phases);
    const SparsePlace place = sparse_place(g.tile, block / g.channels / phases);
    const int phase_y = phase / g.x.target_step, phase_x = phase % g.x.target_step;
    const int first_y = g.y.first(phase_y) + place.y, first_x = g.x.first(phase_x) + place.x;
    // The source pixel of the tile's first pixel and a tap at 0.
    const int source_y = first_y * g.y.source_step + g.y.source_shift;
    const int source_x = first_x * g.x.source_step + g.x.source_shift;
    const Index images = least<Index>(g.batch - place.first_image, g.tile.images);

    int at[kPixelsPerThread];  // in the plane
    S sum[kPixelsPerThread];
    CONVSWAP_UNROLL
    for (int i = 0; i < kPixelsPerThread; ++i) {
      const int pixel = threadIdx.x + i * blockDim.x, inner = pixel % (g.tile.height * g.tile.width);
      const int image = pixel / (g.tile.height * g.tile.width);
      const int y = inner / g.tile.width * g.y.source_step, x = inner % g.tile.width * g.x.source_step;
      at[i] = pixel < pixels ? image * g.tile.plane() + y * g.tile.plane_width + x : 0;
      sum[i] = 0;
    }
    for (int j = 0; j < g.lists_per_target; ++j) {
      const Index list = channel * g.lists_per_target + j;
      const Index source_channel = list / g.lists_per_source;
      const T* from = source + place.first_image * g.source.batch + source_channel * g.source.channel;
      const int begin = lists.start[list * (phases + 1) + phase], end = lists.start[list * (phases + 1) + phase + 1];
      if (begin == end) continue;
      __syncthreads();
      if (g.tile.staged) {
        fill_plane(plane, g.tile, from, g.source, images, source_y + g.y.first_tap, source_x + g.x.first_tap,
                   g.y.source_size, g.x.source_size);
      }
      for (int first = begin; first < end; first += kTapChunk) {
        const int taps = least(end - first, kTapChunk);
        __syncthreads();
        for (int t = threadIdx.x; t < taps; t += blockDim.x) {
          const Index entry = list * lists.capacity + first + t;
          const int down = lists.row[entry] - g.y.first_tap, right = lists.column[entry] - g.x.first_tap;
          const int row = g.tile.staged ? down * g.tile.plane_width + right : lists.row[entry];
          staged[t] = {lists.value[entry], row, lists.column[entry]};
        }
        __syncthreads();
        if (g.tile.staged) {
          for (int t = 0; t < taps; ++t) {
            const SparseTap<S> tap = staged[t];
            CONVSWAP_UNROLL
            for (int i = 0; i < kPixelsPerThread; ++i) sum[i] += tap.value * plane[tap.row + at[i]];
          }
          continue;
        }
        CONVSWAP_UNROLL
        for (int i = 0; i < kPixelsPerThread; ++i) {
          const int pixel = threadIdx.x + i * blockDim.x, inner = pixel % (g.tile.height * g.tile.width);
          const int image = pixel / (g.tile.height * g.tile.width);
          if (image >= images) continue;
          const int y = source_y + inner / g.tile.width * g.y.source_step;
          const int x = source_x + inner % g.tile.width * g.x.source_step;
          for (int t = 0; t < taps; ++t) {
            const SparseTap<S> tap = staged[t];
            const int down = y + tap.row, right = x + tap.column;
            if (down < 0 || down >= g.y.source_size || right < 0 || right >= g.x.source_size) continue;
            const Index at_source = image * g.source.batch + down * g.source.row + right * g.source.column;
            sum[i] += tap.value * static_cast<S>(from[at_source]);
          }
        }
      }
    }
    CONVSWAP_UNROLL
    for (int i = 0; i < kPixelsPerThread; ++i) {
      const int pixel = threadIdx.x + i * blockDim.x, inner = pixel % (g.tile.height * g.tile.width);
      const int image = pixel / (g.tile.height * g.tile.width);
      const int y = (first_y + inner / g.tile.width) * g.y.target_step + phase_y - g.y.target_shift;
      const int x = (first_x + inner % g.tile.width) * g.x.target_step + phase_x - g.x.target_shift;
      if (image < images && y < g.y.target_size && x < g.x.target_size) {
        target[(place.first_image + image) * g.target.batch + channel * g.target.channel + y * g.target.row +
               x * g.target.column] = static_cast<T>(sum[i]);
      }
    }
  }
}

}  // namespace convswap
