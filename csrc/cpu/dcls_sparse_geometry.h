// Where a convolution and its transpose find their numbers: kernel rows and columns, planes and outputs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dcls_sparse_taps.h"
#include "padded_plane.h"

namespace convswap::sparse {

// One axis of a convolution.
struct Axis {
  int64_t size, kernel, stride, before, outputs;

  // Kernel cells [first_cell, end_cell) meet the image; the others only ever meet padding.
  int64_t first_cell() const { return std::clamp<int64_t>(before - (outputs - 1) * stride, 0, kernel); }
  int64_t end_cell() const { return std::clamp<int64_t>(before + size, first_cell(), kernel); }
};

// One axis of the transpose, for inputs of one residue: input first + i * stride is a convolution, without stride, of
// the outputs with every stride-th kernel cell, last cell first.
struct AxisPhase {
  int64_t residue;      // of the kernel cells
  int64_t first;        // input
  int64_t inputs;       // how many
  int64_t first_cell;   // lowest kernel cell of the residue that meets the image
  int64_t cells;        // how many
  int64_t plane_first;  // what the highest of them reads for the first input
};

struct TransposedAxis {
  int64_t before;    // plane pixel of the first output
  int64_t overhang;  // plane pixels beyond the number of inputs of a phase
  int64_t longest;   // inputs of a phase
  std::vector<AxisPhase> phases;

  explicit TransposedAxis(const Axis& axis) : longest(0) {
    const int64_t stride = axis.stride, most = (axis.kernel - 1) / stride + 1, least = axis.before / stride;
    before = most - 1 - least;
    overhang = most;
    for (int64_t residue = 0; residue < stride; ++residue) {
      const int64_t first = ((residue - axis.before) % stride + stride) % stride;
      const int64_t inputs = first < axis.size ? (axis.size - first + stride - 1) / stride : 0;
      const int64_t shift = (first + axis.before) / stride - least;
      auto steps_to = [&](int64_t cell) { return std::max<int64_t>(cell - residue + stride - 1, 0) / stride; };
      const int64_t begin = steps_to(axis.first_cell()), end = std::max(steps_to(axis.end_cell()), begin);
      phases.push_back({residue, first, inputs, residue + begin * stride, end - begin, shift + most - end});
      longest = std::max(longest, inputs);
    }
  }
};

// Take a kernel column, which reads `offset` for the first output.
template <typename T>
void take_column(TapGeometry& taps, int64_t column, int64_t offset) {
  const int64_t bit = column + ElementGrid<T>::MARGIN;
  taps.columns[bit >> 6] |= uint64_t{1} << (bit & 63);
  taps.column_offsets[bit] = static_cast<int32_t>(offset);
}

template <typename T>
TapGeometry empty_taps(int64_t kernel_width, bool pairs) {
  const int64_t width = kernel_width + 2 * ElementGrid<T>::MARGIN;
  return {0, 1, 0, 0, std::vector<uint64_t>((width + 63) / 64, 0), std::vector<int32_t>(width, 0), pairs};
}

// How a convolution reads planes of its input.
template <typename T>
struct ForwardPlan {
  PlaneLayout layout;
  TapGeometry taps;
  Convolved shape;
  int64_t out_size;  // numbers of a plane of outputs

  ForwardPlan(const Axis& rows, const Axis& columns) {
    const int64_t width = round_up(columns.outputs, LANES<T>), covered = blocked_rows(rows.outputs);
    // A row more than outputs read, for the correlation with pairs of cells.
    layout = {(covered - 1) * rows.stride + rows.kernel + 1, columns.stride,
              width + (columns.kernel - 1) / columns.stride, rows.before, columns.before};
    taps = empty_taps<T>(columns.kernel, rows.stride == 1);
    taps.first = taps.plane_row = rows.first_cell();
    taps.count = rows.end_cell() - rows.first_cell();
    for (int64_t x = columns.first_cell(); x < columns.end_cell(); ++x) take_column<T>(taps, x, layout.column(x));
    shape = {rows.outputs, columns.outputs, rows.stride, rows.before, rows.before + rows.size, layout.pitch(), width};
    out_size = covered * width;
  }
};

// How the transpose reads planes of the gradient: a pass for inputs of each pair of residues.
template <typename T>
struct TransposedPlan {
  struct Pass {
    TapGeometry taps;
    Convolved shape;
    int64_t first_row, first_column;
  };
  PlaneLayout layout;
  std::vector<Pass> passes;
  int64_t out_size;

  TransposedPlan(const Axis& rows, const Axis& columns) : out_size(0) {
    const TransposedAxis vertical(rows), horizontal(columns);
    const int64_t width = round_up(horizontal.longest, LANES<T>);
    int64_t covered = 0;
    for (const AxisPhase& phase : vertical.phases) covered = std::max(covered, blocked_rows(phase.inputs));
    layout = {covered + vertical.overhang, 1, width + horizontal.overhang, vertical.before, horizontal.before};
    out_size = covered * width;
    for (const AxisPhase& v : vertical.phases) {
      for (const AxisPhase& h : horizontal.phases) {
        if (v.inputs == 0 || h.inputs == 0) continue;
        TapGeometry taps = empty_taps<T>(columns.kernel, true);
        taps.step = -rows.stride;
        taps.first = v.first_cell + (v.cells - 1) * rows.stride;
        taps.count = v.cells;
        taps.plane_row = v.plane_first;
        for (int64_t i = 0; i < h.cells; ++i) {
          take_column<T>(taps, h.first_cell + i * columns.stride, h.plane_first + h.cells - 1 - i);
        }
        const Convolved shape{v.inputs, h.inputs, 1, vertical.before, vertical.before + rows.outputs, layout.pitch(),
                              width};
        passes.push_back({taps, shape, v.first, h.first});
      }
    }
  }
};

}  // namespace convswap::sparse
