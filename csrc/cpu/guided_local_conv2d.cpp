// Convolution with a generated kernel for each sample and pixel, across channels, and its two gradients, on the CPU.
//
// What takes time is to move the generated kernels: each number of them is read or written once, in runs of pixels.
#include <torch/csrc/stable/library.h>

#include "guided_problem.h"

namespace convswap::guided {
namespace {

struct Channels {
  int64_t batch, groups, inputs, outputs;  // inputs and outputs of a group

  int64_t all_inputs() const { return groups * inputs; }
  int64_t all_outputs() const { return groups * outputs; }
};

// Outputs that are summed up side by side, so that what they read is made ready once for all of them.
constexpr int64_t OUTPUTS_AT_ONCE = 8;

// The generated numbers of a sample are (inputs, taps, all outputs, pixels).
struct KernelSteps {
  int64_t input, tap, output;

  KernelSteps(const Geometry& g, const Channels& c)
      : input(g.taps() * c.all_outputs() * g.out_pixels()),
        tap(c.all_outputs() * g.out_pixels()),
        output(g.out_pixels()) {}
};

template <typename S>
void run_forward(const Geometry& g, const Channels& c, const S* input, const S* weight, const S* bias, S* out) {
  using T = Computed<S>;
  const KernelSteps steps(g, c);
  const int64_t rows = band_rows(g, g.out_height, 3 * sizeof(T)), bands = (g.out_height + rows - 1) / rows;
  const int64_t blocks = (c.outputs + OUTPUTS_AT_ONCE - 1) / OUTPUTS_AT_ONCE;
  const SheetLayout layout(g, rows + g.last_shift());
  const int64_t taps = g.taps(), pixels = g.out_pixels(), most = rows * g.out_width;
  torch::stable::parallel_for(0, c.batch * c.groups * blocks * bands, grain(most * taps * c.inputs * OUTPUTS_AT_ONCE),
                              [&](int64_t begin, int64_t end) {
    const Scratch<T> sheets(layout.size()), scratch(std::is_same_v<S, T> ? 0 : OUTPUTS_AT_ONCE * most);
    std::vector<Term<S>> terms(taps);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t band = task % bands, block = task / bands % blocks, group = task / bands / blocks % c.groups;
      const int64_t sample = task / bands / blocks / c.groups, y = band * rows, first = y * g.out_width;
      const int64_t length = std::min(rows, g.out_height - y) * g.out_width;
      const int64_t from = group * c.outputs + block * OUTPUTS_AT_ONCE;
      const int64_t to = std::min(from + OUTPUTS_AT_ONCE, (group + 1) * c.outputs);
      S* const images = out + sample * c.all_outputs() * pixels + first;
      const auto sums_of = [&](int64_t o) -> T* {
        if constexpr (std::is_same_v<S, T>) return images + o * pixels;
        else return scratch.get() + (o - from) * most;
      };
      const auto start_of = [&](int64_t o) { return bias ? static_cast<T>(bias[sample * c.all_outputs() + o]) : T(0); };
      for (int64_t o = from; c.inputs == 0 && o < to; ++o) std::fill_n(sums_of(o), length, start_of(o));
      for (int64_t i = 0; i < c.inputs; ++i) {
        const int64_t plane = sample * c.all_inputs() + group * c.inputs + i;
        const S* kernels = weight + (sample * c.inputs + i) * steps.input + first;
        run_at_best_level<FillSheets>(input + plane * g.in_pixels(), layout, y, sheets.get());
        for (int64_t o = from; o < to; ++o) {
          for (int64_t t = 0; t < taps; ++t) {
            terms[t] = {kernels + t * steps.tap + o * steps.output, tap_pixels<T>(layout, sheets.get(), t)};
          }
          run_at_best_level<SumProducts>(static_cast<const Term<S>*>(terms.data()), taps, length, start_of(o), i > 0,
                                         sums_of(o));
        }
      }
      if constexpr (!std::is_same_v<S, T>) {
        for (int64_t o = from; o < to; ++o) {
          run_at_best_level<NarrowRun>(static_cast<const T*>(sums_of(o)), length, images + o * pixels);
        }
      }
    }
  });
}

// In the precision that is computed in: where they are, or a copy in `scratch`.
template <typename S>
const Computed<S>* all_computed(const S* from, int64_t planes, int64_t pixels, Computed<S>* scratch) {
  if constexpr (!std::is_same_v<S, Computed<S>>) {
    torch::stable::parallel_for(0, planes, grain(pixels), [&](int64_t begin, int64_t end) {
      run_at_best_level<WidenRun>(from + begin * pixels, (end - begin) * pixels, scratch + begin * pixels);
    });
    return scratch;
  } else {
    return from;
  }
}

template <typename S>
void run_input_grad(const Geometry& g, const Channels& c, const S* grad, const S* weight, S* out) {
  using T = Computed<S>;
  const KernelSteps steps(g, c);
  const int64_t all = sheet_rows(g), rows = band_rows(g, all, sizeof(T)), bands = (all + rows - 1) / rows;
  const int64_t pixels = g.out_pixels(), planes = c.batch * c.all_outputs();
  const SheetLayout layout(g, rows);
  const Scratch<T> copies(std::is_same_v<S, T> ? 0 : planes * pixels);
  const T* grads = all_computed(grad, planes, pixels, copies.get());
  torch::stable::parallel_for(0, c.batch * c.all_inputs() * bands, grain(rows * g.out_width * g.taps() * c.outputs),
                              [&](int64_t begin, int64_t end) {
    const Scratch<T> sheets(layout.size()), folded(layout.rows * layout.row_size());
    std::vector<Term<S>> terms;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / bands, first = task % bands * rows;
      const int64_t sample = plane / c.all_inputs(), group = plane % c.all_inputs() / c.inputs;
      const S* kernels = weight + (sample * c.inputs + plane % c.inputs) * steps.input;
      for (const Segment& segment : segments(g, first, first + rows)) {
        for (int64_t j = 0; j < g.kernel_width; ++j) {
          terms.clear();
          for (const int64_t i : segment.of) {
            const int64_t at = (segment.from - g.shift(i)) * g.out_width;
            const int64_t own = (i * g.kernel_width + j) * steps.tap + at;
            for (int64_t o = group * c.outputs; o < (group + 1) * c.outputs; ++o) {
              terms.push_back({kernels + own + o * steps.output, grads + (sample * c.all_outputs() + o) * pixels + at});
            }
          }
          T* to = sheets.get() + layout.sheet(segment.residue, j) + (segment.from - first) * g.out_width;
          run_at_best_level<SumProducts>(static_cast<const Term<S>*>(terms.data()), static_cast<int64_t>(terms.size()),
                                         (segment.to - segment.from) * g.out_width, T(0), false, to);
        }
      }
      run_at_best_level<FoldSheets>(sheets.get(), layout, first, folded.get(),
                                    out + plane * g.in_pixels());
    }
  });
}

