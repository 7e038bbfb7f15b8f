// Convolutions whose kernels are generated for each sample and pixel: what they are, and how threads share the work.
#pragma once

#include "common.cuh"

namespace convswap {

constexpr int kGuidedThreads = 128;
constexpr Index kGuidedFull = 1 << 17;  // threads that keep a large GPU busy

// Kernels are planes of *out numbers; from one sample, input of a group, tap and output to the next it is so many
// numbers. Pairs are height and width.
struct Guided {
  Index batch;
  int groups, inputs, outputs;  // of a group the last two
  int size[2], kernel[2], stride[2], dilation[2], before[2], out[2];
  Index sample_step, input_step, tap_step, output_step;

  __host__ __device__ Index input_plane() const { return static_cast<Index>(size[0]) * size[1]; }
  __host__ __device__ Index output_plane() const { return static_cast<Index>(out[0]) * out[1]; }
  __host__ __device__ Index channels() const { return static_cast<Index>(groups) * inputs; }
  __host__ __device__ Index all_outputs() const { return static_cast<Index>(groups) * outputs; }
};

// Kernels (batch, outputs, taps, *out), of groups of one input.
inline void lay_out_by_output(Guided& d) {
  const Index taps = static_cast<Index>(d.kernel[0]) * d.kernel[1];
  d.tap_step = d.output_plane();
  d.output_step = taps * d.tap_step;
  d.sample_step = d.all_outputs() * d.output_step;
  d.input_step = 0;
}

// Kernels (batch, inputs, taps, groups outputs, *out).
inline void lay_out_by_input(Guided& d) {
  const Index taps = static_cast<Index>(d.kernel[0]) * d.kernel[1];
  d.output_step = d.output_plane();
  d.tap_step = d.all_outputs() * d.output_step;
  d.input_step = taps * d.tap_step;
  d.sample_step = d.inputs * d.input_step;
}

// A number that others are divided by: those of 31 bits in a few instructions, as n / value is the upper part of n
// times its reciprocal, rounded up.
struct Divisor {
  Index value;
  unsigned factor;
  int shift;

  __host__ __device__ Divisor(Index value = 1) : value(value), factor(0), shift(0) {
    if (value >> 31) return;  // larger than such a number: the quotient is 0
    while ((Index{1} << shift) < value) ++shift;
    factor = static_cast<unsigned>(((1ull << (31 + shift)) + value - 1) / value);
  }

  // The last digit of n in base `value`, which is taken off it.
  __device__ Index take(Index& n) const {
    const Index digit = n % value;
    n /= value;
    return digit;
  }
  __device__ Index take(unsigned& n) const {  // of 31 bits
    const unsigned whole = n;
    n = static_cast<unsigned>((static_cast<unsigned long long>(whole) * factor) >> (31 + shift));
    return whole - n * static_cast<unsigned>(value);
  }
};

inline Launch guided_launch(Index items) { return {ceil_div<Index>(items, kGuidedThreads), kGuidedThreads, 0}; }

// Items of a side that a thread has: several, which share what they read, where enough threads remain.
inline int guided_block(int count, int most_items, Index others, Index enough) {
  return count > 1 && ceil_div(count, most_items) * others >= enough ? most_items : 1;
}

// Pixels that one access brings: 16 bytes, or 8 of halves, so that the pixels of the image, which are read one by one,
// do not cost more than the kernels.
template <typename T>
constexpr int kGuidedPixels = sizeof(T) == 8 ? 2 : 4;

// A thread has some pixels of the output, one behind the other, for some outputs of a group.
struct GuidedPixels {
  int pixels;
  bool window;  // they lie in a row, and taps of a row read next to each other
  bool three;   // so they do, and the kernel is 3x3
  int block;    // outputs
  Divisor vectors, columns, blocks, groups;
  Index items;
  Launch launch;
};

// most_pixels: what one access brings if memory is aligned, else 1.
inline GuidedPixels plan_guided_pixels(const Guided& d, int most_pixels, int most_block, Index enough = kGuidedFull) {
  GuidedPixels p{};
  p.pixels = d.output_plane() % most_pixels == 0 ? most_pixels : 1;
  p.window = p.pixels > 1 && d.out[1] % p.pixels == 0 && d.stride[1] == 1 && d.dilation[1] == 1;
  p.three = p.window && d.kernel[0] == 3 && d.kernel[1] == 3;
  const Index vectors = d.output_plane() / p.pixels;
  p.block = guided_block(d.outputs, most_block, vectors * d.groups * d.batch, enough);
  p.vectors = Divisor(vectors);
  p.columns = Divisor(d.out[1]);
  p.blocks = Divisor(ceil_div(d.outputs, p.block));
  p.groups = Divisor(d.groups);
  p.items = vectors * p.blocks.value * d.groups * d.batch;
  p.launch = guided_launch(p.items);
  return p;
}

constexpr int kGuidedPair = 2;  // pixels of the input that a thread has

// For the gradient to the input. Pixels that lie a stride apart get theirs through the same taps, every `step`th of an
// axis, from outputs that lie `move` apart. A thread has some such pixels for some inputs of a group.
struct GuidedReach {
  int step[2], move[2];
  bool window;  // outputs of a row of taps lie next to each other
  bool three;   // so they do, the kernel is 3x3 and all of it reaches every pixel
  int block;    // inputs
  Divisor pairs, rows, residues[2], blocks, groups;
  Index items;
  Launch launch;
};

inline int greatest_divisor(int a, int b) { return b == 0 ? a : greatest_divisor(b, a % b); }

inline GuidedReach plan_guided_reach(const Guided& d, int most_block, Index enough = kGuidedFull) {
  GuidedReach p{};
  int places[2];
  for (int axis = 0; axis < 2; ++axis) {
    const int common = greatest_divisor(d.stride[axis], d.dilation[axis]);
    p.step[axis] = d.stride[axis] / common;
    p.move[axis] = d.dilation[axis] / common;
    p.residues[axis] = Divisor(least(d.stride[axis], d.size[axis]));
    places[axis] = ceil_div(d.size[axis], d.stride[axis]);
  }
  p.window = p.move[1] == 1;
  p.three = d.kernel[0] == 3 && d.kernel[1] == 3;
  for (int axis = 0; axis < 2; ++axis) p.three = p.three && d.stride[axis] == 1 && d.dilation[axis] == 1;
  p.pairs = Divisor(ceil_div(places[1], kGuidedPair));
  p.rows = Divisor(places[0]);
  p.groups = Divisor(d.groups);
  const Index others =
      p.pairs.value * p.rows.value * p.residues[0].value * p.residues[1].value * d.groups * d.batch;
  p.block = guided_block(d.inputs, most_block, others, enough);
  p.blocks = Divisor(ceil_div(d.inputs, p.block));
  p.items = others * p.blocks.value;
  p.launch = guided_launch(p.items);
  return p;
}

}  // namespace convswap
