// The dynamic ops: checks, memory and launches.
#include "guided_arguments.h"

#include "dynamic_ops.cuh"

namespace convswap {

#if defined(__CUDACC__)
template <>
struct TensorCoreOf<c10::BFloat16> {
  using type = __nv_bfloat16;
};
template <>
struct TensorCoreOf<c10::Half> {
  using type = __half;
};
#endif

namespace {

// A block's reduction, and a tap, are counted in 32 bits.
constexpr int64_t kMostNumbers = int64_t{1} << 30;

Dynamic geometry(int64_t batch, const Sizes& image, const Tensor& weight, const Tensor& attention, const Sizes& stride,
                 const Sizes& padding, const Sizes& dilation, int64_t groups) {
  STD_TORCH_CHECK(weight.dim() == 4,
                  "weight must have 4 axes (kernels times outputs, inputs of a group, height, width), got ",
                  told(sizes_of(weight)));
  STD_TORCH_CHECK(attention.dim() == 2 && attention.size(0) == batch && attention.size(1) >= 1,
                  "attention must be (batch ", batch, ", kernels), got ", told(sizes_of(attention)));
  const int64_t kernels = attention.size(1);
  STD_TORCH_CHECK(kernels < kMostNumbers, "too many kernels: ", kernels);
  STD_TORCH_CHECK(weight.size(0) % kernels == 0, "weight must have a row for each output of ", kernels,
                  " kernels, got ", told(sizes_of(weight)));
  const Guided g = guided(batch, image, weight.size(0) / kernels, groups,
                          {{weight.size(2), weight.size(3)}, stride, padding, dilation});
  STD_TORCH_CHECK(weight.size(1) == g.inputs, "weight must have ", g.inputs, " inputs of a group, got ",
                  told(sizes_of(weight)));
  const int64_t taps = int64_t{g.kernel[0]} * g.kernel[1];
  STD_TORCH_CHECK(taps < kMostNumbers && most(g.inputs, g.outputs) * taps < kMostNumbers,
                  "the kernel of an output must have less than 2^30 numbers, got ", told(sizes_of(weight)));
  Dynamic d{};
  d.batch = batch;
  d.kernels = static_cast<int>(kernels);
  d.groups = g.groups;
  d.inputs = g.inputs;
  d.outputs = g.outputs;
  for (int axis = 0; axis < 2; ++axis) {
    d.size[axis] = g.size[axis];
    d.kernel[axis] = g.kernel[axis];
    d.stride[axis] = g.stride[axis];
    d.dilation[axis] = g.dilation[axis];
    d.before[axis] = g.before[axis];
    d.out[axis] = g.out[axis];
  }
  lay_out_weight(d, is_channels_last(weight));
  return d;
}

Tensor empty_image(const Tensor& like, const Sizes& shape) {
  const Tensor image = torch::stable::new_empty(like, shape);
  return in_guided_format(image, like);
}

// In C order or with the channels last.
Tensor in_some_order(const Tensor& weight) {
  return weight.is_contiguous() || is_channels_last(weight) ? weight : torch::stable::contiguous(weight);
}

// Room for sums, kept until the op has returned: memory is given back in the order of the stream.
class Scratch {
 public:
  explicit Scratch(const Tensor& like) : like_(like) {}

  template <typename S>
  S* operator()(Index count, S) {
    kept_.push_back(
        torch::stable::new_empty(like_, Sizes{count}, sizeof(S) == 8 ? ScalarType::Double : ScalarType::Float));
    return data<S>(kept_.back());
  }

