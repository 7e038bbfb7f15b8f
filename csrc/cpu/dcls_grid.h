// The sizes of a DCLS construction, from the arguments of its ops.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <vector>

namespace convswap {

struct Grid {
  int64_t dims;
  int64_t size[3], stride[3];  // by kernel axes
  int64_t row[3];              // which row of P moves along the axis
  int64_t cells;               // of a kernel
  int64_t kernels;             // outputs times inputs per group
  int64_t count;               // elements of a kernel
  int64_t elements;            // of all kernels: the length of a row of P
};

// Checks the arguments that all construction ops have: weight (O, I, count), P (D, O, I, count), D sizes and axes.
inline Grid checked_grid(
    const char* op,
    const torch::stable::Tensor& weight,
    const torch::stable::Tensor& P,
    const std::vector<int64_t>& size,
    const std::vector<int64_t>& axes) {
  using torch::headeronly::ScalarType;
  const auto dtype = weight.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Double, op, ": weight must be float32 or float64");
  STD_TORCH_CHECK(weight.dim() == 3, op, ": weight must be (O, I, count), got ", weight.dim(), " dimensions");
  const int64_t dims = static_cast<int64_t>(size.size());
  STD_TORCH_CHECK(dims >= 1 && dims <= 3, op, ": the kernel must have 1 to 3 axes, got ", dims);
  STD_TORCH_CHECK(
      axes.size() == size.size(), op, ": axes must be one for each of the ", dims, " sizes, got ", axes.size());
  STD_TORCH_CHECK(P.scalar_type() == dtype, op, ": P must have the dtype of weight");
  bool fits = P.dim() == 4 && P.size(0) == dims;
  for (int64_t i = 0; fits && i < 3; ++i) fits = P.size(i + 1) == weight.size(i);
  STD_TORCH_CHECK(
      fits, op, ": P must be (", dims, ", ", weight.size(0), ", ", weight.size(1), ", ", weight.size(2),
      "), a row for each axis and shaped as weight otherwise");

  Grid grid{dims, {1, 1, 1}, {1, 1, 1}, {-1, -1, -1}, 1, weight.size(0) * weight.size(1), weight.size(2), 0};
  grid.elements = grid.kernels * grid.count;
  for (int64_t axis = dims - 1; axis >= 0; --axis) {
    STD_TORCH_CHECK(size[axis] >= 1, op, ": sizes must be positive, got ", size[axis]);
    grid.size[axis] = size[axis];
    grid.stride[axis] = grid.cells;
    STD_TORCH_CHECK(size[axis] <= (int64_t{1} << 30) / grid.cells, op, ": a kernel of more than 2^30 cells");
    grid.cells *= size[axis];
  }
  for (int64_t d = 0; d < dims; ++d) {
    const bool known = axes[d] >= 0 && axes[d] < dims && grid.row[axes[d]] < 0;
    STD_TORCH_CHECK(known, op, ": axes must name each of the ", dims, " kernel axes once, got ", axes[d], " at ", d);
    grid.row[axes[d]] = d;
  }
  return grid;
}

// The same from the gradient to a kernel, which has its sizes.
inline Grid checked_grid(
    const char* op,
    const torch::stable::Tensor& grad,
    const torch::stable::Tensor& weight,
    const torch::stable::Tensor& P,
    const std::vector<int64_t>& axes) {
  std::vector<int64_t> size;
  for (int64_t i = 2; i < grad.dim(); ++i) size.push_back(grad.size(i));
  const Grid grid = checked_grid(op, weight, P, size, axes);
  STD_TORCH_CHECK(grad.scalar_type() == weight.scalar_type(), op, ": grad must have the dtype of weight");
  STD_TORCH_CHECK(
      grad.size(0) == weight.size(0) && grad.size(1) == weight.size(1), op, ": grad must be (", weight.size(0), ", ",
      weight.size(1), ", ...) as weight, got (", grad.size(0), ", ", grad.size(1), ", ...)");
  return grid;
}

// How many kernels a thread should have at least.
inline int64_t grain(const Grid& grid) {
  const int64_t work = grid.cells + 16 * grid.count;
  return work < 16384 ? 16384 / work : 1;
}

}  // namespace convswap
