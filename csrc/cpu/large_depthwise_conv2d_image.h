// From images and taps to images: the forward op and, transposed, the gradient to the input.
#pragma once

#include "large_depthwise_conv2d_memory.h"
#include "large_depthwise_conv2d_plan.h"

namespace convswap::lanes {

struct ImagePass {
  Geometry g;
  bool transposed;
  std::vector<Phase> phases;
  // Whether taps slide over pixels that are steady, or the other way round: for images narrower than the kernel it is
  // fewer products. What slides is padded with zeros, so a pixel that is no number then reaches the ends of its rows.
  bool taps_slide;
  Padded source, tap;
  int64_t source_height, source_width, source_row, height, width;  // the source and the result
  std::vector<int32_t> tap_place;

  ImagePass(const Geometry& geometry, bool transposed)
      : g(geometry), transposed(transposed), phases(transposed ? input_grad_phases(g) : forward_phases(g)),
        source_height(transposed ? g.out_height : g.height), source_width(transposed ? g.out_width : g.width),
        height(transposed ? g.height : g.out_height), width(transposed ? g.width : g.out_width) {
    int64_t pixels = 0, taps = 0;
    for (const Phase& f : phases) pixels += f.count * f.width, taps += f.count * f.taps;
    taps_slide = pixels < taps;
    for (const Phase& f : phases) {
      if (taps_slide) {
        source.hold(f.width, 0, f.width - 1);
        tap.hold(f.taps, f.shift - (f.count - 1), f.width - 1 + f.shift);
      } else {
        source.hold(f.width, -f.shift, f.count - 1 + f.taps - 1 - f.shift);
        tap.hold(f.taps, 0, f.taps - 1);
      }
    }
    source_row = source.length * (transposed ? 1 : g.column_stride);
    place_taps();
  }

  int64_t tap_vectors() const { return tap_phase() * g.column_stride + 1; }

  // Rows of the source that rows [from, to) of the result are made from.
  int64_t source_from(int64_t from) const { return transposed ? grad_rows(from, 0) : image_rows(from, 0); }
  int64_t source_to(int64_t to) const { return transposed ? grad_rows(to - 1, 1) : image_rows(to - 1, 1); }

  // Rows of the result to make at a time.
  int64_t band(const Kernels& k, int64_t shares) const {
    const int64_t row = transposed ? source_row / g.row_stride : source_row * g.row_stride;
    const int64_t halo = g.kernel_height * (transposed ? row : source_row);
    const int64_t cached = (CACHED_BYTES / k.bytes - halo) / std::max<int64_t>(1, row + width);
    const int64_t shared = up(height, std::max<int64_t>(1, shares));
    return up(height, up(height, std::max<int64_t>(16, std::min(cached, shared))));
  }

  // Where the pixels of `rows` rows of the source go.
  std::vector<int32_t> source_place(int64_t rows) const {
    std::vector<int32_t> place(rows * source_width);
    for (int64_t y = 0, i = 0; y < rows; y++) {
      for (int64_t x = 0; x < source_width; x++, i++) {
        int64_t phase = 0, column = x;
        if (!transposed) {
          phase = (x + g.left) % g.column_stride;
          column = (x + g.left) / g.column_stride - InputColumns(g, phase).first;
        }
        place[i] = static_cast<int32_t>(y * source_row + phase * source.length + source.before + column);
      }
    }
    return place;
  }

  // Rows [from, to) of the result, from a source whose first row in memory is `first_row`.
  void run(const Kernels& k, const Scratch& pixels, int64_t first_row, const Scratch& taps, const Scratch& out,
           int64_t from, int64_t to, bool add) const {
    for (size_t index = 0; index < phases.size(); index++) {
      const Phase& f = phases[index];
      const bool more = add || (!transposed && index > 0);
      const int64_t blocks = up(f.count, k.widest);
      for (int64_t i = 0; i < blocks; i++) {
        const int64_t x = f.count * i / blocks, count = f.count * (i + 1) / blocks - x;
        strip(k, index, x, static_cast<int>(count), pixels, first_row, taps, out, from, to, more);
      }
    }
  }

 private:
  int64_t tap_phase() const { return g.kernel_height * tap.length; }