template <typename S>
void run_weight_grad(const Geometry& g, const Channels& c, const S* grad, const S* input, S* out) {
  using T = Computed<S>;
  const KernelSteps steps(g, c);
  const int64_t rows = band_rows(g, g.out_height, sizeof(T)), bands = (g.out_height + rows - 1) / rows;
  const SheetLayout layout(g, rows + g.last_shift());
  const int64_t taps = g.taps(), pixels = g.out_pixels(), most = rows * g.out_width;
  const int64_t bytes = c.batch * steps.input * c.inputs * static_cast<int64_t>(sizeof(S));
  const bool large = bytes >= LARGE_BYTES;
  torch::stable::parallel_for(0, c.batch * c.all_inputs() * bands, grain(most * taps * c.outputs),
                              [&](int64_t begin, int64_t end) {
    const Scratch<T> sheets(layout.size()), scratch(std::is_same_v<S, T> ? 0 : most);
    std::vector<Target<S>> targets(taps);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / bands, y = task % bands * rows, first = y * g.out_width;
      const int64_t length = std::min(rows, g.out_height - y) * g.out_width;
      const int64_t sample = plane / c.all_inputs(), group = plane % c.all_inputs() / c.inputs;
      S* kernels = out + (sample * c.inputs + plane % c.inputs) * steps.input + first;
      run_at_best_level<FillSheets>(input + plane * g.in_pixels(), layout, y, sheets.get());
      for (int64_t o = group * c.outputs; o < (group + 1) * c.outputs; ++o) {
        for (int64_t t = 0; t < taps; ++t) {
          targets[t] = {kernels + t * steps.tap + o * steps.output, tap_pixels<T>(layout, sheets.get(), t)};
        }
        const T* own = computed(grad + (sample * c.all_outputs() + o) * pixels + first, length, scratch.get());
        run_at_best_level<SpreadProducts>(own, static_cast<const Target<S>*>(targets.data()), taps, length, large);
      }
    }
  });
}

Channels channels_of(const char* op, int64_t batch, int64_t inputs, int64_t outputs, int64_t groups) {
  STD_TORCH_CHECK(groups > 0 && inputs >= 0 && inputs % groups == 0 && outputs % groups == 0, op, ": ", inputs,
                  " input channels and ", outputs, " outputs cannot be split into ", groups, " groups");
  return {batch, groups, inputs / groups, outputs / groups};
}

