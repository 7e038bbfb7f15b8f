// How the large depthwise ops are cut into blocks, threads and passes that fit the shared memory of any GPU.
#pragma once

#include "correlate.cuh"

namespace convswap {

constexpr int kMostThreads = 256;

// A depthwise convolution; pairs are height and width.
struct Depthwise {
  Index batch;
  int channels, multiplier;
  int size[2], kernel[2], stride[2], before[2], out[2];

  __host__ __device__ Index outputs() const { return static_cast<Index>(channels) * multiplier; }
  __host__ __device__ Index input_plane() const { return static_cast<Index>(size[0]) * size[1]; }
  __host__ __device__ Index output_plane() const { return static_cast<Index>(out[0]) * out[1]; }
  __host__ __device__ Index kernel_plane() const { return static_cast<Index>(kernel[0]) * kernel[1]; }
};

// Taps of a kernel axis at places phase, phase + stride, ...
__host__ __device__ inline int taps_of(int kernel, int stride, int phase) {
  return phase < kernel ? (kernel - 1 - phase) / stride + 1 : 0;
}

inline void halve(int& value) { value = (value + 1) / 2; }

inline int round_up(int a, int b) { return ceil_div(a, b) * b; }

// Columns of a phase of a tile that `threads` patches and so many taps read. Of few threads side by side, the next ones
// read another line: a pitch that is odd in units of 4 keeps them off each other's banks.
inline int tile_columns(int threads, int taps) {
  const int columns = threads * kColumns + round_up(taps, 4);
  return threads < 8 && columns % 8 == 0 ? columns + 4 : columns;
}

// Threads that load a line side by side, as a power of two.
inline int lane_bits(int width) { return width <= 8 ? 3 : width <= 16 ? 4 : 5; }

// Lines of a tile that can lie inside an image.
inline int lines_stored(int lines, int size, int stride, int step) {
  const Index inside = step == stride ? size : (static_cast<Index>(size) / stride + 2) * step;
  return static_cast<int>(least<Index>(lines, most<Index>(inside, 1)));
}

// Rows of a patch for so many rows in all: patches of more rows cost less a row, but the last ones may hang over.
inline int patch_rows(int rows) {
  const int choices[3] = {7, 4, 1}, costs[3] = {20, 21, 30};
  int best = 0;
  Index least_cost = -1;
  for (int i = 0; i < 3; ++i) {
    const Index cost = static_cast<Index>(round_up(rows, choices[i])) * costs[i];
    if (least_cost >= 0 && cost >= least_cost) continue;
    least_cost = cost;
    best = choices[i];
  }
  return best;
}

// For the ops that compute images: blocks of `across` x `down` patches in each of some images of one channel.
struct ImagePlan {
  int rows;  // of a patch
  int across, down, tiles[2];
  Index groups;                    // of images
  int step;                        // lines of the tile from one output row to the next
  int taps_down, phases, taps;     // what a pass takes: kernel rows, phases of columns, taps of each phase
  int taps_pitch;
  TileShape tile;
  Launch launch;
};

// Element_size is that of a sum; planes: independent channels (and residues) to do; out, stride: of the correlation;
// kernel_rows, phases and taps of a phase: of the kernel.
inline ImagePlan plan_images(int element_size, Index batch, Index planes, const int out[2], const int size[2],
                             const int stride[2], int kernel_rows, int phases, int taps, int shared_bytes) {
  ImagePlan p{};
  p.rows = patch_rows(out[0]);
  const int need[2] = {ceil_div(out[0], p.rows), ceil_div(out[1], kColumns)};
  const int most_across = need[0] == 1 ? 64 : 16;
  p.across = ceil_div(need[1], ceil_div(need[1], most_across));
  const int most_down = most(1, least(kMostThreads / p.across, 128 / p.rows));
  p.down = ceil_div(need[0], ceil_div(need[0], most_down));
  p.tile.images = static_cast<int>(most<Index>(1, least<Index>(batch, kMostThreads / (p.across * p.down))));
  p.taps_down = kernel_rows;
  p.phases = phases;
  p.taps = taps;
  while (true) {
    p.step = least(stride[0], p.taps_down);
    const int lines = (p.down * p.rows - 1) * p.step + p.taps_down;
    p.tile.lines = lines_stored(lines, size[0], stride[0], p.step);
    p.tile.phases = p.phases;
    p.tile.columns = tile_columns(p.across, p.taps);
    p.taps_pitch = round_up(p.taps, 4);
    const Index kept = static_cast<Index>(p.tile.images) * p.tile.lines * p.phases * p.tile.columns;
    const Index bytes = element_size * (kept + static_cast<Index>(p.phases) * p.taps_down * p.taps_pitch);
    if (bytes <= shared_bytes) {
      p.launch.shared_bytes = static_cast<int>(bytes);
      break;
    }
    if (p.tile.images > 1) {
      --p.tile.images;
    } else if (p.taps_down > 8) {
      halve(p.taps_down);
    } else if (p.down * p.rows > 16 && p.down > 1) {
      halve(p.down);
    } else if (p.phases > 1) {
      halve(p.phases);
    } else if (p.taps > 4) {
      halve(p.taps);
    } else if (p.taps_down > 1) {
      halve(p.taps_down);
    } else if (p.down > 1) {
      halve(p.down);
    } else {
      halve(p.across);
    }
  }
  p.tile.lane_bits = lane_bits(p.tile.line_pitch());
  p.tiles[0] = ceil_div(need[0], p.down);
  p.tiles[1] = ceil_div(need[1], p.across);
  p.groups = ceil_div<Index>(batch, p.tile.images);
  p.launch.blocks = planes * p.groups * p.tiles[0] * p.tiles[1];
  p.launch.threads = round_up(p.across * p.down * p.tile.images, 32);
  return p;
}

inline ImagePlan plan_forward(int element_size, const Depthwise& d, int shared_bytes = kSharedBytes) {
  return plan_images(element_size, d.batch, d.outputs(), d.out, d.size, d.stride, d.kernel[0],
                     least(d.stride[1], d.kernel[1]), taps_of(d.kernel[1], d.stride[1], 0), shared_bytes);
}

// Pixels of the input that are a stride apart get their gradient from the same taps: a correlation of stride 1.
inline ImagePlan plan_input_grad(int element_size, const Depthwise& d, int shared_bytes = kSharedBytes) {
  const int out[2] = {ceil_div(d.size[0], d.stride[0]), ceil_div(d.size[1], d.stride[1])}, one[2] = {1, 1};
  const Index residues = static_cast<Index>(least(d.stride[0], d.size[0])) * least(d.stride[1], d.size[1]);
  return plan_images(element_size, d.batch, d.channels * residues, out, d.out, one,
                     taps_of(d.kernel[0], d.stride[0], 0), 1, taps_of(d.kernel[1], d.stride[1], 0), shared_bytes);
}

// For the gradient to the weight: a block has `across` x `down` patches of one phase of a channel's kernel, several
// times over, in slices: the images of a pass, each cut into segments. Several blocks may share a channel's passes.
struct WeightPlan {
  int rows, across, down, tiles[2], phases[2];
  int segments[2], segment[2];
  int out_rows, out_columns, bands[2];  // part of the output of a pass, and parts
  Index groups, passes, splits;
  TileShape tile, taps;
  Launch launch;
};

inline WeightPlan plan_weight_grad(int element_size, const Depthwise& d, int shared_bytes = kSharedBytes) {
  WeightPlan p{};
  const int kernel[2] = {taps_of(d.kernel[0], d.stride[0], 0), taps_of(d.kernel[1], d.stride[1], 0)};
  p.rows = patch_rows(kernel[0]);
  for (int axis = 0; axis < 2; ++axis) p.phases[axis] = least(d.stride[axis], d.kernel[axis]);
  const int need[2] = {ceil_div(kernel[0], p.rows), ceil_div(kernel[1], kColumns)};
  const int patch_bytes = p.rows * kColumns * element_size;
  const int threads = least(kMostThreads, shared_bytes / patch_bytes / 32 * 32);  // slices meet in shared memory
  p.across = ceil_div(need[1], ceil_div(need[1], 16));
  p.down = ceil_div(need[0], ceil_div(need[0], most(1, least(threads / p.across, 64 / p.rows))));
  int images = static_cast<int>(most<Index>(1, least<Index>(d.batch, threads / (p.across * p.down))));
  for (int axis = 0; axis < 2; ++axis) p.bands[axis] = most(1, ceil_div(d.out[axis], 64));
  Index bytes;
  while (true) {
    p.out_rows = most(1, ceil_div(d.out[0], p.bands[0]));
    p.out_columns = most(1, ceil_div(d.out[1], p.bands[1]));
    const int lines = lines_stored(p.down * p.rows - 1 + p.out_rows, d.size[0], d.stride[0], 1);
    p.tile = {images, lines, 1, tile_columns(p.across, p.out_columns), 0};
    p.taps = {images, p.out_rows, 1, round_up(p.out_columns, 4), 0};
    bytes = static_cast<Index>(element_size) * (p.tile.size() + p.taps.size());
    if (bytes <= shared_bytes) break;
    if (images > 1) {
      --images;
    } else if (p.out_rows > 8 || (p.out_columns <= 4 && p.out_rows > 1)) {
      p.bands[0] *= 2;
    } else if (p.out_columns > 4) {
      p.bands[1] *= 2;
    } else {
      halve(p.down > 1 ? p.down : p.across);
    }
  }
  p.tiles[0] = ceil_div(need[0], p.down);
  p.tiles[1] = ceil_div(need[1], p.across);
  for (int axis = 0; axis < 2; ++axis) {
    p.bands[axis] = most(1, ceil_div(d.out[axis], axis == 0 ? p.out_rows : p.out_columns));
  }
  p.tile.lane_bits = lane_bits(p.tile.columns);
  p.taps.lane_bits = lane_bits(p.taps.columns);
  const int slices = threads / (p.across * p.down);
  // Segments as small as do not make patches wait for their first lines and columns.
  p.segments[0] = most(1, least(slices / images, p.out_rows / p.rows));
  p.segments[1] = most(1, least(slices / images / p.segments[0], p.out_columns / 16));
  p.segment[0] = ceil_div(p.out_rows, p.segments[0]);
  p.segment[1] = round_up(ceil_div(p.out_columns, p.segments[1]), 4);
  p.segments[0] = ceil_div(p.out_rows, p.segment[0]);
  p.segments[1] = ceil_div(p.out_columns, p.segment[1]);
  p.groups = ceil_div<Index>(d.batch, images);
  p.passes = p.groups * p.bands[0] * p.bands[1];
  const Index blocks = d.outputs() * p.phases[0] * p.phases[1] * p.tiles[0] * p.tiles[1];
  p.splits = blocks ? most<Index>(1, least(p.passes, ceil_div<Index>(1024, blocks))) : 1;  // a large GPU runs as many
  p.launch.blocks = blocks * p.splits;
  const int used = p.across * p.down * images * p.segments[0] * p.segments[1];
  p.launch.threads = round_up(used, 32);
  p.launch.shared_bytes = static_cast<int>(most<Index>(bytes, static_cast<Index>(used) * patch_bytes));
  return p;
}

// Of the second step of the gradient to the weight, where there is one: a thread adds up the splits of an element.
inline Launch plan_sum(Index elements) { return {ceil_div<Index>(elements, kMostThreads), kMostThreads, 0}; }

}  // namespace convswap