  void place_taps() {
    tap_place.resize(g.kernel_height * g.kernel_width);
    for (int64_t y = 0, i = 0; y < g.kernel_height; y++) {
      for (int64_t x = 0; x < g.kernel_width; x++, i++) {
        const int64_t phase = x % g.column_stride, t = x / g.column_stride;
        const Phase& f = phases[phase];
        const int64_t j = (transposed ? taps_of(g, phase) - 1 - t : t) - f.first_tap;
        const int64_t place = phase * tap_phase() + y * tap.length + tap.before + j;
        tap_place[i] = static_cast<int32_t>(0 <= j && j < f.taps ? place : tap_phase() * g.column_stride);
      }
    }
  }

  // First row of the source, or behind the last, that is under the kernel for a row of the result.
  int64_t image_rows(int64_t y, bool end) const {
    const int64_t start = y * g.row_stride - g.top;
    return end ? std::min(g.height, start + g.kernel_height) : std::max<int64_t>(0, start);
  }
  int64_t grad_rows(int64_t y, bool end) const {
    if (end) return std::min(g.out_height, down(y + g.top, g.row_stride) + 1);
    return std::max<int64_t>(0, up(y + g.top - g.kernel_height + 1, g.row_stride));
  }

  // One block of columns in all rows.
  void strip(const Kernels& k, int64_t phase, int64_t x, int count, const Scratch& pixels, int64_t first_row,
             const Scratch& taps, const Scratch& out, int64_t from, int64_t to, bool add) const {
    const Phase& f = phases[phase];
    const int64_t by = transposed ? g.row_stride : 1, most = block_rows(count, k.widest);
    const int64_t pixel = (transposed ? 0 : phase * source.length) + source.before - first_row * source_row;
    const int64_t tap0 = phase * tap_phase() + tap.before;
    Block b{};
    b.add = add;
    b.out_row = by * width;
    b.out_column = taps_slide ? -f.out_step : f.out_step;
    b.length = taps_slide ? f.width : f.taps;
    for (int64_t residue = 0; residue < by; residue++) {
      for (int64_t y = from + residue; y < to; y += most * by) {
        b.rows = static_cast<int>(std::min(most, up(to - y, by)));
        const int64_t rest = (y + g.top) % g.row_stride, whole = (y + g.top) / g.row_stride, s = g.row_stride;
        for (int64_t r = 0; r < most; r++) {
          const int64_t row = r < b.rows ? r : 0;
          range(y + row * by, b.first[r], b.last[r]);
          if (taps_slide) {
            b.shift[r] = row * (transposed ? 1 : s) * source_row;
          } else {
            b.shift[r] = row * (transposed ? s : -s) * tap.length;
          }
        }
        int64_t steady, sliding;
        if (taps_slide) {
          b.sliding_step = (transposed ? s : 1) * tap.length;
          b.steady_step = transposed ? -source_row : source_row;
          sliding = tap0 + (transposed ? rest * tap.length : 0) + f.shift - x - (count - 1);
          steady = pixel + (transposed ? whole : y * s - g.top) * source_row;
        } else {
          b.sliding_step = source_row;
          b.steady_step = (transposed ? -s : 1) * tap.length;
          sliding = pixel - f.shift + x;
          steady = tap0 + (transposed ? y + g.top : g.top - y * s) * tap.length;
        }
        b.sliding = (taps_slide ? taps : pixels).at(sliding);
        b.steady = (taps_slide ? pixels : taps).at(steady);
        b.out = out.at((y - from) * width + f.out_first + (taps_slide ? x + count - 1 : x) * f.out_step);
        k.correlate(count, b);
      }
    }
  }

  // Pairs of rows for a row of the result: by rows of taps if those slide, else by rows of the source.
  void range(int64_t y, int64_t& first, int64_t& last) const {
    if (!taps_slide) {
      first = transposed ? grad_rows(y, false) : image_rows(y, false);
      last = transposed ? grad_rows(y, true) : image_rows(y, true);
    } else if (transposed) {
      const int64_t rest = (y + g.top) % g.row_stride, whole = (y + g.top) / g.row_stride;
      first = std::max<int64_t>(0, whole - g.out_height + 1);
      last = std::min(up(g.kernel_height - rest, g.row_stride), whole + 1);
    } else {
      const int64_t start = y * g.row_stride - g.top;
      first = std::max<int64_t>(0, -start);
      last = std::min(g.kernel_height, g.height - start);
    }
    if (first >= last) first = last = 0;
  }
};

}  // namespace convswap::lanes
