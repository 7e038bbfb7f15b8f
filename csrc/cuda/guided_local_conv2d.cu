// The guided ops that mix the channels of a group: outputs share the input's pixels, and inputs the gradient's.
#include "guided_arguments.h"

namespace convswap {
namespace {

constexpr int kMost = 4;

Guided geometry(int64_t batch, const Sizes& image, int64_t outputs, const Sizes& kernel, const Sizes& stride,
                const Sizes& padding, const Sizes& dilation, int64_t groups) {
  Guided d = guided(batch, image, outputs, groups, {kernel, stride, padding, dilation});
  lay_out_by_input(d);
  return d;
}

Sizes weight_shape(const Guided& d) {
  const int64_t taps = static_cast<int64_t>(d.kernel[0]) * d.kernel[1];
  return {d.batch, d.inputs, taps, d.all_outputs(), d.out[0], d.out[1]};
}

void check_weight(const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 6,
                  "weight must have 6 axes (batch, inputs of a group, taps, outputs, height, width), got ",
                  told(sizes_of(weight)));
}

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, Sizes kernel_size,
               Sizes stride, Sizes padding, Sizes dilation, int64_t groups) {
  check_guided_image(input, "input");
  check_weight(weight);
  check_guided_alike(input, "input", weight, "weight");
  const Guided d = geometry(input.size(0), {input.size(1), input.size(2), input.size(3)}, weight.size(3), kernel_size,
                            stride, padding, dilation, groups);
  check_guided_shape(weight, "weight", weight_shape(d));
  return guided_forward_of<kMost>(d, input, weight, bias);
}

Tensor input_grad(const Tensor& grad, const Tensor& weight, Sizes input_size, Sizes kernel_size, Sizes stride,
                  Sizes padding, Sizes dilation, int64_t groups) {
  check_guided_image(grad, "grad");
  check_weight(weight);
  check_guided_alike(grad, "grad", weight, "weight");
  const Guided d = geometry(grad.size(0), input_size, weight.size(3), kernel_size, stride, padding, dilation, groups);
  check_guided_shape(grad, "grad", {d.batch, d.all_outputs(), d.out[0], d.out[1]});
  check_guided_shape(weight, "weight", weight_shape(d));
  return guided_input_grad_of<kMost>(d, grad, weight);
}

Tensor weight_grad(const Tensor& grad, const Tensor& input, Sizes kernel_size, Sizes stride, Sizes padding,
                   Sizes dilation, int64_t groups) {
  check_guided_image(grad, "grad");
  check_guided_image(input, "input");
  check_guided_alike(grad, "grad", input, "input");
  const Guided d = geometry(input.size(0), {input.size(1), input.size(2), input.size(3)}, grad.size(1), kernel_size,
                            stride, padding, dilation, groups);
  check_guided_shape(grad, "grad", {d.batch, d.all_outputs(), d.out[0], d.out[1]});
  return guided_weight_grad_of<kMost>(d, grad, input, weight_shape(d));
}

}  // namespace
}  // namespace convswap

CONVSWAP_LIBRARY(m) {
  m.impl("guided_local_conv2d", TORCH_BOX(&convswap::forward));
  m.impl("guided_local_conv2d_input_grad", TORCH_BOX(&convswap::input_grad));
  m.impl("guided_local_conv2d_weight_grad", TORCH_BOX(&convswap::weight_grad));
}