Tensor forward(Tensor input, Tensor weight, std::optional<Tensor> bias, Ints kernel_size, Ints stride, Ints padding,
               Ints dilation, int64_t groups) {
  const char* op = "guided_local_conv2d";
  check_four_axes(op, input, "input");
  check_alike(op, input, weight, "weight");
  const Geometry g = make_geometry(op, input.size(2), input.size(3), kernel_size, stride, padding, dilation);
  STD_TORCH_CHECK(weight.dim() == 6, op,
                  ": weight must be (batch, inputs, taps, outputs, height, width), got ", text(shape(weight)));
  const int64_t outputs = weight.size(3);
  const Channels c = channels_of(op, input.size(0), input.size(1), outputs, groups);
  check_shape(op, weight, "weight", {c.batch, c.inputs, g.taps(), outputs, g.out_height, g.out_width});
  const Tensor pixels = torch::stable::contiguous(input), kernels = torch::stable::contiguous(weight);
  Tensor more;
  if (bias) {
    check_alike(op, input, *bias, "bias");
    check_shape(op, *bias, "bias", {c.batch, outputs});
    more = torch::stable::contiguous(*bias);
  }
  const Tensor out = empty({c.batch, outputs, g.out_height, g.out_width}, input);
  if (out.numel() == 0) return in_format_of(out, input);
  dispatch(op, input.scalar_type(), [&](auto s) {
    using S = decltype(s);
    run_forward(g, c, numbers<S>(pixels), numbers<S>(kernels), bias ? numbers<S>(more) : nullptr, result<S>(out));
  });
  return in_format_of(out, input);
}

Tensor input_grad(Tensor grad, Tensor weight, Ints input_size, Ints kernel_size, Ints stride, Ints padding,
                  Ints dilation, int64_t groups) {
  const char* op = "guided_local_conv2d_input_grad";
  check_four_axes(op, grad, "grad");
  check_alike(op, grad, weight, "weight");
  STD_TORCH_CHECK(input_size.size() == 3, op, ": input_size must be C, H, W; got ", text(input_size));
  const Geometry g = make_geometry(op, input_size[1], input_size[2], kernel_size, stride, padding, dilation);
  const Channels c = channels_of(op, grad.size(0), input_size[0], grad.size(1), groups);
  check_shape(op, grad, "grad", {c.batch, c.all_outputs(), g.out_height, g.out_width});
  check_shape(op, weight, "weight", {c.batch, c.inputs, g.taps(), c.all_outputs(), g.out_height, g.out_width});
  const Tensor own = torch::stable::contiguous(grad), kernels = torch::stable::contiguous(weight);
  const Tensor out = empty({c.batch, c.all_inputs(), g.height, g.width}, grad);
  if (out.numel() == 0) return in_format_of(out, grad);
  dispatch(op, grad.scalar_type(), [&](auto s) {
    using S = decltype(s);
    run_input_grad(g, c, numbers<S>(own), numbers<S>(kernels), result<S>(out));
  });
  return in_format_of(out, grad);
}

Tensor weight_grad(Tensor grad, Tensor input, Ints kernel_size, Ints stride, Ints padding, Ints dilation,
                   int64_t groups) {
  const char* op = "guided_local_conv2d_weight_grad";
  check_four_axes(op, grad, "grad");
  check_four_axes(op, input, "input");
  check_alike(op, grad, input, "input");
  const Geometry g = make_geometry(op, input.size(2), input.size(3), kernel_size, stride, padding, dilation);
  const Channels c = channels_of(op, input.size(0), input.size(1), grad.size(1), groups);
  check_shape(op, grad, "grad", {c.batch, c.all_outputs(), g.out_height, g.out_width});
  const Tensor own = torch::stable::contiguous(grad), pixels = torch::stable::contiguous(input);
  const Tensor out = empty({c.batch, c.inputs, g.taps(), c.all_outputs(), g.out_height, g.out_width}, grad);
  if (out.numel() == 0) return out;
  dispatch(op, grad.scalar_type(), [&](auto s) {
    using S = decltype(s);
    run_weight_grad(g, c, numbers<S>(own), numbers<S>(pixels), result<S>(out));
  });
  return out;
}

}  // namespace
}  // namespace convswap::guided

STABLE_TORCH_LIBRARY_IMPL(convswap, CPU, m) {
  m.impl("guided_local_conv2d", TORCH_BOX(&convswap::guided::forward));
  m.impl("guided_local_conv2d_input_grad", TORCH_BOX(&convswap::guided::input_grad));
  m.impl("guided_local_conv2d_weight_grad", TORCH_BOX(&convswap::guided::weight_grad));
}
