// The large depthwise ops: checks, memory and launches.
#include "launch.h"

#include "large_depthwise_ops.cuh"

namespace convswap {
namespace {

using Sizes = std::vector<int64_t>;

// Positions in an image and its padding, times a few hundred, are counted in 32 bits.
constexpr int64_t kMostPixels = int64_t{1} << 30;
constexpr int64_t kMostStride = int64_t{1} << 21;

void check_images(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 4, name, " must have 4 axes (batch, channels, height, width), got ", tensor.dim());
}

void check_alike(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name) {
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type() && a.get_device_index() == b.get_device_index() &&
                      a.is_cuda() == b.is_cuda(),
                  a_name, " and ", b_name, " must have one dtype and lie on one device, convert or move one of them");
}

Depthwise geometry(int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t outputs, const Sizes& kernel,
                   const Sizes& stride, const Sizes& padding) {
  STD_TORCH_CHECK(kernel.size() == 2, "the kernel size must be 2 numbers, got ", kernel.size());
  STD_TORCH_CHECK(stride.size() == 2, "stride must be 2 numbers, got ", stride.size());
  STD_TORCH_CHECK(padding.size() == 4, "padding must be top, bottom, left and right, got ", padding.size(), " numbers");
  STD_TORCH_CHECK(channels > 0 ? outputs % channels == 0 : outputs == 0, "the number of kernels, ", outputs,
                  ", must be a multiple of the number of channels, ", channels);
  STD_TORCH_CHECK(channels < kMostPixels && outputs < kMostPixels, "too many channels: ", most(channels, outputs));
  const int64_t size[2] = {height, width};
  Depthwise d{};
  d.batch = batch;
  d.channels = static_cast<int>(channels);
  d.multiplier = static_cast<int>(channels ? outputs / channels : 1);
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t before = padding[2 * axis], after = padding[2 * axis + 1];
    STD_TORCH_CHECK(stride[axis] >= 1, "stride must be at least 1, got ", stride[axis]);
    STD_TORCH_CHECK(before >= 0 && after >= 0, "padding must not be negative, got ", least(before, after));
    STD_TORCH_CHECK(kernel[axis] >= 1, "the kernel must have pixels, got size ", kernel[axis]);
    STD_TORCH_CHECK(before < kMostPixels && after < kMostPixels && size[axis] < kMostPixels &&
                        size[axis] + before + after < kMostPixels,
                    "the padded input must have less than 2^30 pixels on an axis, got ", size[axis], " and padding ",
                    before, " and ", after);
    const int64_t padded = size[axis] + before + after;
    STD_TORCH_CHECK(kernel[axis] <= padded, "the kernel has ", kernel[axis],
                    " pixels on an axis where the padded input has ", padded, ": pad more");
    const int64_t out = (padded - kernel[axis]) / stride[axis] + 1;
    STD_TORCH_CHECK(out == 1 || stride[axis] <= kMostStride, "stride must be at most 2^21, got ", stride[axis]);
    d.size[axis] = static_cast<int>(size[axis]);
    d.kernel[axis] = static_cast<int>(kernel[axis]);
    d.stride[axis] = out == 1 ? 1 : static_cast<int>(stride[axis]);  // a single output has no next
    d.before[axis] = static_cast<int>(before);
    d.out[axis] = static_cast<int>(out);
  }
  return d;
}

void check_weight(const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == 1, "weight must have shape (kernels, 1, height, width)");
}

void check_grad(const Tensor& grad, const Depthwise& d) {
  STD_TORCH_CHECK(grad.size(0) == d.batch && grad.size(1) == d.outputs() && grad.size(2) == d.out[0] &&
                      grad.size(3) == d.out[1],
                  "grad must have shape (", d.batch, ", ", d.outputs(), ", ", d.out[0], ", ", d.out[1], "), got (",
                  grad.size(0), ", ", grad.size(1), ", ", grad.size(2), ", ", grad.size(3), ")");
}

