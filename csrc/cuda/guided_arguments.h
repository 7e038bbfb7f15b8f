// Checks of what the guided ops have in common, on the host.
#pragma once

#include <string>

#include "launch.h"

#include "guided_ops.cuh"

namespace convswap {

using Sizes = std::vector<int64_t>;

constexpr int64_t kMostGuidedPixels = int64_t{1} << 30;  // places on a padded axis are counted in 32 bits

inline std::string told(const Sizes& numbers) {
  std::string text = "(";
  for (size_t i = 0; i < numbers.size(); ++i) text += (i ? ", " : "") + std::to_string(numbers[i]);
  return text + ")";
}

inline Sizes sizes_of(const Tensor& tensor) {
  Sizes sizes;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) sizes.push_back(tensor.size(axis));
  return sizes;
}

inline void check_guided_image(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 4, name, " must have 4 axes (batch, channels, height, width), got ",
                  told(sizes_of(tensor)));
}

inline void check_guided_alike(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name) {
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type() && a.get_device_index() == b.get_device_index() &&
                      a.is_cuda() == b.is_cuda(),
                  a_name, " and ", b_name, " must have one dtype and lie on one device, convert or move one of them");
}

inline void check_guided_shape(const Tensor& tensor, const char* name, const Sizes& wanted) {
  STD_TORCH_CHECK(sizes_of(tensor) == wanted, name, " must have shape ", told(wanted), ", got ",
                  told(sizes_of(tensor)));
}

struct GuidedGeometry {
  const Sizes &kernel, &stride, &padding, &dilation;
};

// Of an image (batch, *image), image being channels, height and width; how its kernels are laid out is left open.
inline Guided guided(int64_t batch, const Sizes& image, int64_t outputs, int64_t groups, const GuidedGeometry& g) {
  STD_TORCH_CHECK(image.size() == 3, "input_size must be channels, height and width, got ", image.size(), " numbers");
  STD_TORCH_CHECK(g.kernel.size() == 2, "kernel_size must be 2 numbers, got ", g.kernel.size());
  STD_TORCH_CHECK(g.stride.size() == 2, "stride must be 2 numbers, got ", g.stride.size());
  STD_TORCH_CHECK(g.dilation.size() == 2, "dilation must be 2 numbers, got ", g.dilation.size());
  STD_TORCH_CHECK(g.padding.size() == 4, "padding must be top, bottom, left and right, got ", g.padding.size(),
                  " numbers");
  const int64_t channels = image[0];
  STD_TORCH_CHECK(channels < kMostGuidedPixels && outputs < kMostGuidedPixels,
                  "too many channels: ", most(channels, outputs));
  STD_TORCH_CHECK(groups >= 1 && channels % groups == 0 && outputs % groups == 0, "groups must divide the ", channels,
                  " channels of the input and the ", outputs, " outputs, got ", groups);
  Guided d{};
  d.batch = batch;
  d.groups = static_cast<int>(groups);
  d.inputs = static_cast<int>(channels / groups);
  d.outputs = static_cast<int>(outputs / groups);
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t before = g.padding[2 * axis], after = g.padding[2 * axis + 1], size = image[1 + axis];
    const int64_t kernel = g.kernel[axis], stride = g.stride[axis], dilation = g.dilation[axis];
    STD_TORCH_CHECK(kernel >= 1, "the kernel must have pixels, got size ", kernel);
    STD_TORCH_CHECK(stride >= 1, "stride must be at least 1, got ", stride);
    STD_TORCH_CHECK(dilation >= 1, "dilation must be at least 1, got ", dilation);
    STD_TORCH_CHECK(before >= 0 && after >= 0, "padding must not be negative, got ", least(before, after));
    STD_TORCH_CHECK(size >= 0 && size < kMostGuidedPixels && before < kMostGuidedPixels && after < kMostGuidedPixels &&
                        size + before + after < kMostGuidedPixels,
                    "the padded input must have less than 2^30 pixels on an axis, got ", size, " and padding ", before,
                    " and ", after);
    const int64_t padded = size + before + after;
    STD_TORCH_CHECK(kernel <= padded && (kernel == 1 || dilation <= (padded - 1) / (kernel - 1)), "a kernel of ",
                    kernel, " pixels with dilation ", dilation, " does not fit on an axis where the padded input has ",
                    padded, ": pad more");
    const int64_t out = (padded - (kernel - 1) * dilation - 1) / stride + 1;
    d.size[axis] = static_cast<int>(size);
    d.kernel[axis] = static_cast<int>(kernel);
    d.stride[axis] = out == 1 ? 1 : static_cast<int>(stride);         // a single output has no next
    d.dilation[axis] = kernel == 1 ? 1 : static_cast<int>(dilation);  // nor a single tap
    d.before[axis] = static_cast<int>(before);
    d.out[axis] = static_cast<int>(out);
  }
  return d;
}

// The image in the memory format of another.
inline Tensor in_guided_format(const Tensor& image, const Tensor& like) {
  return is_channels_last(like) ? torch::stable::contiguous(image, MemoryFormat::ChannelsLast) : image;
}

// The three ops, once the shapes of their arguments have been checked.
template <int kMost>
Tensor guided_forward_of(const Guided& d, const Tensor& input, const Tensor& weight,
                         const std::optional<Tensor>& bias) {
  if (bias) {
    check_guided_alike(input, "input", *bias, "bias");
    check_guided_shape(*bias, "bias", {d.batch, d.all_outputs()});
  }
  const OnDevice run(input);
  const Tensor x = in_order(input), w = in_order(weight);
  const std::optional<Tensor> b = bias ? std::optional<Tensor>(in_order(*bias)) : std::nullopt;
  const Tensor output = torch::stable::new_empty(x, Sizes{d.batch, d.all_outputs(), d.out[0], d.out[1]});
  if (output.numel() == 0) return in_guided_format(output, input);
  with_element(input, "input", [&](auto zero) {
    using T = decltype(zero);
    run_guided_forward<T, kMost>(run, d, data<T>(x), data<T>(w), b ? data<T>(*b) : nullptr, data<T>(output));
  });
  return in_guided_format(output, input);
}

template <int kMost>
Tensor guided_input_grad_of(const Guided& d, const Tensor& grad, const Tensor& weight) {
  const OnDevice run(grad);
  const Tensor g = in_order(grad), w = in_order(weight);
  const Tensor result = torch::stable::new_empty(g, Sizes{d.batch, d.channels(), d.size[0], d.size[1]});
  if (result.numel() == 0) return in_guided_format(result, grad);
  with_element(grad, "grad", [&](auto zero) {
    using T = decltype(zero);
    run_guided_input_grad<T, kMost>(run, d, data<T>(g), data<T>(w), data<T>(result));
  });
  return in_guided_format(result, grad);
}

template <int kMost>
Tensor guided_weight_grad_of(const Guided& d, const Tensor& grad, const Tensor& input, const Sizes& shape) {
  const OnDevice run(grad);
  const Tensor g = in_order(grad), x = in_order(input);
  const Tensor result = torch::stable::new_empty(g, shape);
  if (result.numel() == 0) return result;
  with_element(grad, "grad", [&](auto zero) {
    using T = decltype(zero);
    run_guided_weight_grad<T, kMost>(run, d, data<T>(g), data<T>(x), data<T>(result));
  });
  return result;
}

}  // namespace convswap
