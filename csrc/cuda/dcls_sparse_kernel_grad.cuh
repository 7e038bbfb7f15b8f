// Gradient of a depthwise convolution to its kernels, at listed cells alone. Device code without host includes.
#pragma once

#include "dcls_sparse_tile.cuh"
#include "dcls_taps.cuh"

namespace convswap {

constexpr int kGradThreads = 256;
constexpr int kGradCells = 256;                // sums in shared memory at a time
constexpr int kGradPixels = kTilePixels / 32;  // of a tile, for each lane of a warp

// Two stages with a fixed order of sums: each block adds up its part of the tiles, then the parts are added.
struct SparseKernelGrad {
  SparseAxis y, x;           // of the output
  SparseImages input, grad;  // neighbours in memory
  Index batch, kernels;
  int kernels_per_input;  // neighbouring kernels that look at the same channel of the input
  int parts;
  SparseTile tile;
  Launch launch;
};

// Fills in the parts, the tile and the launch, once all else is there.
inline void plan_kernel_grad(SparseKernelGrad& plan, int value_size, int plane_bytes = kPlaneBytes) {
  SparseTile& tile = plan.tile = sparse_tile(plan.y, plan.x, plan.batch, value_size, plane_bytes);
  // Enough blocks for a large GPU, by the shapes alone: results must not depend on which GPU it is.
  const Index wanted = ceil_div<Index>(1056, most<Index>(plan.kernels, 1));
  plan.parts = static_cast<int>(most<Index>(least(wanted, tile.tiles()), 1));
  plan.launch.blocks = plan.kernels * plan.parts;
  plan.launch.threads = kGradThreads;
  plan.launch.shared_bytes = (tile.plane() * tile.images + kTilePixels) * value_size +
                             kGradCells * (value_size + 2 * static_cast<int>(sizeof(int))) + kTilePixels * 2;
}

// `partial` is (kernels, parts, capacity).
template <typename T>
__global__ void __launch_bounds__(kGradThreads)
    dcls_sparse_kernel_grad_parts(const T* input, const T* grad, TapLists<Sum<T>> lists, Sum<T>* partial,
                                  SparseKernelGrad g) {
  using S = Sum<T>;
  CONVSWAP_SHARED(memory);
  S* plane = reinterpret_cast<S*>(memory);
  S* tile_grad = plane + g.tile.plane() * g.tile.images;
  S* total = tile_grad + kTilePixels;
  int* row = reinterpret_cast<int*>(total + kGradCells);  // of a staged plane the offset of the cell in it
  int* column = row + kGradCells;
  unsigned short* place_of = reinterpret_cast<unsigned short*>(column + kGradCells);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int inner = g.tile.height * g.tile.width;

  for (int pixel = threadIdx.x; pixel < kTilePixels; pixel += kGradThreads) {
    const int y = pixel % inner / g.tile.width * g.y.source_step, x = pixel % inner % g.tile.width * g.x.source_step;
    const bool used = g.tile.staged && pixel < g.tile.pixels();
    place_of[pixel] = used ? pixel / inner * g.tile.plane() + y * g.tile.plane_width + x : 0;
  }
  __syncthreads();
  int at[kGradPixels];  // of this lane's pixels, in the plane
  CONVSWAP_UNROLL
  for (int i = 0; i < kGradPixels; ++i) at[i] = place_of[lane + 32 * i];

  for (Index block = blockIdx.x; block < g.launch.blocks; block += gridDim.x) {
    const Index kernel = block / g.parts;
    const int part = static_cast<int>(block % g.parts);
    const int begin = lists.start[kernel * 2], end = lists.start[kernel * 2 + 1];
    for (int first = begin; first < end; first += kGradCells) {
      const int cells = least(end - first, kGradCells);
      __syncthreads();
      for (int c = threadIdx.x; c < cells; c += kGradThreads) {
        const Index entry = kernel * lists.capacity + first + c;
        total[c] = 0;
        row[c] = g.tile.staged ? lists.row[entry] * g.tile.plane_width + lists.column[entry] : lists.row[entry];
        column[c] = lists.column[entry];
      }
      for (Index index = part; index < g.tile.tiles(); index += g.parts) {
        const SparsePlace place = sparse_place(g.tile, index);
        const Index images = least<Index>(g.batch - place.first_image, g.tile.images);
        const int source_y = place.y * g.y.source_step + g.y.source_shift;
        const int source_x = place.x * g.x.source_step + g.x.source_shift;
        const T* from = input + place.first_image * g.input.batch + kernel / g.kernels_per_input * g.input.channel;
        const T* grads = grad + place.first_image * g.grad.batch + kernel * g.grad.channel;
        __syncthreads();
        if (g.tile.staged) {
          fill_plane(plane, g.tile, from, g.input, images, source_y, source_x, g.y.source_size, g.x.source_size);
        }
        for (int pixel = threadIdx.x; pixel < kTilePixels; pixel += kGradThreads) {
          const int image = pixel / inner;
          const int y = place.y + pixel % inner / g.tile.width, x = place.x + pixel % inner % g.tile.width;
          const bool exists = image < images && y < g.y.target_size && x < g.x.target_size;
          tile_grad[pixel] =
              exists ? static_cast<S>(grads[image * g.grad.batch + y * g.grad.row + x * g.grad.column]) : S(0);
        }
        __syncthreads();
        S held[kGradPixels];  // every warp holds the whole tile, and sees to every eighth cell
        CONVSWAP_UNROLL
        for (int i = 0; i < kGradPixels; ++i) held[i] = tile_grad[lane + 32 * i];
        for (int c = warp; c < cells; c += kGradThreads / 32) {
          S sum = 0;
          if (g.tile.staged) {
            const S* shifted = plane + row[c];
            CONVSWAP_UNROLL
            for (int i = 0; i < kGradPixels; ++i) {
              if (i % 4 == 0 && 32 * i >= g.tile.pixels()) break;
              sum += held[i] * shifted[at[i]];
            }
          } else {
            CONVSWAP_UNROLL
            for (int i = 0; i < kGradPixels; ++i) {
              const int pixel = lane + 32 * i, image = pixel / inner;
              const int y = source_y + pixel % inner / g.tile.width * g.y.source_step + row[c];
              const int x = source_x + pixel % inner % g.tile.width * g.x.source_step + column[c];
              if (image < images && y >= 0 && y < g.y.source_size && x >= 0 && x < g.x.source_size) {
                sum += held[i] * static_cast<S>(from[image * g.input.batch + y * g.input.row + x * g.input.column]);
              }
            }
          }
          for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
          if (lane == 0) total[c] += sum;
        }
      }
      __syncthreads();
      S* out = partial + (kernel * g.parts + part) * lists.capacity + first;
      for (int c = threadIdx.x; c < cells; c += kGradThreads) out[c] = total[c];
    }
  }
}

inline Launch sum_parts_launch(Index kernels, Index capacity) {
  return {ceil_div<Index>(kernels * capacity, kGradThreads), kGradThreads, 0};
}

// The sums, at their cells of the kernels' gradient (kernels, cells). Other cells are left as they are.
template <typename S>
__global__ void __launch_bounds__(kGradThreads)
    dcls_sum_parts(const S* partial, TapLists<S> lists, S* grad, Grid grid, int parts) {
  const Index all = grid.kernels * lists.capacity;
  for (Index i = static_cast<Index>(blockIdx.x) * kGradThreads + threadIdx.x; i < all;
       i += static_cast<Index>(gridDim.x) * kGradThreads) {
    const Index kernel = i / lists.capacity, place = i % lists.capacity;
    if (place >= lists.start[kernel * 2 + 1]) continue;
    S sum = 0;
    for (int part = 0; part < parts; ++part) sum += partial[(kernel * parts + part) * lists.capacity + place];
    const Index cell = static_cast<Index>(lists.row[i]) * grid.size[2] + lists.column[i];
    grad[kernel * grid.cells + cell] = sum;
  }
}

}  // namespace convswap
