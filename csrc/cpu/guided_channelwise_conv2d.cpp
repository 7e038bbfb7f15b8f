// Convolution with a generated kernel for each sample, pixel and channel, and its two gradients, on the CPU.
//
// What takes time is to move the generated kernels: each number of them is read or written once, in runs of pixels.
#include <torch/csrc/stable/library.h>

#include "guided_problem.h"

namespace convswap::guided {
namespace {

// A task is a band of one channel of one sample, with all outputs that the channel has.
struct Tasks {
  int64_t channels, multiple, all, rows, bands;

  Tasks(int64_t batch, int64_t channels, int64_t multiple, int64_t all_rows, int64_t rows)
      : channels(channels), multiple(multiple), all(all_rows), rows(rows), bands((all_rows + rows - 1) / rows) {
    count = batch * channels * bands;
  }

  int64_t count;
  int64_t plane(int64_t task) const { return task / bands; }  // of all samples' channels
  int64_t from(int64_t task) const { return task % bands * rows; }
  int64_t to(int64_t task) const { return std::min(from(task) + rows, all); }
};

template <typename S>
void run_forward(const Geometry& g, int64_t batch, int64_t channels, int64_t multiple, const S* input, const S* weight,
                 const S* bias, S* out) {
  using T = Computed<S>;
  const Tasks tasks(batch, channels, multiple, g.out_height, band_rows(g, g.out_height, sizeof(T)));
  const SheetLayout layout(g, tasks.rows + g.last_shift());
  const int64_t taps = g.taps(), pixels = g.out_pixels();
  torch::stable::parallel_for(0, tasks.count, grain(tasks.rows * g.out_width * taps * multiple),
                              [&](int64_t begin, int64_t end) {
    const Scratch<T> sheets(layout.size()), scratch(std::is_same_v<S, T> ? 0 : tasks.rows * g.out_width);
    std::vector<Term<S>> terms(taps);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = tasks.plane(task), first = tasks.from(task) * g.out_width;
      const int64_t length = tasks.to(task) * g.out_width - first;
      run_at_best_level<FillSheets>(input + plane * g.in_pixels(), layout, tasks.from(task), sheets.get());
      for (int64_t o = plane * multiple; o < (plane + 1) * multiple; ++o) {
        for (int64_t t = 0; t < taps; ++t) {
          terms[t] = {weight + (o * taps + t) * pixels + first, tap_pixels<T>(layout, sheets.get(), t)};
        }
        const T start = bias ? static_cast<T>(bias[o]) : T(0);
        S* to = out + o * pixels + first;
        if constexpr (std::is_same_v<S, T>) {
          run_at_best_level<SumProducts>(static_cast<const Term<S>*>(terms.data()), taps, length, start, false, to);
        } else {
          run_at_best_level<SumProducts>(static_cast<const Term<S>*>(terms.data()), taps, length, start, false,
                                         scratch.get());
          run_at_best_level<NarrowRun>(static_cast<const T*>(scratch.get()), length, to);
        }
      }
    }
  });
}

template <typename S>
void run_input_grad(const Geometry& g, int64_t batch, int64_t channels, int64_t multiple, const S* grad,
                    const S* weight, S* out) {
  using T = Computed<S>;
  const int64_t all = sheet_rows(g), taps = g.taps(), pixels = g.out_pixels();
  const Tasks tasks(batch, channels, multiple, all, band_rows(g, all, sizeof(T)));
  const SheetLayout layout(g, tasks.rows);
  const int64_t most = std::min(tasks.rows + g.last_shift(), g.out_height) * g.out_width;
  torch::stable::parallel_for(0, tasks.count, grain(tasks.rows * g.out_width * taps * multiple),
                              [&](int64_t begin, int64_t end) {
    const Scratch<T> sheets(layout.size()), rows(layout.rows * layout.row_size());
    const Scratch<T> scratch(std::is_same_v<S, T> ? 0 : multiple * most);
    std::vector<Term<S>> terms;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = tasks.plane(task), first = tasks.from(task), last = first + tasks.rows;
      const S* own = grad + plane * multiple * pixels;
      // Of each output the pixels that reach the band: where they are or, in another precision, side by side.
      const int64_t above = std::max<int64_t>(0, first - g.last_shift()) * g.out_width;
      const int64_t reach = std::max<int64_t>(0, std::min(last, g.out_height) * g.out_width - above);
      if constexpr (!std::is_same_v<S, T>) {
        for (int64_t o = 0; o < multiple; ++o) {
          run_at_best_level<WidenRun>(own + o * pixels + above, reach, scratch.get() + o * most);
        }
      }
      const auto pixels_from = [&](int64_t o, int64_t at) -> const T* {
        if constexpr (std::is_same_v<S, T>) return own + o * pixels + at;
        else return scratch.get() + o * most + at - above;
      };
      const S* kernels = weight + plane * multiple * taps * pixels;
      for (const Segment& segment : segments(g, first, last)) {
        for (int64_t j = 0; j < g.kernel_width; ++j) {
          terms.clear();
          for (const int64_t i : segment.of) {
            const int64_t at = (segment.from - g.shift(i)) * g.out_width;
            for (int64_t o = 0; o < multiple; ++o) {
              terms.push_back({kernels + (o * taps + i * g.kernel_width + j) * pixels + at, pixels_from(o, at)});
            }
          }
          T* to = sheets.get() + layout.sheet(segment.residue, j) + (segment.from - first) * g.out_width;
          run_at_best_level<SumProducts>(static_cast<const Term<S>*>(terms.data()), static_cast<int64_t>(terms.size()),
                                         (segment.to - segment.from) * g.out_width, T(0), false, to);
        }
      }
      run_at_best_level<FoldSheets>(sheets.get(), layout, first, rows.get(),
                                    out + plane * g.in_pixels());
    }
  });
}

