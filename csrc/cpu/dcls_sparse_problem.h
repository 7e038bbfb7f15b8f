// What the ops are given, checked: images, elements and geometry.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "dcls_sparse_geometry.h"
#include "dcls_sparse_grid.h"
#include "padded_plane.h"

namespace convswap::sparse {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& x) {
  std::string text = "(";
  for (int64_t axis = 0; axis < x.dim(); ++axis) text += (axis ? ", " : "") + std::to_string(x.size(axis));
  return text + ")";
}

inline bool is_channels_last(const Tensor& x) {
  if (x.is_contiguous()) return false;
  int64_t expected = 1;
  for (int64_t axis : {1, 3, 2, 0}) {
    if (x.size(axis) != 1 && x.stride(axis) != expected) return false;
    expected *= x.size(axis);
  }
  return true;
}

// An image tensor whose memory is dense, and the steps in it.
struct Images {
  Tensor tensor;
  bool channels_last;
  int64_t batch, channels;
  ImageSteps steps;

  explicit Images(const Tensor& x)
      : tensor(x), channels_last(is_channels_last(x)), batch(x.size(0)), channels(x.size(1)) {
    if (!channels_last) tensor = torch::stable::contiguous(x);
    const int64_t height = x.size(2), width = x.size(3);
    if (channels_last) steps = {height, width, width * channels, channels, 1};
    else steps = {height, width, width, 1, height * width};
  }

  int64_t offset(int64_t image, int64_t channel) const {
    return image * channels * steps.height * steps.width + channel * steps.channel;
  }
};

inline Images empty_images(std::vector<int64_t> size, const Images& like) {
  const auto format = like.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  Images images(torch::stable::empty(size, like.tensor.scalar_type(), std::nullopt, like.tensor.device(), std::nullopt,
                                     format));
  // Tensors with axes of length 1 are in both formats at once, and empty() has filled in what was asked for.
  images.channels_last = like.channels_last;
  if (like.channels_last) images.steps = {size[2], size[3], size[3] * size[1], size[1], 1};
  return images;
}

// The elements of all kernels and what is done with them.
struct Problem {
  Tensor weight, P;
  int64_t outputs, count, multiplier;
  int64_t row_of_y, row_of_x;  // which of P moves along kernel rows, which along columns
  DrawingRules rules;
  Axis rows, columns;

  int64_t most_taps() const { return std::min(4 * count, rows.kernel * columns.kernel); }

  template <typename T>
  Elements<T> elements(int64_t output) const {
    const T *w = weight.const_data_ptr<T>(), *p = P.const_data_ptr<T>();
    const int64_t own = output * count, all = outputs * count;
    return {w + own, p + row_of_y * all + own, p + row_of_x * all + own, count};
  }
};

inline int64_t output_count(int64_t size, int64_t before, int64_t after, int64_t kernel, int64_t stride,
                            const char* name) {
  STD_TORCH_CHECK(before >= 0 && after >= 0, "padding must not be negative, got ", before, " and ", after);
  STD_TORCH_CHECK(size + before + after >= kernel, "the kernel's ", name, " of ", kernel, " is more than the input's ",
                  size + before + after, ", padding included");
  return (size + before + after - kernel) / stride + 1;
}

inline Problem make_problem(const Tensor& weight, const Tensor& P, ScalarType image_type, int64_t channels,
                            int64_t height, int64_t width, const std::vector<int64_t>& size,
                            const std::vector<int64_t>& axes, bool normalise, bool right_slope,
                            const std::vector<int64_t>& stride, const std::vector<int64_t>& padding) {
  STD_TORCH_CHECK(weight.dim() == 3 && weight.size(1) == 1, "weight must be (outputs, 1, elements), got ",
                  shape_of(weight));
  const int64_t outputs = weight.size(0), count = weight.size(2);
  STD_TORCH_CHECK(P.dim() == 4 && P.size(0) == 2 && P.size(1) == outputs && P.size(2) == 1 && P.size(3) == count,
                  "P must be (2, ", outputs, ", 1, ", count, ") for this weight, got ", shape_of(P));
  STD_TORCH_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0, "size must be two positive numbers");
  STD_TORCH_CHECK(axes.size() == 2 && ((axes[0] == 0 && axes[1] == 1) || (axes[0] == 1 && axes[1] == 0)),
                  "axes must be 0 and 1 in some order");
  STD_TORCH_CHECK(stride.size() == 2 && stride[0] > 0 && stride[1] > 0, "stride must be two positive numbers");
  STD_TORCH_CHECK(padding.size() == 4, "padding must be four numbers: top, bottom, left, right; got ", padding.size());
  STD_TORCH_CHECK(channels == 0 ? outputs == 0 : outputs % channels == 0, "the ", outputs,
                  " outputs of weight are no multiple of the input's ", channels, " channels");
  const ScalarType wanted = image_type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(weight.scalar_type() == wanted && P.scalar_type() == wanted,
                  "weight and P must be in double precision if the input is, and else in single");
  const int64_t multiplier = channels == 0 ? 1 : outputs / channels;
  const int64_t high = output_count(height, padding[0], padding[1], size[0], stride[0], "height");
  const int64_t wide = output_count(width, padding[2], padding[3], size[1], stride[1], "width");
  return {torch::stable::contiguous(weight),
          torch::stable::contiguous(P),
          outputs,
          count,
          multiplier,
          axes[0] == 0 ? 0 : 1,
          axes[0] == 0 ? 1 : 0,
          {normalise, right_slope},
          {height, size[0], stride[0], padding[0], high},
          {width, size[1], stride[1], padding[2], wide}};
}

// The gradient of the outputs must have their shape.
inline void check_grad(const Tensor& grad, const Problem& problem) {
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(1) == problem.outputs && grad.size(2) == problem.rows.outputs &&
                      grad.size(3) == problem.columns.outputs,
                  "grad must be (batch, ", problem.outputs, ", ", problem.rows.outputs, ", ", problem.columns.outputs,
                  "), got ", shape_of(grad));
}

}  // namespace convswap::sparse
