// Convolution of each sample with its own sum of K kernels, and its gradient to the input, on the CPU.
//
// A matrix product copies its blocks anyway: here they are mixed on the way. A block of all K kernels is read once, and
// for each sample mixed and multiplied with while it is in the nearest cache. No sample's kernel is ever whole.
#include <torch/csrc/stable/library.h>

#include "dynamic_weight_grad.h"

namespace convswap::dynamic {
namespace {

using namespace guided;

// Sums that are held at once, for all samples that a block of kernels is mixed for.
constexpr int64_t PIXELS_AT_ONCE = 2048, SAMPLES_AT_ONCE = 8;

struct Task {
  const Phase* phase;
  int64_t group, lane, lanes, pixel, pixels, sample, samples;
};

// Where results go: those of neighbouring lanes are `lane` apart.
template <typename S>
struct Result {
  S* data;
  int64_t sample, lane;
  const S* start;  // a number for each sample and lane, or nothing
};

// Lanes are outputs, or inputs for the gradient to them; `lane_step` is between their kernels.
template <typename S, typename T>
void convolve(const std::vector<Phase>& phases, const Sizes& sizes, int64_t lanes, int64_t channels,
              const KernelSteps& steps, int64_t lane_step, const Images<T>& source, const S* kernels,
              const S* attention, const Result<S>& out) {
  const Blocks blocks(lanes, sizes.kernels, sizeof(T));
  std::vector<T> shares(attention, attention + sizes.batch * sizes.kernels);
  std::vector<Task> tasks;
  for (const Phase& phase : phases) {
    const int64_t pixels = phase.pixels.count();
    const int64_t samples = std::max(SAMPLES_AT_ONCE, PIXELS_AT_ONCE / pixels);
    const int64_t most = std::max<int64_t>(1, PIXELS_AT_ONCE / std::min(samples, sizes.batch));
    for (int64_t group = 0; group < sizes.groups; ++group) {
      cut(sizes.batch, samples, [&](int64_t sample, int64_t sample_count) {
        cut(pixels, most, [&](int64_t pixel, int64_t pixel_count) {
          for (int64_t lane = 0; lane < lanes; lane += blocks.width) {
            const int64_t own = std::min(blocks.width, lanes - lane);
            tasks.push_back({&phase, group, lane, own, pixel, pixel_count, sample, sample_count});
          }
        });
      });
    }
  }
  const int64_t most_sums_held = std::max(PIXELS_AT_ONCE, SAMPLES_AT_ONCE) * blocks.width;
  torch::stable::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
    const int64_t block = blocks.terms * blocks.width;
    const Scratch<T> stacked(sizes.kernels * block), mixed(block), sums(most_sums_held);
    const Scratch<T> scratch(LANES_AT_ONCE * std::max({blocks.terms, PIXELS_AT_ONCE, blocks.width}));
    for (int64_t index = begin; index < end; ++index) {
      const Task& task = tasks[index];
      const Terms& all = task.phase->terms;
      const Pixels& pixels = task.phase->pixels;
      const int64_t count = static_cast<int64_t>(all.kernel.size());
      if (count == 0) std::fill_n(sums.get(), task.samples * task.pixels * blocks.width, T(0));
      cut(count, blocks.terms, [&](int64_t first, int64_t terms) {
        const KernelBlock own{all.kernel.data() + first, terms, lane_step, task.lanes, blocks.width};
        const S* from = kernels + task.group * sizes.outputs * steps.output + task.lane * lane_step;
        const int64_t size = terms * blocks.width;
        for (int64_t k = 0; k < sizes.kernels; ++k) {
          run_at_best_level<Stage>(from + k * steps.kernel, own, scratch.get(), stacked.get() + k * size);
        }
        for (int64_t b = 0; b < task.samples; ++b) {
          const int64_t sample = task.sample + b;
          run_at_best_level<Mix>(static_cast<const T*>(stacked.get()),
                                 static_cast<const T*>(shares.data() + sample * sizes.kernels), sizes.kernels, size,
                                 mixed.get());
          const T* image = source.data + sample * source.sample + task.group * channels * source.channel;
          T* const to = sums.get() + b * task.pixels * blocks.width;
          cut(task.pixels, most_sums(), [&](int64_t pixel, int64_t together) {
            const Product<T> product{mixed.get(), all.source.data() + first, terms, image,
                                     pixels.source.data() + task.pixel + pixel, to + pixel * blocks.width, first > 0};
            run_at_best_level<Multiply>(product, static_cast<int>(together), static_cast<int>(blocks.vectors));
          });
        }
      });
      const int64_t lane = task.group * lanes + task.lane;
      for (int64_t b = 0; b < task.samples; ++b) {
        const int64_t sample = task.sample + b;
        const S* start = out.start ? out.start + sample * sizes.groups * lanes + lane : nullptr;
        run_at_best_level<PutSums>(static_cast<const T*>(sums.get() + b * task.pixels * blocks.width), task.pixels,
                                   pixels.place.data() + task.pixel, blocks.width, task.lanes, start, scratch.get(),
                                   out.lane, out.data + sample * out.sample + lane * out.lane);
      }
    }
  });
}

