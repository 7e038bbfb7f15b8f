// Which numbers of kernels and images meet in the sums of a dynamic convolution, and how the sums are cut up.
#pragma once

#include <memory>
#include <optional>

#include "dynamic_panels.h"
#include "dynamic_product.h"
#include "guided_problem.h"

namespace convswap::dynamic {

using guided::Geometry;
using guided::Ints;
using guided::Scratch;

// Steps between numbers of the stacked kernels, contiguous or channels_last.
struct KernelSteps {
  int64_t kernel, output, input, row, column;

  KernelSteps(const Geometry& g, int64_t outputs, int64_t inputs, bool last)
      : kernel(outputs * inputs * g.taps()),
        output(inputs * g.taps()),
        input(last ? 1 : g.taps()),
        row(g.kernel_width * (last ? inputs : 1)),
        column(last ? inputs : 1) {}
};

// The channels of a group, and what there is of everything else.
struct Sizes {
  int64_t batch, kernels, groups, inputs, outputs;

  int64_t all_inputs() const { return groups * inputs; }
  int64_t all_outputs() const { return groups * outputs; }
};

// Images, contiguous or channels_last, in the precision that is computed in and with zeros around them. Those that are
// so already are read where they are.
template <typename T>
struct Images {
  std::unique_ptr<Scratch<T>> copies;
  const T* data;
  int64_t sample, channel, row, column;

  template <typename S>
  Images(const S* from, bool last, int64_t batch, int64_t channels, int64_t height, int64_t width, const Ints& around) {
    const int64_t rows = height + around[0] + around[1], columns = width + around[2] + around[3];
    sample = channels * rows * columns, column = last ? channels : 1, row = columns * column;
    channel = last ? 1 : rows * columns;
    if constexpr (std::is_same_v<S, T>) {
      data = from;
      if (around == Ints{0, 0, 0, 0}) return;
    }
    copies = std::make_unique<Scratch<T>>(batch * sample);
    T* const to = copies->get();
    data = to;
    const int64_t planes = last ? batch : batch * channels, before = around[2] * column, own = width * column;
    torch::stable::parallel_for(0, planes, guided::grain(rows * row), [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        T* const first = to + plane * rows * row;
        std::fill_n(first, around[0] * row, T(0));
        for (int64_t y = 0; y < height; ++y) {
          T* const at = first + (around[0] + y) * row;
          std::fill_n(at, before, T(0));
          run_at_best_level<guided::WidenRun>(from + (plane * height + y) * own, own, at + before);
          std::fill_n(at + before + own, row - before - own, T(0));
        }
        std::fill_n(first + (around[0] + height) * row, around[1] * row, T(0));
      }
    });
  }
};

// Terms of a sum: where in the kernels their numbers are, and how far from a pixel what they are multiplied with is.
struct Terms {
  Ints kernel, source;
};

// Pixels that take the same terms: what they read, from the start of an image on, and where they lie.
struct Pixels {
  Ints source, place;

  int64_t count() const { return static_cast<int64_t>(source.size()); }
};

struct Phase {
  Terms terms;
  Pixels pixels;
};

// All pairs of a channel and a tap, those first side by side that are so in the kernels.
inline Terms all_terms(const Terms& taps, int64_t channels, int64_t kernel_step, int64_t source_step) {
  Terms found;
  const int64_t count = static_cast<int64_t>(taps.kernel.size());
  const auto add = [&](int64_t channel, int64_t tap) {
    found.kernel.push_back(channel * kernel_step + taps.kernel[tap]);
    found.source.push_back(channel * source_step + taps.source[tap]);
  };
  if (kernel_step == 1) {
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t c = 0; c < channels; ++c) add(c, t);
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t t = 0; t < count; ++t) add(c, t);
    }
  }
  return found;
}

// Outputs, which read padded images.
template <typename T>
Phase output_phase(const Geometry& g, const KernelSteps& k, const Images<T>& source, int64_t inputs, int64_t pixel) {
  Phase phase;
  Terms taps;
  for (int64_t i = 0; i < g.kernel_height; ++i) {
    for (int64_t j = 0; j < g.kernel_width; ++j) {
      taps.kernel.push_back(i * k.row + j * k.column);
      taps.source.push_back(i * g.dilation_y * source.row + j * g.dilation_x * source.column);
    }
  }
  for (int64_t y = 0; y < g.out_height; ++y) {
    for (int64_t x = 0; x < g.out_width; ++x) {
      phase.pixels.source.push_back(y * g.stride_y * source.row + x * g.stride_x * source.column);
      phase.pixels.place.push_back((y * g.out_width + x) * pixel);
    }
  }
  phase.terms = all_terms(taps, inputs, k.input, source.channel);
  return phase;
}

