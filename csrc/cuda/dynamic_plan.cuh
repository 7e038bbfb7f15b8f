// Convolutions with a kernel mixed for each sample: what they are, and how blocks share the work.
#pragma once

#include "guided_memory.cuh"

// A loop that is not to be unrolled, as all that it loads would be in flight at once, in more registers than there are.
#if defined(__CUDACC__)
#define CONVSWAP_ROLLED _Pragma("unroll 1")
#else
#define CONVSWAP_ROLLED
#endif

namespace convswap {

constexpr int kDynamicThreads = 256, kDynamicWarps = kDynamicThreads / 32;
constexpr Index kDynamicFull = 264;  // blocks that keep a large GPU busy
constexpr int kDynamicNarrow = 8;    // results of a group up to which tiles of a product would be mostly empty

// output_b = (sum_k attention_bk W_k) * input_b. Pairs are height and width. From one kernel, output, input of a group
// and tap of the weight to the next it is so many numbers.
struct Dynamic {
  Index batch;
  int kernels, groups, inputs, outputs;  // of a group the last two
  int size[2], kernel[2], stride[2], dilation[2], before[2], out[2];
  Index kernel_step, output_step, input_step, tap_step;

  __host__ __device__ int taps() const { return kernel[0] * kernel[1]; }
  __host__ __device__ Index input_plane() const { return static_cast<Index>(size[0]) * size[1]; }
  __host__ __device__ Index output_plane() const { return static_cast<Index>(out[0]) * out[1]; }
  __host__ __device__ Index channels() const { return static_cast<Index>(groups) * inputs; }
  __host__ __device__ Index all_outputs() const { return static_cast<Index>(groups) * outputs; }
};

// The weight (kernels groups outputs, inputs, *kernel) in C order, or with its inputs last.
inline void lay_out_weight(Dynamic& d, bool channels_last) {
  d.tap_step = channels_last ? d.inputs : 1;
  d.input_step = channels_last ? 1 : d.taps();
  d.output_step = static_cast<Index>(d.inputs) * d.taps();
  d.kernel_step = d.all_outputs() * d.output_step;
}

// What is computed: rows of results from channels of a source. Forward, results are outputs and the source is the
// input; turned, for the gradient to the input, results are inputs and the source is the gradient. Turned, pixels that
// lie a stride apart meet the same taps, every `step`th of an axis, on source pixels that lie `move` apart: such pixels
// are a residue.
struct DynamicView {
  bool turned;
  int rows, channels;                   // of a group
  int source[2], result[2];             // pixels
  Index row_step, channel_step;         // of the weight
  Index result_row_step, result_pixel;  // of the results
  bool taps_first;                      // taps of a channel follow each other in the reduction, or channels of a tap
  int step[2], move[2], residues[2];
  int most_taps;                        // that a result meets
  int most_places[2];                   // results of a residue

  __host__ __device__ Index source_plane() const { return static_cast<Index>(source[0]) * source[1]; }
  __host__ __device__ Index result_plane() const { return static_cast<Index>(result[0]) * result[1]; }
};

// Results in C order, or with their channels last.
inline DynamicView view_dynamic(const Dynamic& d, bool turned, bool channels_last) {
  DynamicView v{};
  v.turned = turned;
  v.rows = turned ? d.inputs : d.outputs;
  v.channels = turned ? d.outputs : d.inputs;
  v.row_step = turned ? d.input_step : d.output_step;
  v.channel_step = turned ? d.output_step : d.input_step;
  v.taps_first = d.tap_step == 1;
  v.most_taps = 1;
  for (int axis = 0; axis < 2; ++axis) {
    v.source[axis] = turned ? d.out[axis] : d.size[axis];
    v.result[axis] = turned ? d.size[axis] : d.out[axis];
    const int common = greatest_divisor(d.stride[axis], d.dilation[axis]);
    v.step[axis] = turned ? d.stride[axis] / common : 1;
    v.move[axis] = turned ? d.dilation[axis] / common : d.dilation[axis];
    v.residues[axis] = turned ? least(d.stride[axis], v.result[axis]) : 1;
    v.most_taps *= ceil_div(d.kernel[axis], v.step[axis]);
    v.most_places[axis] = turned ? ceil_div(v.result[axis], d.stride[axis]) : v.result[axis];
  }
  v.result_row_step = channels_last ? 1 : v.result_plane();
  v.result_pixel = channels_last ? static_cast<Index>(v.rows) * d.groups : 1;
  return v;
}

// One axis of a residue: its result v lies at v scale + start, and meets, for all j < count, source pixel
// v pace + first + j move through tap + j tap_step.
struct DynamicAxis {
  int count, tap, tap_step, places, scale, start, pace, first, move;