Tensor in_format_of(const Tensor& result, const Tensor& argument) {
  return is_channels_last(argument) ? torch::stable::contiguous(result, MemoryFormat::ChannelsLast) : result;
}

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, Sizes stride,
               Sizes padding) {
  check_images(input, "input");
  check_weight(weight);
  check_alike(input, "input", weight, "weight");
  const Depthwise d = geometry(input.size(0), input.size(1), input.size(2), input.size(3), weight.size(0),
                               {weight.size(2), weight.size(3)}, stride, padding);
  if (bias) {
    check_alike(input, "input", *bias, "bias");
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == d.outputs(), "bias must have ", d.outputs(), " elements");
  }
  const OnDevice run(input);
  const Tensor x = in_order(input), w = in_order(weight);
  const std::optional<Tensor> b = bias ? std::optional<Tensor>(in_order(*bias)) : std::nullopt;
  const Tensor output = torch::stable::new_empty(x, Sizes{d.batch, d.outputs(), d.out[0], d.out[1]});
  if (output.numel() == 0) return in_format_of(output, input);
  with_element(input, "input", [&](auto zero) {
    using T = decltype(zero);
    run_large_depthwise_forward<T>(run, d, data<T>(x), data<T>(w), b ? data<T>(*b) : nullptr, data<T>(output));
  });
  return in_format_of(output, input);
}

Tensor input_grad(const Tensor& grad, const Tensor& weight, Sizes input_size, Sizes stride, Sizes padding) {
  check_images(grad, "grad");
  check_weight(weight);
  check_alike(grad, "grad", weight, "weight");
  STD_TORCH_CHECK(input_size.size() == 3, "input_size must be channels, height and width, got ", input_size.size(),
                  " numbers");
  const Depthwise d = geometry(grad.size(0), input_size[0], input_size[1], input_size[2], weight.size(0),
                               {weight.size(2), weight.size(3)}, stride, padding);
  check_grad(grad, d);
  const OnDevice run(grad);
  const Tensor g = in_order(grad), w = in_order(weight);
  const Tensor result = torch::stable::new_empty(g, Sizes{d.batch, d.channels, d.size[0], d.size[1]});
  if (result.numel() == 0) return in_format_of(result, grad);
  with_element(grad, "grad", [&](auto zero) {
    using T = decltype(zero);
    run_large_depthwise_input_grad<T>(run, d, data<T>(g), data<T>(w), data<T>(result));
  });
  return in_format_of(result, grad);
}

Tensor weight_grad(const Tensor& grad, const Tensor& input, Sizes kernel_size, Sizes stride, Sizes padding) {
  check_images(grad, "grad");
  check_images(input, "input");
  check_alike(grad, "grad", input, "input");
  const Depthwise d = geometry(input.size(0), input.size(1), input.size(2), input.size(3), grad.size(1), kernel_size,
                               stride, padding);
  check_grad(grad, d);
  const OnDevice run(grad);
  const Tensor g = in_order(grad), x = in_order(input);
  const Tensor result = torch::stable::new_empty(g, Sizes{d.outputs(), 1, d.kernel[0], d.kernel[1]});
  if (result.numel() == 0) return result;
  std::optional<Tensor> parts;
  const auto scratch = [&](Index count, auto zero) -> decltype(zero)* {
    using S = decltype(zero);
    if (count == 0) return nullptr;
    parts = torch::stable::new_empty(g, Sizes{count}, sizeof(S) == 8 ? ScalarType::Double : ScalarType::Float);
    return data<S>(*parts);
  };
  with_element(grad, "grad", [&](auto zero) {
    using T = decltype(zero);
    run_large_depthwise_weight_grad<T>(run, scratch, d, data<T>(g), data<T>(x), data<T>(result));
  });
  return result;
}

}  // namespace
}  // namespace convswap

CONVSWAP_LIBRARY(m) {
  m.impl("large_depthwise_conv2d", TORCH_BOX(&convswap::forward));
  m.impl("large_depthwise_conv2d_input_grad", TORCH_BOX(&convswap::input_grad));
  m.impl("large_depthwise_conv2d_weight_grad", TORCH_BOX(&convswap::weight_grad));
}
