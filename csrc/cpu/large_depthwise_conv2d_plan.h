// Which rows and columns meet in the row correlations of an op, and where they lie in scratch memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace convswap::lanes {

inline int64_t up(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }    // a / b rounded up
inline int64_t down(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }  // and down, for b > 0

struct Geometry {
  int64_t height, width, out_height, out_width, kernel_height, kernel_width;
  int64_t row_stride, column_stride, top, left;
};

// One of the column phases of a stride: out[x] = sum over j < taps of tap[j] * source[x + j - shift], for x < count,
// source being zero outside 0 .. width - 1.
struct Phase {
  int64_t taps, width, shift, count;
  int64_t out_first, out_step;  // out[x] is column out_first + x * out_step of the result
  int64_t first_tap = 0;        // taps cut off in front because they never meet the source

  void cut_taps() {
    const int64_t from = std::max<int64_t>(0, shift - count + 1), to = std::min(taps, shift + width);
    first_tap = from, taps = std::max<int64_t>(0, to - from), shift -= from;
  }
  void cut_outputs() {
    const int64_t from = std::max<int64_t>(0, shift - taps + 1), to = std::min(count, shift + width);
    out_first += from * out_step, count = std::max<int64_t>(0, to - from), shift -= from;
  }
};

// The columns of the input with (column + left) % stride == phase are column first + 0, 1, ... of that phase.
struct InputColumns {
  int64_t first, count;
  InputColumns(const Geometry& g, int64_t phase)
      : first(up(g.left - phase, g.column_stride)),
        count(std::max<int64_t>(0, down(g.width - 1 + g.left - phase, g.column_stride) - first + 1)) {}
};

inline int64_t taps_of(const Geometry& g, int64_t phase) {
  return std::max<int64_t>(0, up(g.kernel_width - phase, g.column_stride));
}

inline std::vector<Phase> forward_phases(const Geometry& g) {
  std::vector<Phase> phases;
  for (int64_t r = 0; r < g.column_stride; r++) {
    const InputColumns in(g, r);
    phases.push_back({taps_of(g, r), in.count, in.first, g.out_width, 0, 1});
    phases.back().cut_taps();
  }
  return phases;
}

// The taps of a phase run backwards.
inline std::vector<Phase> input_grad_phases(const Geometry& g) {
  std::vector<Phase> phases;
  for (int64_t r = 0; r < g.column_stride; r++) {
    const InputColumns in(g, r);
    const int64_t taps = taps_of(g, r), step = g.column_stride;
    phases.push_back({taps, g.out_width, taps - 1 - in.first, in.count, step * in.first + r - g.left, step});
    phases.back().cut_taps();
  }
  return phases;
}

// The gradient to the output plays the taps.
inline std::vector<Phase> weight_grad_phases(const Geometry& g) {
  std::vector<Phase> phases;
  for (int64_t r = 0; r < g.column_stride; r++) {
    const InputColumns in(g, r);
    phases.push_back({g.out_width, in.count, in.first, taps_of(g, r), r, g.column_stride});
    phases.back().cut_outputs();
    phases.back().cut_taps();
  }
  return phases;
}

// Rows of zero-padded columns, as wide as any of the phases needs.
struct Padded {
  int64_t before = 0, length = 0;
  // Reads of columns first .. last, of which 0 .. width - 1 exist.
  void hold(int64_t width, int64_t first, int64_t last) {
    before = std::max(before, -first);
    reach = std::max({reach, width, last + 1});
    length = before + reach;
  }

 private:
  int64_t reach = 0;
};

}  // namespace convswap::lanes
