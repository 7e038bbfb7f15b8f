// Padding by extrapolation and its transpose: checks, memory and launches.
#include "guided_arguments.h"

#include <optional>

#include "extrapolate_pad.cuh"

namespace convswap {
namespace {

constexpr int64_t kMostPixels = int64_t{1} << 30;  // places on a padded axis are counted in 32 bits

struct Sides {
  int image[3] = {1, 1, 1}, pad[3][2] = {}, order[3][2] = {};
};

// Of the image whose padded form is `tensor` if back, else of `tensor`. Its axes are the last of three.
Sides sides_of(const Tensor& tensor, const char* name, const Sizes& padding, const Sizes& order, bool back) {
  const int64_t dims = tensor.dim() - 2;
  STD_TORCH_CHECK(dims >= 1 && dims <= 3, name, " must be (B, C, *size) with 1 to 3 spatial axes, got ",
                  told(sizes_of(tensor)));
  const size_t count = 2 * static_cast<size_t>(dims);
  STD_TORCH_CHECK(padding.size() == count && order.size() == count, "padding and order must be before and after each ",
                  "of ", dims, " axes, ", count, " numbers, got ", told(padding), " and ", told(order));
  Sides sides;
  for (int64_t n = 0; n < 2 * dims; ++n) {
    STD_TORCH_CHECK(padding[n] >= 0 && order[n] >= 0, "padding and order must not be negative, got ", told(padding),
                    " and ", told(order));
    STD_TORCH_CHECK(padding[n] < kMostPixels, "padding must be less than 2^30, got ", padding[n]);
  }
  for (int64_t d = 0; d < dims; ++d) {
    const int64_t added = padding[2 * d] + padding[2 * d + 1];
    const int64_t size = tensor.size(2 + d) - (back ? added : 0);
    STD_TORCH_CHECK(size >= 0, "grad must have the padded size, and axis ", d, " has ", tensor.size(2 + d),
                    " pixels, less than a padding of ", added);
    STD_TORCH_CHECK(size < kMostPixels && size + added < kMostPixels,
                    "the padded image must have less than 2^30 pixels on an axis, got ", size, " and padding ", added);
    const int64_t axis = 3 - dims + d;
    sides.image[axis] = static_cast<int>(size);
    for (int after = 0; after < 2; ++after) {
      const int64_t pad = padding[2 * d + after], degree = order[2 * d + after];
      if (pad == 0) continue;
      STD_TORCH_CHECK(degree < size, "extrapolation of order ", degree, " takes ", degree,
                      " + 1 pixels, and axis ", d, " of the image has ", size,
                      ": take a lower order or a larger image");
      sides.pad[axis][after] = static_cast<int>(pad);
      sides.order[axis][after] = static_cast<int>(degree);
    }
  }
  return sides;
}

// What is made of a tensor: (B, C, *size), its channels last or not.
Tensor new_images(const Tensor& like, const Sides& sides, bool last, bool back) {
  const int64_t dims = like.dim() - 2;
  Sizes shape{like.size(0)};
  if (!last) shape.push_back(like.size(1));
  for (int64_t axis = 3 - dims; axis < 3; ++axis) {
    const int* pad = sides.pad[axis];
    shape.push_back(sides.image[axis] + (back ? 0 : pad[0] + pad[1]));
  }
  if (last) shape.push_back(like.size(1));
  Tensor images = torch::stable::new_empty(like, shape);
  for (int64_t axis = 1; last && axis <= dims; ++axis) images = torch::stable::transpose(images, axis, dims + 1);
  return images;
}

Tensor extrapolated(const Tensor& tensor, const char* name, const Sizes& padding, const Sizes& order, bool back) {
  const Sides sides = sides_of(tensor, name, padding, order, back);
  const OnDevice run(tensor);
  const bool last = is_channels_last(tensor);
  const Tensor from = in_format(tensor, last), result = new_images(tensor, sides, last, back);
  if (result.numel() == 0) return result;
  const int64_t samples = tensor.size(0), channels = tensor.size(1);
  const Extrapolate e = plan_extrapolate(last ? samples : samples * channels, sides.image, last ? channels : 1,
                                         sides.pad, sides.order, back);
  std::optional<Tensor> weights;
  with_element(tensor, name, [&](auto zero) {
    using T = decltype(zero);
    const auto scratch = [&](Index count) {
      weights = torch::stable::new_empty(tensor, Sizes{count}, sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float);
      return data<Sum<T>>(*weights);
    };
    run_extrapolate<T>(run, scratch, e, back, data<T>(from), data<T>(result));
  });
  return result;
}

Tensor forward(const Tensor& input, Sizes padding, Sizes order) {
  return extrapolated(input, "input", padding, order, false);
}

Tensor backward(const Tensor& grad, Sizes padding, Sizes order) {
  return extrapolated(grad, "grad", padding, order, true);
}

}  // namespace
}  // namespace convswap

CONVSWAP_LIBRARY(m) {
  m.impl("extrapolate_pad", TORCH_BOX(&convswap::forward));
  m.impl("extrapolate_pad_backward", TORCH_BOX(&convswap::backward));
}
