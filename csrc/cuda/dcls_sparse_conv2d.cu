// The ops of DCLS' sparse path: checks, memory and launches.
#include "dcls_arguments.h"

#include "dcls_sparse_ops.cuh"

namespace convswap {
namespace {

constexpr int64_t kMostPixels = int64_t{1} << 29;  // places around an image are counted in 32 bits

// Sizes are channels, height and width.
SparseShape sparse_shape(const Sizes& image, const Tensor& like, const Tensor& weight, const Tensor& P,
                         const Sizes& size, const Sizes& axes, bool normalise, bool right_slope, const Sizes& stride,
                         const Sizes& padding) {
  check_grid(weight, P, size, axes);
  STD_TORCH_CHECK(size.size() == 2, "size must be height and width, got ", size.size(), " numbers");
  STD_TORCH_CHECK(weight.size(1) == 1, "weight must have shape (outputs, 1, elements), got ", shape_of(weight));
  const bool precise = like.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(precise == (weight.scalar_type() == ScalarType::Double), "weight and P must be ",
                  precise ? "float64" : "float32", " beside such an image, convert them");
  STD_TORCH_CHECK(like.is_cuda() == weight.is_cuda() && like.get_device_index() == weight.get_device_index(),
                  "weight and the image must lie on one device, move one of them");
  STD_TORCH_CHECK(stride.size() == 2, "stride must be 2 numbers, got ", stride.size());
  STD_TORCH_CHECK(padding.size() == 4, "padding must be top, bottom, left and right, got ", padding.size(), " numbers");
  const int64_t outputs = weight.size(0), channels = image[0];
  STD_TORCH_CHECK(channels > 0 ? outputs % channels == 0 && outputs / channels < kMostPixels : outputs == 0,
                  "weight has ", outputs, " outputs, which must be a multiple of the ", channels,
                  " channels of the image");
  SparseShape shape{};
  shape.batch = like.size(0);
  shape.channels = channels;
  shape.multiplier = channels > 0 ? static_cast<int>(outputs / channels) : 1;
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t before = padding[2 * axis], after = padding[2 * axis + 1], pixels = image[1 + axis];
    STD_TORCH_CHECK(stride[axis] >= 1, "stride must be at least 1, got ", stride[axis]);
    STD_TORCH_CHECK(before >= 0 && after >= 0, "padding must not be negative, got ", least(before, after));
    STD_TORCH_CHECK(before < kMostPixels && after < kMostPixels && pixels + before + after < kMostPixels,
                    "the padded image must have less than 2^29 pixels on an axis, got ", pixels, " and padding ",
                    before, " and ", after);
    const int64_t padded = pixels + before + after;
    STD_TORCH_CHECK(size[axis] <= padded, "the kernel has ", size[axis],
                    " pixels on an axis where the padded image has ", padded, ": pad more");
    shape.size[axis] = static_cast<int>(pixels);
    shape.before[axis] = static_cast<int>(before);
    shape.out[axis] = static_cast<int>((padded - size[axis]) / stride[axis] + 1);
    shape.stride[axis] = static_cast<int>(least<int64_t>(stride[axis], kMostPixels));
  }
  STD_TORCH_CHECK(static_cast<int64_t>(shape.step(0)) * shape.step(1) < kMostPixels,
                  "the strides must have a product less than 2^29, got ", stride[0], " and ", stride[1]);
  shape.grid = make_grid(2, size, axes, outputs, weight.size(2));
  shape.normalise = normalise;
  shape.right_slope = right_slope;
  return shape;
}

void check_image(const Tensor& image, const char* name) {
  STD_TORCH_CHECK(image.dim() == 4, name, " must have 4 axes (batch, channels, height, width), got ", shape_of(image));
}

void check_output_grad(const Tensor& grad, const SparseShape& shape) {
  STD_TORCH_CHECK(grad.size(0) == shape.batch && grad.size(1) == shape.grid.kernels && grad.size(2) == shape.out[0] &&
                      grad.size(3) == shape.out[1],
                  "grad must have shape (", shape.batch, ", ", shape.grid.kernels, ", ", shape.out[0], ", ",
                  shape.out[1], "), got ", shape_of(grad));
}

SparseImages neighbours(const Tensor& image) {
  return {image.stride(0), image.stride(1), image.stride(2), image.stride(3)};
}

// An image in the format of another.
Tensor new_image(const Tensor& like, int64_t batch, int64_t channels, const int (&size)[2]) {
  if (!is_channels_last(like)) return torch::stable::new_empty(like, Sizes{batch, channels, size[0], size[1]});
  const Tensor stored = torch::stable::new_empty(like, Sizes{batch, size[0], size[1], channels});
  return torch::stable::transpose(torch::stable::transpose(stored, 1, 3), 2, 3);
}

Tensor ints_of(const Tensor& like, Index count) {
  return torch::stable::new_empty(like, Sizes{count}, ScalarType::Int);
}

Tensor numbers_of(const Tensor& like, Index count) { return torch::stable::new_empty(like, Sizes{count}); }

Tensor forward(const Tensor& input, const Tensor& weight, const Tensor& P, Sizes size, Sizes axes, bool normalise,
               bool right_slope, Sizes stride, Sizes padding) {
  check_image(input, "input");
  const SparseShape shape = sparse_shape({input.size(1), input.size(2), input.size(3)}, input, weight, P, size, axes,
                                     normalise, right_slope, stride, padding);
  const OnDevice run(input);
  const Tensor w = in_order(weight), p = in_order(P);
  const Tensor output = new_image(input, shape.batch, shape.grid.kernels, shape.out);
  if (output.numel() == 0) return output;
  const SparseScratch scratch = sparse_scratch(Taps::kDrawn, shape);
  const Tensor ints = ints_of(w, scratch.ints), values = numbers_of(w, scratch.values);
  with_element(input, "input", [&](auto zero) {
    using T = decltype(zero);
    using S = Sum<T>;
    sparse_forward<T>(run, shape, data<T>(input), neighbours(input), data<S>(w), data<S>(p), data<T>(output),
                      neighbours(output), data<int>(ints), data<S>(values));
  });
  return output;
}

Tensor input_grad(const Tensor& grad, const Tensor& weight, const Tensor& P, Sizes input_size, Sizes size, Sizes axes,
                  bool normalise, bool right_slope, Sizes stride, Sizes padding) {
  check_image(grad, "grad");
  STD_TORCH_CHECK(input_size.size() == 3, "input_size must be channels, height and width, got ", input_size.size(),
                  " numbers");
  const SparseShape shape =
      sparse_shape(input_size, grad, weight, P, size, axes, normalise, right_slope, stride, padding);
  check_output_grad(grad, shape);
  const OnDevice run(grad);
  const Tensor w = in_order(weight), p = in_order(P);
  const Tensor result = new_image(grad, shape.batch, shape.channels, shape.size);
  if (result.numel() == 0) return result;
  const SparseScratch scratch = sparse_scratch(Taps::kMirrored, shape);
  const Tensor ints = ints_of(w, scratch.ints), values = numbers_of(w, scratch.values);
  with_element(grad, "grad", [&](auto zero) {
    using T = decltype(zero);
    using S = Sum<T>;
    sparse_input_grad<T>(run, shape, data<T>(grad), neighbours(grad), data<S>(w), data<S>(p), data<T>(result),
                         neighbours(result), data<int>(ints), data<S>(values));
  });
  return result;
}

std::tuple<Tensor, Tensor> kernel_grad(const Tensor& grad, const Tensor& input, const Tensor& weight, const Tensor& P,
                                       Sizes size, Sizes axes, bool normalise, bool right_slope, Sizes stride,
                                       Sizes padding) {
  check_image(grad, "grad");
  check_image(input, "input");
  STD_TORCH_CHECK(grad.scalar_type() == input.scalar_type(), "grad and input must have one dtype, convert one of them");
  STD_TORCH_CHECK(grad.is_cuda() == input.is_cuda() && grad.get_device_index() == input.get_device_index(),
                  "grad and input must lie on one device, move one of them");
  const SparseShape shape = sparse_shape({input.size(1), input.size(2), input.size(3)}, input, weight, P, size, axes,
                                     normalise, right_slope, stride, padding);
  check_output_grad(grad, shape);
  const OnDevice run(input);
  const Tensor w = in_order(weight), p = in_order(P);
  const Tensor weight_grad = torch::stable::empty_like(w), P_grad = torch::stable::empty_like(p);
  if (weight_grad.numel() == 0) return {weight_grad, P_grad};
  const SparseScratch scratch = sparse_scratch(Taps::kTouched, shape);
  const Tensor ints = ints_of(w, scratch.ints), dense = numbers_of(w, shape.grid.kernels * shape.grid.cells);
  with_element(input, "input", [&](auto zero) {
    using T = decltype(zero);
    using S = Sum<T>;
    const SparseKernelGrad plan = sparse_kernel_grad_plan<T>(shape, neighbours(grad), neighbours(input));
    const Tensor partial = numbers_of(w, scratch.values * plan.parts);
    sparse_kernel_grad<T>(run, shape, plan, data<T>(grad), data<T>(input), data<S>(w), data<S>(p), data<S>(weight_grad),
                          data<S>(P_grad), data<int>(ints), data<S>(partial), data<S>(dense));
  });
  return {weight_grad, P_grad};
}

}  // namespace
}  // namespace convswap

CONVSWAP_LIBRARY(m) {
  m.impl("dcls_sparse_depthwise_conv2d", TORCH_BOX(&convswap::forward));
  m.impl("dcls_sparse_depthwise_conv2d_input_grad", TORCH_BOX(&convswap::input_grad));
  m.impl("dcls_sparse_depthwise_conv2d_kernel_grad", TORCH_BOX(&convswap::kernel_grad));
}
