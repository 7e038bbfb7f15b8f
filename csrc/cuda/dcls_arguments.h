// Checks of what the DCLS ops have in common, on the host.
#pragma once

#include <string>

#include "launch.h"

#include "dcls_element.cuh"

namespace convswap {

using Sizes = std::vector<int64_t>;

constexpr int64_t kMostCells = int64_t{1} << 30;  // cells of a kernel are counted in 32 bits

inline std::string shape_of(const Tensor& tensor) {
  std::string told = "(";
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) told += (axis ? ", " : "") + std::to_string(tensor.size(axis));
  return told + ")";
}

inline void check_beside(const Tensor& tensor, const char* name, const Tensor& weight) {
  STD_TORCH_CHECK(tensor.scalar_type() == weight.scalar_type(), name,
                  " and weight must have one dtype, convert one of them");
  STD_TORCH_CHECK(tensor.is_cuda() == weight.is_cuda() && tensor.get_device_index() == weight.get_device_index(), name,
                  " and weight must lie on one device, move one of them");
}

// Of P and SIG: one number for each element on each axis.
inline void check_elements(const Tensor& tensor, const char* name, const Tensor& weight, int64_t dims) {
  check_beside(tensor, name, weight);
  STD_TORCH_CHECK(tensor.dim() == 4 && tensor.size(0) == dims && tensor.size(1) == weight.size(0) &&
                      tensor.size(2) == weight.size(1) && tensor.size(3) == weight.size(2),
                  name, " must have shape (", dims, ", ", weight.size(0), ", ", weight.size(1), ", ", weight.size(2),
                  "), got ", shape_of(tensor));
}

inline void check_grid(const Tensor& weight, const Tensor& P, const Sizes& size, const Sizes& axes) {
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float || weight.scalar_type() == ScalarType::Double,
                  "weight must be float32 or float64, convert it");
  STD_TORCH_CHECK(weight.dim() == 3, "weight must have shape (outputs, inputs, elements), got ", shape_of(weight));
  const int64_t dims = static_cast<int64_t>(size.size());
  STD_TORCH_CHECK(dims >= 1 && dims <= 3, "size must be 1, 2 or 3 numbers, got ", dims);
  check_elements(P, "P", weight, dims);
  STD_TORCH_CHECK(axes.size() == size.size(), "axes must be ", dims, " numbers, got ", axes.size());
  int64_t seen = 0, cells = 1;
  for (int64_t d = 0; d < dims; ++d) {
    STD_TORCH_CHECK(axes[d] >= 0 && axes[d] < dims, "axes must be from 0 to ", dims - 1, ", got ", axes[d]);
    seen |= int64_t{1} << axes[d];
    STD_TORCH_CHECK(size[d] >= 1, "size must be positive, got ", size[d]);
    cells = size[d] < kMostCells / cells + 1 ? cells * size[d] : kMostCells;
  }
  STD_TORCH_CHECK(seen == (int64_t{1} << dims) - 1, "axes must name every axis of the kernel once");
  STD_TORCH_CHECK(cells < kMostCells, "a kernel must have less than 2^30 cells, make size smaller");
}

// Calls f with a zero of the weight's element type.
template <typename Function>
void with_floating(const Tensor& weight, Function&& f) {
  return weight.scalar_type() == ScalarType::Double ? f(double{}) : f(float{});
}

inline Sizes kernel_shape(const Tensor& weight, const Sizes& size) {
  Sizes shape{weight.size(0), weight.size(1)};
  shape.insert(shape.end(), size.begin(), size.end());
  return shape;
}

// The sizes of the kernels whose gradient this is.
inline Sizes kernel_size_of(const Tensor& grad) {
  Sizes size;
  for (int64_t axis = 2; axis < grad.dim(); ++axis) size.push_back(grad.size(axis));
  return size;
}

inline void check_kernel_grad(const Tensor& grad, const Tensor& weight) {
  check_beside(grad, "grad", weight);
  STD_TORCH_CHECK(grad.size(0) == weight.size(0) && grad.size(1) == weight.size(1), "grad must have shape (",
                  weight.size(0), ", ", weight.size(1), ", *size), got ", shape_of(grad));
}

}  // namespace convswap