 private:
  Tensor like_;
  std::vector<Tensor> kept_;
};

// The convolution of `image`, or, turned, the gradient to the input from a gradient `image`.
Tensor convolved(const Dynamic& d, bool turned, const Tensor& image, const Tensor& weight, const Tensor& attention,
                 const std::optional<Tensor>& bias) {
  const OnDevice run(image);
  const Tensor x = in_order(image), w = in_some_order(weight), a = in_order(attention);
  const std::optional<Tensor> b = bias ? std::optional<Tensor>(in_order(*bias)) : std::nullopt;
  const Tensor result = turned ? empty_image(image, {d.batch, d.channels(), d.size[0], d.size[1]})
                               : empty_image(image, {d.batch, d.all_outputs(), d.out[0], d.out[1]});
  if (result.numel() == 0) return result;
  const DynamicView v = view_dynamic(d, turned, is_channels_last(result));
  Scratch scratch(x);
  with_element(image, turned ? "grad" : "input", [&](auto zero) {
    using T = decltype(zero);
    run_dynamic_conv2d<T>(run, scratch, d, v, data<T>(x), data<T>(w), data<T>(a), b ? data<T>(*b) : nullptr,
                          data<T>(result));
  });
  return result;
}

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& attention,
               Sizes stride, Sizes padding, Sizes dilation, int64_t groups) {
  check_guided_image(input, "input");
  check_guided_alike(input, "input", weight, "weight");
  check_guided_alike(input, "input", attention, "attention");
  const Dynamic d = geometry(input.size(0), {input.size(1), input.size(2), input.size(3)}, weight, attention, stride,
                             padding, dilation, groups);
  if (bias) {
    check_guided_alike(input, "input", *bias, "bias");
    check_guided_shape(*bias, "bias", {d.batch, d.all_outputs()});
  }
  return convolved(d, false, input, weight, attention, bias);
}

Tensor input_grad(const Tensor& grad, const Tensor& weight, const Tensor& attention, Sizes input_size, Sizes stride,
                  Sizes padding, Sizes dilation, int64_t groups) {
  check_guided_image(grad, "grad");
  check_guided_alike(grad, "grad", weight, "weight");
  check_guided_alike(grad, "grad", attention, "attention");
  const Dynamic d = geometry(grad.size(0), input_size, weight, attention, stride, padding, dilation, groups);
  check_guided_shape(grad, "grad", {d.batch, d.all_outputs(), d.out[0], d.out[1]});
  return convolved(d, true, grad, weight, attention, std::nullopt);
}

std::tuple<Tensor, Tensor> weight_grad(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                       const Tensor& attention, Sizes stride, Sizes padding, Sizes dilation,
                                       int64_t groups) {
  check_guided_image(grad, "grad");
  check_guided_image(input, "input");
  check_guided_alike(grad, "grad", input, "input");
  check_guided_alike(grad, "grad", weight, "weight");
  check_guided_alike(grad, "grad", attention, "attention");
  Dynamic d = geometry(input.size(0), {input.size(1), input.size(2), input.size(3)}, weight, attention, stride, padding,
                       dilation, groups);
  check_guided_shape(grad, "grad", {d.batch, d.all_outputs(), d.out[0], d.out[1]});
  const OnDevice run(grad);
  const Tensor g = in_order(grad), x = in_order(input), w = in_some_order(weight), a = in_order(attention);
  const Tensor to_weight = empty_image(w, sizes_of(w));
  const Tensor to_attention = torch::stable::new_empty(a, sizes_of(a));
  Scratch scratch(g);
  with_element(grad, "grad", [&](auto zero) {
    using T = decltype(zero);
    run_dynamic_weight_grad<T>(run, scratch, d, data<T>(g), data<T>(x), data<T>(w), data<T>(a), data<T>(to_weight),
                               data<T>(to_attention));
  });
  return {to_weight, to_attention};
}

}  // namespace
}  // namespace convswap

CONVSWAP_LIBRARY(m) {
  m.impl("dynamic_conv2d", TORCH_BOX(&convswap::forward));
  m.impl("dynamic_conv2d_input_grad", TORCH_BOX(&convswap::input_grad));
  m.impl("dynamic_conv2d_weight_grad", TORCH_BOX(&convswap::weight_grad));
}