Tensor forward(Tensor input, Tensor weight, std::optional<Tensor> bias, Tensor attention, Ints stride, Ints padding,
               Ints dilation, int64_t groups) {
  const Arguments a("dynamic_conv2d", input, "input", weight, attention);
  const Problem p = a.problem(input.size(0), input.size(1), input.size(2), input.size(3), stride, padding, dilation,
                              groups);
  Tensor more;
  if (bias) {
    check_alike(a.op, input, *bias, "bias");
    check_shape(a.op, *bias, "bias", {p.sizes.batch, p.sizes.all_outputs()});
    more = torch::stable::contiguous(*bias);
  }
  const bool last = is_channels_last(input);
  const Geometry& g = p.g;
  const Tensor out = empty_image({p.sizes.batch, p.sizes.all_outputs(), g.out_height, g.out_width}, input, last);
  if (out.numel() == 0) return out;
  const Tensor pixels = in_one_format(input), kernels = in_one_format(weight);
  const Tensor shares = torch::stable::contiguous(attention);
  dispatch(a.op, input.scalar_type(), [&](auto s) {
    using S = decltype(s);
    using T = Computed<S>;
    const Images<T> source(numbers<S>(pixels), last, p.sizes.batch, p.sizes.all_inputs(), g.height, g.width, padding);
    const KernelSteps steps(g, p.sizes.all_outputs(), p.sizes.inputs, is_channels_last(kernels));
    const int64_t pixel = last ? p.sizes.all_outputs() : 1, lane = last ? 1 : g.out_pixels();
    const std::vector<Phase> phases{output_phase(g, steps, source, p.sizes.inputs, pixel)};
    const Result<S> result_at{result<S>(out), p.sizes.all_outputs() * g.out_pixels(), lane,
                              bias ? numbers<S>(more) : nullptr};
    convolve(phases, p.sizes, p.sizes.outputs, p.sizes.inputs, steps, steps.output, source, numbers<S>(kernels),
             numbers<S>(shares), result_at);
  });
  return out;
}

Tensor input_grad(Tensor grad, Tensor weight, Tensor attention, Ints input_size, Ints stride, Ints padding,
                  Ints dilation, int64_t groups) {
  const Arguments a("dynamic_conv2d_input_grad", grad, "grad", weight, attention);
  STD_TORCH_CHECK(input_size.size() == 3, a.op, ": input_size must be C, H, W; got ", text(input_size));
  const Problem p = a.problem(grad.size(0), input_size[0], input_size[1], input_size[2], stride, padding, dilation,
                              groups);
  const Geometry& g = p.g;
  check_shape(a.op, grad, "grad", {p.sizes.batch, p.sizes.all_outputs(), g.out_height, g.out_width});
  const bool last = is_channels_last(grad);
  const Tensor out = empty_image({p.sizes.batch, p.sizes.all_inputs(), g.height, g.width}, grad, last);
  if (out.numel() == 0) return out;
  const Tensor own = in_one_format(grad), kernels = in_one_format(weight);
  const Tensor shares = torch::stable::contiguous(attention);
  dispatch(a.op, grad.scalar_type(), [&](auto s) {
    using S = decltype(s);
    using T = Computed<S>;
    const Images<T> source(numbers<S>(own), last, p.sizes.batch, p.sizes.all_outputs(), g.out_height, g.out_width,
                           GradAxes(g).zeros());
    const KernelSteps steps(g, p.sizes.all_outputs(), p.sizes.inputs, is_channels_last(kernels));
    const int64_t pixel = last ? p.sizes.all_inputs() : 1, lane = last ? 1 : g.in_pixels();
    const Result<S> result_at{result<S>(out), p.sizes.all_inputs() * g.in_pixels(), lane, nullptr};
    convolve(input_phases(g, steps, source, p.sizes.outputs, pixel), p.sizes, p.sizes.inputs, p.sizes.outputs, steps,
             steps.input, source, numbers<S>(kernels), numbers<S>(shares), result_at);
  });
  return out;
}

std::tuple<Tensor, Tensor> weight_grad(Tensor grad, Tensor input, Tensor weight, Tensor attention, Ints stride,
                                       Ints padding, Ints dilation, int64_t groups) {
  const Arguments a("dynamic_conv2d_weight_grad", input, "input", weight, attention);
  check_four_axes(a.op, grad, "grad");
  check_alike(a.op, input, grad, "grad");
  const Problem p = a.problem(input.size(0), input.size(1), input.size(2), input.size(3), stride, padding, dilation,
                              groups);
  const Geometry& g = p.g;
  check_shape(a.op, grad, "grad", {p.sizes.batch, p.sizes.all_outputs(), g.out_height, g.out_width});
  const Tensor own = in_one_format(grad), pixels = in_one_format(input), kernels = in_one_format(weight);
  const Tensor shares = torch::stable::contiguous(attention);
  const Tensor to_weight = empty_image(shape(weight), weight, is_channels_last(kernels));
  const Tensor to_attention = empty(shape(attention), attention);
  dispatch(a.op, input.scalar_type(), [&](auto s) {
    using S = decltype(s);
    using T = Computed<S>;
    const bool last = is_channels_last(pixels);
    const Images<T> source(numbers<S>(pixels), last, p.sizes.batch, p.sizes.all_inputs(), g.height, g.width, padding);
    const KernelSteps steps(g, p.sizes.all_outputs(), p.sizes.inputs, is_channels_last(kernels));
    run_weight_grad(output_phase(g, steps, source, p.sizes.inputs, 1), p.sizes, steps, source, numbers<S>(own),
                    is_channels_last(own), numbers<S>(kernels), numbers<S>(shares), result<S>(to_weight),
                    result<S>(to_attention));
  });
  return {to_weight, to_attention};
}

}  // namespace
}  // namespace convswap::dynamic

STABLE_TORCH_LIBRARY_IMPL(convswap, CPU, m) {
  m.impl("dynamic_conv2d", TORCH_BOX(&convswap::dynamic::forward));
  m.impl("dynamic_conv2d_input_grad", TORCH_BOX(&convswap::dynamic::input_grad));
  m.impl("dynamic_conv2d_weight_grad", TORCH_BOX(&convswap::dynamic::weight_grad));
}
