// From two images to taps: the gradient to the weight.
#pragma once

#include "large_depthwise_conv2d_memory.h"
#include "large_depthwise_conv2d_plan.h"

namespace convswap::lanes {

struct TapsPass {
  Geometry g;
  std::vector<Phase> phases;
  Padded source;
  int64_t source_row;

  explicit TapsPass(const Geometry& geometry) : g(geometry), phases(weight_grad_phases(g)) {
    for (const Phase& f : phases) {
      source.hold(InputColumns(g, &f - phases.data()).count, -f.shift, f.count - 1 + f.taps - 1 - f.shift);
    }
    source_row = source.length * g.column_stride;
  }

  // Rows of the input under the kernel for rows [from, to) of the gradient.
  int64_t input_from(int64_t from) const {
    return std::min(g.height, std::max<int64_t>(0, from * g.row_stride - g.top));
  }
  int64_t input_to(int64_t to) const {
    return std::max<int64_t>(0, std::min(g.height, (to - 1) * g.row_stride - g.top + g.kernel_height));
  }

  // Rows of the gradient to take at a time.
  int64_t band(const Kernels& k) const {
    const int64_t row = source_row * g.row_stride + g.out_width;
    const int64_t cached = (CACHED_BYTES / k.bytes - g.kernel_height * source_row) / std::max<int64_t>(1, row);
    return up(g.out_height, up(g.out_height, std::max<int64_t>(16, cached)));
  }

  int64_t most_rows(int64_t band) const {
    return std::max<int64_t>(0, std::min(g.height, (band - 1) * g.row_stride + g.kernel_height));
  }

  std::vector<int32_t> source_place(int64_t rows) const {
    std::vector<int32_t> place(rows * g.width);
    for (int64_t y = 0, i = 0; y < rows; y++) {
      for (int64_t x = 0; x < g.width; x++, i++) {
        const int64_t phase = (x + g.left) % g.column_stride;
        const int64_t column = (x + g.left) / g.column_stride - InputColumns(g, phase).first;
        place[i] = static_cast<int32_t>(y * source_row + phase * source.length + source.before + column);
      }
    }
    return place;
  }

  // Add what rows [from, to) of the gradient give to the sums, (kernel_height, kernel_width) vectors. `input` begins
  // with row input_from(from), `grad` with row `from`.
  void run(const Kernels& k, const Scratch& input, const Scratch& grad, char* sums, int64_t from, int64_t to) const {
    for (size_t index = 0; index < phases.size(); index++) {
      const int64_t count = phases[index].count, blocks = up(count, k.widest);
      for (int64_t i = 0; i < blocks; i++) {
        const int64_t x = count * i / blocks;
        strip(k, index, x, static_cast<int>(count * (i + 1) / blocks - x), input, grad, sums, from, to);
      }
    }
  }

 private:
  void strip(const Kernels& k, int64_t phase, int64_t x, int count, const Scratch& input, const Scratch& grad,
             char* sums, int64_t from, int64_t to) const {
    const Phase& f = phases[phase];
    const int64_t s = g.row_stride, most = block_rows(count, k.widest);
    const int64_t column = phase * source.length + source.before - f.shift + x;
    Block b{};
    b.add = true;
    b.out_row = s * g.kernel_width;
    b.out_column = f.out_step;
    b.length = f.taps;
    b.steady_step = g.out_width;
    b.sliding_step = s * source_row;
    for (int64_t residue = 0; residue < s; residue++) {
      // Rows s apart share a row of the input, under which the later one has the earlier row of the gradient.
      for (int64_t y = residue; y < g.kernel_height; y += most * s) {
        b.rows = static_cast<int>(std::min(most, up(g.kernel_height - y, s)));
        const int64_t first = up(g.top - y, s), last = down(g.height - 1 + g.top - y, s) + 1;
        for (int64_t r = 0; r < most; r++) {
          const int64_t row = r < b.rows ? r : 0;
          b.shift[r] = -row * g.out_width;
          b.first[r] = std::max(first, from + row);
          b.last[r] = std::min(last, to + row);
          if (b.first[r] >= b.last[r]) b.first[r] = b.last[r] = 0;
        }
        b.sliding = input.at((y - g.top - input_from(from)) * source_row + column);
        b.steady = grad.at(-from * g.out_width + f.first_tap);
        b.out = sums + (y * g.kernel_width + f.out_first + x * f.out_step) * k.bytes;
        k.correlate(count, b);
      }
    }
  }
};

}  // namespace convswap::lanes