// One axis of the gradient to the input. Tap i of output y is at pixel y * stride + i * dilation of the padded input:
// the pixels of one residue by the stride take the taps of that residue, from outputs that are shift(i) before.
struct GradAxis {
  int64_t size, out, kernel, stride, dilation, before;

  int64_t shift(int64_t i) const { return i * dilation / stride; }
  // Zeros that are read around the outputs.
  int64_t zeros_before() const { return std::max<int64_t>(0, shift(kernel - 1) - before / stride); }
  int64_t zeros_behind() const { return std::max<int64_t>(0, (size - 1 + before) / stride + 1 - out); }
};

struct GradAxes {
  GradAxis y, x;

  explicit GradAxes(const Geometry& g)
      : y{g.height, g.out_height, g.kernel_height, g.stride_y, g.dilation_y, g.top},
        x{g.width, g.out_width, g.kernel_width, g.stride_x, g.dilation_x, g.left} {}
  Ints zeros() const { return {y.zeros_before(), y.zeros_behind(), x.zeros_before(), x.zeros_behind()}; }
};

// Pixels of the input, which read gradients with zeros around.
template <typename T>
std::vector<Phase> input_phases(const Geometry& g, const KernelSteps& k, const Images<T>& source, int64_t outputs,
                                int64_t pixel) {
  const GradAxes axes(g);
  std::vector<Phase> phases;
  for (int64_t residue_y = 0; residue_y < g.stride_y; ++residue_y) {
    for (int64_t residue_x = 0; residue_x < g.stride_x; ++residue_x) {
      Phase phase;
      Terms taps;
      for (int64_t i = 0; i < g.kernel_height; ++i) {
        for (int64_t j = 0; j < g.kernel_width; ++j) {
          if (i * g.dilation_y % g.stride_y != residue_y || j * g.dilation_x % g.stride_x != residue_x) continue;
          taps.kernel.push_back(i * k.row + j * k.column);
          taps.source.push_back(-axes.y.shift(i) * source.row - axes.x.shift(j) * source.column);
        }
      }
      for (int64_t y = 0; y < g.height; ++y) {
        if ((y + g.top) % g.stride_y != residue_y) continue;
        const int64_t row = (y + g.top) / g.stride_y + axes.y.zeros_before();
        for (int64_t x = 0; x < g.width; ++x) {
          if ((x + g.left) % g.stride_x != residue_x) continue;
          const int64_t column = (x + g.left) / g.stride_x + axes.x.zeros_before();
          phase.pixels.source.push_back(row * source.row + column * source.column);
          phase.pixels.place.push_back((y * g.width + x) * pixel);
        }
      }
      if (phase.pixels.count() == 0) continue;
      phase.terms = all_terms(taps, outputs, k.output, source.channel);
      phases.push_back(std::move(phase));
    }
  }
  return phases;
}

// Sizes of blocks, by shapes alone.
constexpr int64_t PANEL_BYTES = 1 << 14;   // of a mixed block, which is read for all pixels: for a first level cache
constexpr int64_t STACK_BYTES = 1 << 18;   // of the blocks that are mixed, and of the sums they add to: for a second

struct Blocks {
  int64_t vectors, width;  // of a panel
  int64_t terms;           // of a sum at a time

  Blocks(int64_t lanes, int64_t kernels, int64_t bytes)
      : vectors(lanes * bytes > vector_bytes() ? 2 : 1), width(vectors * vector_bytes() / bytes) {
    const int64_t row = width * bytes;
    terms = std::max<int64_t>(16, std::min(PANEL_BYTES / row, STACK_BYTES / (row * kernels)));
  }
};

inline int64_t parts(int64_t all, int64_t most) { return (all + most - 1) / most; }

// Calls each(first, count) for parts of almost one size, at most `most`.
template <typename F>
void cut(int64_t all, int64_t most, const F& each) {
  const int64_t pieces = parts(all, most);
  for (int64_t i = 0; i < pieces; ++i) each(all * i / pieces, all * (i + 1) / pieces - all * i / pieces);
}

}  // namespace convswap::dynamic