template <typename S>
void run_weight_grad(const Geometry& g, int64_t batch, int64_t channels, int64_t multiple, const S* grad,
                     const S* input, S* out) {
  using T = Computed<S>;
  const Tasks tasks(batch, channels, multiple, g.out_height, band_rows(g, g.out_height, sizeof(T)));
  const SheetLayout layout(g, tasks.rows + g.last_shift());
  const int64_t taps = g.taps(), pixels = g.out_pixels();
  const bool large = batch * channels * multiple * taps * pixels * static_cast<int64_t>(sizeof(S)) >= LARGE_BYTES;
  torch::stable::parallel_for(0, tasks.count, grain(tasks.rows * g.out_width * taps * multiple),
                              [&](int64_t begin, int64_t end) {
    const Scratch<T> sheets(layout.size()), scratch(std::is_same_v<S, T> ? 0 : tasks.rows * g.out_width);
    std::vector<Target<S>> targets(taps);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = tasks.plane(task), first = tasks.from(task) * g.out_width;
      const int64_t length = tasks.to(task) * g.out_width - first;
      run_at_best_level<FillSheets>(input + plane * g.in_pixels(), layout, tasks.from(task), sheets.get());
      for (int64_t o = plane * multiple; o < (plane + 1) * multiple; ++o) {
        for (int64_t t = 0; t < taps; ++t) {
          targets[t] = {out + (o * taps + t) * pixels + first, tap_pixels<T>(layout, sheets.get(), t)};
        }
        const T* own = computed(grad + o * pixels + first, length, scratch.get());
        run_at_best_level<SpreadProducts>(own, static_cast<const Target<S>*>(targets.data()), taps, length, large);
      }
    }
  });
}

int64_t multiple_of(const char* op, int64_t outputs, int64_t channels) {
  STD_TORCH_CHECK(channels ? outputs % channels == 0 : outputs == 0, op, ": ", outputs,
                  " outputs are no multiple of the input's ", channels, " channels");
  return channels ? outputs / channels : 1;
}

