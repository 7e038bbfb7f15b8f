// How the sparse path of DCLS cuts images into tiles, and the piece of another image that a tile looks at. Device code
// without host includes.
#pragma once

#include "common.cuh"

namespace convswap {

// Along an axis: pixel q of a tile is target pixel q * target_step + phase - target_shift, and a tap on it looks at
// source pixel q * source_step + tap + source_shift.
struct SparseAxis {
  int source_size, target_size;
  int source_step, target_step;
  int source_shift, target_shift;
  int first_tap, taps;  // the range that taps are in

  // The first q whose target pixel exists.
  __host__ __device__ int first(int phase) const {
    const int before = target_shift - phase;
    return before > 0 ? ceil_div(before, target_step) : -(-before / target_step);
  }
  __host__ __device__ int count() const { return ceil_div(target_size, target_step); }
};

inline SparseAxis output_axis(int input, int output, int kernel, int stride, int padding) {
  return {input, output, stride, 1, -padding, 0, 0, kernel};
}

// Mirrored taps: input pixel q * stride + phase - padding is reached from output pixel q - cell / stride.
inline SparseAxis input_grad_axis(int input, int output, int kernel, int stride, int padding) {
  const int reach = (kernel - 1) / stride;
  return {output, input, 1, stride, 0, padding, -reach, reach + 1};
}

// Offsets of neighbours, and the size, of a batch of images.
struct SparseImages {
  Index batch, channel, row, column;
};

constexpr int kTilePixels = 1024;
constexpr int kPlaneBytes = 32 * 1024;

// A tile of pixels, in one image or, where images are small, in several that it covers; and the plane of source pixels,
// zeros around them, that all its taps lie in.
struct SparseTile {
  int height, width, images;
  int down, across;  // tiles of an image
  Index groups;      // of images
  int plane_height, plane_width;
  bool staged;  // the plane fits into shared memory

  __host__ __device__ int pixels() const { return height * width * images; }
  __host__ __device__ int plane() const { return plane_height * plane_width; }
  __host__ __device__ Index tiles() const { return groups * down * across; }
};

inline SparseTile sparse_tile(const SparseAxis& y, const SparseAxis& x, Index batch, int value_size,
                              int plane_bytes = kPlaneBytes) {
  const Index room = plane_bytes / value_size;
  const int rows = most(y.count(), 1), columns = most(x.count(), 1);
  SparseTile tile;
  for (int pixels = kTilePixels;; pixels /= 2) {
    const bool smallest = pixels < 64;  // not even a small tile has room: no plane, so any tile will do
    if (smallest) pixels = kTilePixels;
    const int widest = most(pixels >= 1024 ? 32 : pixels >= 256 ? 16 : 8, pixels / rows);
    tile.across = ceil_div(columns, least(widest, columns));
    tile.width = ceil_div(columns, tile.across);
    tile.down = ceil_div(rows, most(least(pixels / tile.width, rows), 1));
    tile.height = ceil_div(rows, tile.down);
    const Index height = static_cast<Index>(tile.height - 1) * y.source_step + y.taps;
    const Index width = static_cast<Index>(tile.width - 1) * x.source_step + x.taps;
    tile.staged = height <= room && width <= room && height * width <= room;
    tile.plane_height = tile.staged ? static_cast<int>(height) : 0;
    tile.plane_width = tile.staged ? static_cast<int>(width) : 0;
    tile.images = 1;
    if (tile.down == 1 && tile.across == 1) {
      const Index fitting = tile.staged ? room / (height * width) : 1;
      const Index images = least<Index>(kTilePixels / (tile.height * tile.width), fitting);
      tile.images = static_cast<int>(most<Index>(least(images, batch), 1));
    }
    if (tile.staged || smallest) break;
  }
  tile.groups = ceil_div<Index>(batch, tile.images);
  return tile;
}

// Where a block is: its images, and the first q of its tile counted from that of the phase.
struct SparsePlace {
  Index first_image;
  int y, x;
};

__device__ inline SparsePlace sparse_place(const SparseTile& tile, Index index) {
  const int across = static_cast<int>(index % tile.across);
  index /= tile.across;
  const int down = static_cast<int>(index % tile.down);
  return {index / tile.down * tile.images, down * tile.height, across * tile.width};
}

// Copies what a tile looks at into shared memory. `y` and `x` are the source pixel of the plane's first.
template <typename T>
__device__ void fill_plane(Sum<T>* plane, const SparseTile& tile, const T* source, const SparseImages& at,
                           Index images, int y, int x, int height, int width) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int line = threadIdx.x / 32; line < tile.plane_height * tile.images; line += warps) {
    const int image = line / tile.plane_height, row = y + line % tile.plane_height;
    const bool exists = image < images && row >= 0 && row < height;
    const T* from = source + image * at.batch + row * at.row;
    for (int i = lane; i < tile.plane_width; i += 32) {
      const int column = x + i;
      const bool inside = exists && column >= 0 && column < width;
      plane[line * tile.plane_width + i] = inside ? static_cast<Sum<T>>(from[column * at.column]) : Sum<T>(0);
    }
  }
}

}  // namespace convswap