  __device__ DynamicAxis(const Dynamic& d, const DynamicView& v, int axis, int residue) {
    const int stride = d.stride[axis], dilation = d.dilation[axis], kernel = d.kernel[axis], step = v.step[axis];
    move = v.move[axis];
    if (!v.turned) {
      count = kernel, tap = 0, tap_step = 1, places = v.result[axis], scale = 1, start = 0;
      pace = stride, first = -d.before[axis];
      return;
    }
    const int place = residue + d.before[axis];
    int lowest = 0;
    while (lowest < least(step, kernel) && (place - lowest * dilation) % stride != 0) ++lowest;
    count = lowest < least(step, kernel) ? (kernel - 1 - lowest) / step + 1 : 0;
    tap = lowest + (count - 1) * step;
    tap_step = -step;
    places = (v.result[axis] - 1 - residue) / stride + 1;
    scale = stride, start = residue, pace = 1;
    first = count ? (place - tap * dilation) / stride : 0;
  }
};

// A block computes tiles of rows times columns; columns are pixels of a residue, of one sample or of several.
struct DynamicTiles {
  int pixels;                                         // columns that a sample has
  int step_count;                                     // steps through the reduction, at most, ...
  int split_steps;                                    // ... of which a block takes so many
  Index samples, tiles, residues, splits, row_tiles;  // counts; groups follow
  Launch launch;
};

// What forms of tiles there are, kRows by kColumns, in steps of kDepth.
template <typename T>
struct DynamicForm {
  static constexpr int columns = sizeof(T) == 8 ? 128 : 256;
  static constexpr int depth = sizeof(T) == 8 ? 8 : sizeof(T) == 4 ? 16 : 32;
};

// Whether a tile has columns of several samples: where it would be filled better.
inline bool shares_tile(const DynamicView& v, Index batch, int columns, int most_samples) {
  const Index pixels = static_cast<Index>(v.most_places[0]) * v.most_places[1];
  const int part = columns / most_samples;
  const Index alone = ceil_div<Index>(pixels, columns) * columns * batch;
  const Index shared = ceil_div<Index>(pixels, part) * part * ceil_div<Index>(batch, most_samples) * most_samples;
  return 5 * shared <= 4 * alone;
}

inline DynamicTiles plan_dynamic_tiles(const Dynamic& d, const DynamicView& v, int rows, int columns, int depth,
                                       int samples, Index enough) {
  DynamicTiles p{};
  const Index places = static_cast<Index>(v.most_places[0]) * v.most_places[1];
  p.pixels = columns / samples;
  p.samples = ceil_div<Index>(d.batch, samples);
  p.tiles = ceil_div<Index>(places, p.pixels);
  p.residues = static_cast<Index>(v.residues[0]) * v.residues[1];
  p.row_tiles = ceil_div(v.rows, rows);
  p.step_count = ceil_div(v.channels * v.most_taps, depth);
  const Index blocks = p.samples * p.tiles * p.residues * p.row_tiles * d.groups;
  // Each part of the reduction has enough steps to be worth the memory that its sums go through.
  constexpr int kFewest = 8, kMost = 16;
  const Index wanted = blocks ? ceil_div<Index>(enough, blocks) : 1;
  const Index splits = most<Index>(1, least<Index>(least<Index>(wanted, kMost), p.step_count / kFewest));
  p.split_steps = static_cast<int>(ceil_div<Index>(p.step_count, splits));
  p.splits = p.split_steps ? ceil_div(p.step_count, p.split_steps) : 1;
  p.launch.blocks = blocks * p.splits;
  p.launch.threads = kDynamicThreads;
  return p;
}

// Groups of few rows: a thread has kRows results at each of kPixels pixels; `span` threads have a tile.
struct DynamicNarrow {
  int span;
  int chunks;  // of the mixed kernel, at most
  Index samples, tiles, residues, row_tiles, units;
  Launch launch;
};

constexpr int kNarrowChunk = 64;  // numbers of a mixed row that are held together

inline DynamicNarrow plan_dynamic_narrow(const Dynamic& d, const DynamicView& v, int rows, int pixels, int sum_bytes) {
  DynamicNarrow p{};
  const Index places = static_cast<Index>(v.most_places[0]) * v.most_places[1];
  p.span = 32;
  while (p.span < kDynamicThreads && places > 2 * p.span * pixels) p.span *= 2;
  p.chunks = ceil_div(v.channels * v.most_taps, kNarrowChunk);
  p.tiles = ceil_div<Index>(places, p.span * pixels);
  p.residues = static_cast<Index>(v.residues[0]) * v.residues[1];
  p.row_tiles = ceil_div(v.rows, rows);
  p.samples = d.batch;
  p.units = p.tiles * p.residues * p.row_tiles * d.groups * d.batch;
  const int shared = kDynamicThreads / p.span;
  p.launch = {ceil_div<Index>(p.units, shared), kDynamicThreads, shared * kNarrowChunk * rows * sum_bytes};
  return p;
}

// The gradients to weight and attention. Items are samples' pixels, cut into chunks; each gives a gradient to the mixed
// kernel, of which a block has a tile (or, narrow, a warp has some taps) for some of the K kernels.
struct DynamicGrad {
  int chunk;                   // pixels of an item
  Index chunks, items;         // of a sample, of all
  Index row_tiles, column_tiles, kernel_tiles;
  Index units;                 // tiles of all groups: parts of an attention's gradient
  Index splits, split_items;
  Divisor columns;             // of the output
  Launch launch;
};

// Tiles of warps share a block. Splits' sums have to go through memory.
inline DynamicGrad plan_dynamic_grad(const Dynamic& d, int rows, int columns, int kernels, int depth, int tiles_a_block,
                                     Index enough) {
  DynamicGrad p{};
  const Index pixels = d.output_plane();
  constexpr Index kChunk = 2048;
  p.chunk = static_cast<int>(least<Index>(ceil_div<Index>(pixels, depth) * depth, kChunk));
  p.chunks = ceil_div<Index>(pixels, p.chunk);
  p.items = d.batch * p.chunks;
  p.row_tiles = ceil_div(d.outputs, rows);
  p.column_tiles = ceil_div<Index>(static_cast<Index>(d.inputs) * d.taps(), columns);
  p.kernel_tiles = ceil_div(d.kernels, kernels);
  p.units = p.row_tiles * p.column_tiles * d.groups;
  const Index blocks = ceil_div<Index>(p.units * p.kernel_tiles, tiles_a_block);
  const Index splits = least<Index>(p.items, blocks ? most<Index>(ceil_div<Index>(enough, blocks), 1) : 1);
  p.split_items = splits ? ceil_div<Index>(p.items, splits) : 0;
  p.splits = p.split_items ? ceil_div<Index>(p.items, p.split_items) : 1;
  p.columns = Divisor(most(d.out[1], 1));
  p.launch = {ceil_div<Index>(p.units * p.kernel_tiles * p.splits, tiles_a_block), kDynamicThreads, 0};
  return p;
}

}  // namespace convswap