Tensor forward(Tensor input, Tensor weight, std::optional<Tensor> bias, Ints kernel_size, Ints stride, Ints padding,
               Ints dilation) {
  const char* op = "guided_channelwise_conv2d";
  check_four_axes(op, input, "input");
  check_alike(op, input, weight, "weight");
  const int64_t batch = input.size(0), channels = input.size(1);
  const Geometry g = make_geometry(op, input.size(2), input.size(3), kernel_size, stride, padding, dilation);
  STD_TORCH_CHECK(weight.dim() == 5, op, ": weight must be (batch, outputs, taps, height, width), got ",
                  text(shape(weight)));
  const int64_t outputs = weight.size(1), multiple = multiple_of(op, outputs, channels);
  check_shape(op, weight, "weight", {batch, outputs, g.taps(), g.out_height, g.out_width});
  const Tensor pixels = torch::stable::contiguous(input), kernels = torch::stable::contiguous(weight);
  Tensor more;
  if (bias) {
    check_alike(op, input, *bias, "bias");
    check_shape(op, *bias, "bias", {batch, outputs});
    more = torch::stable::contiguous(*bias);
  }
  const Tensor out = empty({batch, outputs, g.out_height, g.out_width}, input);
  if (out.numel() == 0) return in_format_of(out, input);
  dispatch(op, input.scalar_type(), [&](auto s) {
    using S = decltype(s);
    run_forward(g, batch, channels, multiple, numbers<S>(pixels), numbers<S>(kernels),
                bias ? numbers<S>(more) : nullptr, result<S>(out));
  });
  return in_format_of(out, input);
}

Tensor input_grad(Tensor grad, Tensor weight, Ints input_size, Ints kernel_size, Ints stride, Ints padding,
                  Ints dilation) {
  const char* op = "guided_channelwise_conv2d_input_grad";
  check_four_axes(op, grad, "grad");
  check_alike(op, grad, weight, "weight");
  STD_TORCH_CHECK(input_size.size() == 3, op, ": input_size must be C, H, W; got ", text(input_size));
  const int64_t batch = grad.size(0), channels = input_size[0], outputs = grad.size(1);
  const Geometry g = make_geometry(op, input_size[1], input_size[2], kernel_size, stride, padding, dilation);
  const int64_t multiple = multiple_of(op, outputs, channels);
  check_shape(op, grad, "grad", {batch, outputs, g.out_height, g.out_width});
  check_shape(op, weight, "weight", {batch, outputs, g.taps(), g.out_height, g.out_width});
  const Tensor own = torch::stable::contiguous(grad), kernels = torch::stable::contiguous(weight);
  const Tensor out = empty({batch, channels, g.height, g.width}, grad);
  if (out.numel() == 0) return in_format_of(out, grad);
  dispatch(op, grad.scalar_type(), [&](auto s) {
    using S = decltype(s);
    run_input_grad(g, batch, channels, multiple, numbers<S>(own), numbers<S>(kernels), result<S>(out));
  });
  return in_format_of(out, grad);
}

Tensor weight_grad(Tensor grad, Tensor input, Ints kernel_size, Ints stride, Ints padding, Ints dilation) {
  const char* op = "guided_channelwise_conv2d_weight_grad";
  check_four_axes(op, grad, "grad");
  check_four_axes(op, input, "input");
  check_alike(op, grad, input, "input");
  const int64_t batch = input.size(0), channels = input.size(1), outputs = grad.size(1);
  const Geometry g = make_geometry(op, input.size(2), input.size(3), kernel_size, stride, padding, dilation);
  const int64_t multiple = multiple_of(op, outputs, channels);
  check_shape(op, grad, "grad", {batch, outputs, g.out_height, g.out_width});
  const Tensor own = torch::stable::contiguous(grad), pixels = torch::stable::contiguous(input);
  const Tensor out = empty({batch, outputs, g.taps(), g.out_height, g.out_width}, grad);
  if (out.numel() == 0) return out;
  dispatch(op, grad.scalar_type(), [&](auto s) {
    using S = decltype(s);
    run_weight_grad(g, batch, channels, multiple, numbers<S>(own), numbers<S>(pixels), result<S>(out));
  });
  return out;
}

}  // namespace
}  // namespace convswap::guided

STABLE_TORCH_LIBRARY_IMPL(convswap, CPU, m) {
  m.impl("guided_channelwise_conv2d", TORCH_BOX(&convswap::guided::forward));
  m.impl("guided_channelwise_conv2d_input_grad", TORCH_BOX(&convswap::guided::input_grad));
  m.impl("guided_channelwise_conv2d_weight_grad", TORCH_BOX(&convswap::guided::weight_grad));
}
