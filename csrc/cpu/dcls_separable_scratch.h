// What a thread keeps about a block of DCLS elements of learned width while it works on them.
#pragma once

#include <cstdint>
#include <vector>

#include "dcls_grid.h"

namespace convswap {

constexpr int kWideBlock = 64;  // elements, a multiple of all vectors' lanes
constexpr int kLanes = kWideBlock + 16;  // numbers from a row of elements to the next

// A kernel with three axes, of which those that it lacks come first and have one cell.
struct ThreeAxes {
  int64_t size[3], length[3];  // length: size, rounded up to a multiple of 8
  int64_t row[3];              // the row of P that moves along an axis; -1 for an axis that the kernel lacks

  explicit ThreeAxes(const Grid& grid) {
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t from = axis - (3 - grid.dims);
      size[axis] = from < 0 ? 1 : grid.size[from];
      row[axis] = from < 0 ? -1 : grid.row[from];
      length[axis] = (size[axis] + 7) / 8 * 8;
    }
  }
};

// Lanes are a row of the block's elements for each cell of an axis. Rows and their number are padded, since products
// are computed by eights; all start as zeros.
template <typename T>
struct WideScratch {
  std::vector<T> lanes[3];       // bumps along each axis
  std::vector<T> grad_lanes[3];  // gradients to them
  std::vector<T> plane_lanes[3];  // of one plane of the kernel: bumps or gradients
  std::vector<T> rows;           // bumps along the last axis: a row of cells for each element
  std::vector<T> planes;         // the kernel: [z][y][x], y and x being padded

  WideScratch(const ThreeAxes& axes, bool for_gradients) {
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t numbers = axes.length[axis] * kLanes;
      lanes[axis].resize(numbers);
      grad_lanes[axis].resize(for_gradients ? numbers : 0);
      plane_lanes[axis].resize(axis > 0 && axes.row[0] >= 0 ? numbers : 0);
    }
    rows.resize(for_gradients ? 0 : axes.length[2] * kWideBlock);
    planes.resize(axes.size[0] * axes.length[1] * axes.length[2]);
  }
};

}  // namespace convswap
