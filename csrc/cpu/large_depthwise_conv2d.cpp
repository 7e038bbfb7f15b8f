// Depthwise convolution with large kernels and its two gradients on the CPU.
//
// Images are taken in groups of channels, one in each lane of a vector. All three ops are then correlations of rows of
// such vectors: steady ones (taps, pixels or gradients) times ones that slide along them. With a stride, the columns
// that slide are split into its phases, in each of which neighbours lie side by side.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "large_depthwise_conv2d_image.h"
#include "large_depthwise_conv2d_taps.h"

namespace {

using namespace convswap::lanes;
using torch::headeronly::MemoryFormat;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

bool is_channels_last(const Tensor& t) {
  if (t.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int axis : {1, 3, 2, 0}) {
    if (t.size(axis) != 1 && t.stride(axis) != expected) return false;
    expected *= t.size(axis);
  }
  return true;
}

Tensor dense(const Tensor& t) { return t.is_contiguous() || is_channels_last(t) ? t : torch::stable::contiguous(t); }

Planes planes(const Tensor& t) {
  return {static_cast<char*>(t.data_ptr()), t.size(1), t.size(2), t.size(3), is_channels_last(t)};
}

// (O, 1, h, w) as the planes of one image.
Planes taps_of_tensor(const Tensor& t) {
  return {static_cast<char*>(t.data_ptr()), t.size(0), t.size(2), t.size(3), false};
}

Tensor empty(const Ints& size, const Tensor& like, bool channels_last) {
  return torch::stable::empty(size, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

void check(const char* op, const Tensor& first, const Tensor& second, const char* what) {
  STD_TORCH_CHECK(first.dim() == 4 && second.dim() == 4, op, ": tensors must have four dimensions, got ", first.dim(),
                  " and ", second.dim());
  STD_TORCH_CHECK(first.scalar_type() == second.scalar_type(), op, ": the two tensors must have the same dtype, got ",
                  torch::headeronly::toString(first.scalar_type()), " and ",
                  torch::headeronly::toString(second.scalar_type()));
  STD_TORCH_CHECK(second.is_cpu(), op, ": ", what, " must be on the CPU");
}

Geometry geometry(const char* op, int64_t height, int64_t width, int64_t kernel_height, int64_t kernel_width,
                  const Ints& stride, const Ints& padding) {
  STD_TORCH_CHECK(stride.size() == 2 && stride[0] > 0 && stride[1] > 0, op, ": stride must be two positive numbers");
  STD_TORCH_CHECK(padding.size() == 4, op, ": padding must be top, bottom, left, right; got ", padding.size(),
                  " numbers");
  for (const int64_t amount : padding) {
    STD_TORCH_CHECK(amount >= 0, op, ": padding must not be negative, got ", amount);
  }
  const int64_t padded_height = height + padding[0] + padding[1], padded_width = width + padding[2] + padding[3];
  STD_TORCH_CHECK(1 <= kernel_height && kernel_height <= padded_height && 1 <= kernel_width &&
                      kernel_width <= padded_width,
                  op, ": a kernel of ", kernel_height, " x ", kernel_width, " does not fit in a padded input of ",
                  padded_height, " x ", padded_width);
  return {height, width, (padded_height - kernel_height) / stride[0] + 1, (padded_width - kernel_width) / stride[1] + 1,
          kernel_height, kernel_width, stride[0], stride[1], padding[0], padding[2]};
}

const int32_t START = 0;

// How a pass over images is shared out: groups of lanes, runs of images, bands of rows.
struct Shares {
  int64_t groups, images, bands, images_each, band;
  Shares(const ImagePass& pass, const Kernels& k, int64_t channels, int64_t batch) : groups(up(channels, k.lanes)) {
    const int64_t wanted = torch::stable::get_num_threads() > 1 ? 3 * torch::stable::get_num_threads() : 1;
    images = std::min(batch, up(wanted, groups));
    images_each = up(batch, images);
    images = up(batch, images_each);
    band = pass.band(k, up(wanted, groups * images));
    bands = up(pass.height, band);
  }
};

// The result's lane l is channel l. From the source and the taps it takes channels l * step / repeat + 0 .. step - 1.
void run(const ImagePass& pass, const Kernels& k, const Planes& source, const Planes& taps, const Planes* bias,
         const Planes& out, int64_t batch, int64_t step, int64_t repeat) {
  const Shares shares(pass, k, out.channels, batch);
  int64_t rows = 0;
  for (int64_t y = 0; y < pass.height; y += shares.band) {
    rows = std::max(rows, pass.source_to(std::min(y + shares.band, pass.height)) - pass.source_from(y));
  }
  const std::vector<int32_t> place = pass.source_place(rows);
  torch::stable::parallel_for(0, shares.groups * shares.images * shares.bands, 1, [&](int64_t begin, int64_t end) {
    const int64_t tap_vectors = pass.tap_vectors();
    std::vector<Scratch> tap_scratch;
    for (int64_t i = 0; i < step; i++) tap_scratch.emplace_back(tap_vectors, k), tap_scratch.back().clear();
    const Scratch pixels(rows * pass.source_row, k), sums(shares.band * pass.width, k), more(1, k);
    pixels.clear();
    int64_t packed = -1;
    for (int64_t task = begin; task < end; task++) {
      const int64_t group = task / (shares.images * shares.bands);
      const int64_t first = task / shares.bands % shares.images * shares.images_each;
      const int64_t y = task % shares.bands * shares.band, to = std::min(y + shares.band, pass.height);
      const int64_t from = pass.source_from(y), count = pass.source_to(to) - from;
      const Group own(k, group, out.channels, 1, 1, 0);
      if (packed != group) {
        for (int64_t i = 0; i < step; i++) {
          const Group channels(k, group, out.channels, step, 1, i);
          const int64_t count = taps.height * taps.width;
          k.gather(taps.lanes(k, channels, 0, 0), count, pass.tap_place.data(), tap_scratch[i].at(0));
        }
        if (bias) k.gather(bias->lanes(k, own, 0, 0), 1, &START, more.at(0));
        packed = group;
      }
      for (int64_t image = first; image < std::min(first + shares.images_each, batch); image++) {
        for (int64_t i = 0; i < step; i++) {
          const Group channels(k, group, out.channels, step, repeat, i);
          if (count > 0) {
            k.gather(source.lanes(k, channels, image, from), count * pass.source_width, place.data(), pixels.at(0));
          }
          pass.run(k, pixels, from, tap_scratch[i], sums, y, to, i > 0);
        }
        k.spread(sums.at(0), (to - y) * pass.width, bias ? more.at(0) : nullptr, out.lanes(k, own, image, y));
      }
    }
  });
}

Tensor forward(Tensor input, Tensor weight, std::optional<Tensor> bias, Ints stride, Ints padding) {
  const char* op = "large_depthwise_conv2d";
  check(op, input, weight, "weight");
  const int64_t batch = input.size(0), channels = input.size(1), outputs = weight.size(0);
  STD_TORCH_CHECK(weight.size(1) == 1 && (channels ? outputs % channels == 0 : outputs == 0), op,
                  ": weight must be (multiple of ", channels, ", 1, kh, kw), got (", outputs, ", ", weight.size(1),
                  ", ...)");
  const Geometry g = geometry(op, input.size(2), input.size(3), weight.size(2), weight.size(3), stride, padding);
  input = dense(input), weight = torch::stable::contiguous(weight);
  Tensor out = empty({batch, outputs, g.out_height, g.out_width}, input, is_channels_last(input));
  const Kernels k = kernels_for(input.scalar_type());
  if (out.numel() == 0) return out;
  std::optional<Planes> more;
  Tensor kept;
  if (bias) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == outputs && bias->scalar_type() == input.scalar_type(), op,
                    ": bias must be (", outputs, ") and have the dtype of the input");
    kept = torch::stable::contiguous(*bias);
    more = Planes{static_cast<char*>(kept.data_ptr()), outputs, 1, 1, false};
  }
  run(ImagePass(g, false), k, planes(input), taps_of_tensor(weight), more ? &*more : nullptr, planes(out), batch, 1,
      outputs / channels);
  return out;
}

Tensor input_grad(Tensor grad, Tensor weight, Ints input_size, Ints stride, Ints padding) {
  const char* op = "large_depthwise_conv2d_input_grad";
  check(op, grad, weight, "weight");
  STD_TORCH_CHECK(input_size.size() == 3, op, ": input_size must be C, H, W; got ", input_size.size(), " numbers");
  const int64_t batch = grad.size(0), channels = input_size[0], outputs = grad.size(1);
  const Geometry g = geometry(op, input_size[1], input_size[2], weight.size(2), weight.size(3), stride, padding);
  STD_TORCH_CHECK(weight.size(0) == outputs && weight.size(1) == 1 &&
                      (channels ? outputs % channels == 0 : outputs == 0) && grad.size(2) == g.out_height &&
                      grad.size(3) == g.out_width,
                  op, ": a gradient of ", outputs, " x ", grad.size(2), " x ", grad.size(3), " does not fit ", channels,
                  " input channels, ", weight.size(0), " kernels and outputs of ", g.out_height, " x ", g.out_width);
  grad = dense(grad), weight = torch::stable::contiguous(weight);
  Tensor out = empty({batch, channels, g.height, g.width}, grad, is_channels_last(grad));
  const Kernels k = kernels_for(grad.scalar_type());
  if (out.numel() == 0) return out;
  run(ImagePass(g, true), k, planes(grad), taps_of_tensor(weight), nullptr, planes(out), batch, outputs / channels, 1);
  return out;
}

Tensor weight_grad(Tensor grad, Tensor input, Ints kernel_size, Ints stride, Ints padding) {
  const char* op = "large_depthwise_conv2d_weight_grad";
  check(op, grad, input, "input");
  STD_TORCH_CHECK(kernel_size.size() == 2, op, ": kernel_size must be two numbers, got ", kernel_size.size());
  const int64_t batch = grad.size(0), channels = input.size(1), outputs = grad.size(1);
  const Geometry g = geometry(op, input.size(2), input.size(3), kernel_size[0], kernel_size[1], stride, padding);
  STD_TORCH_CHECK(input.size(0) == batch && (channels ? outputs % channels == 0 : outputs == 0) &&
                      grad.size(2) == g.out_height && grad.size(3) == g.out_width,
                  op, ": a gradient of ", batch, " x ", outputs, " x ", grad.size(2), " x ", grad.size(3),
                  " does not fit an input of ", input.size(0), " x ", channels, " and outputs of ", g.out_height, " x ",
                  g.out_width);
  grad = dense(grad), input = dense(input);
  Tensor out = empty({outputs, 1, g.kernel_height, g.kernel_width}, grad, false);
  const Kernels k = kernels_for(grad.scalar_type());
  if (out.numel() == 0) return out;

  const TapsPass pass(g);
  const Planes grads = planes(grad), inputs = planes(input), result = taps_of_tensor(out);
  const int64_t taps = g.kernel_height * g.kernel_width, groups = up(outputs, k.lanes), band = pass.band(k);
  // Shared out by shapes alone: the order of a sum does not depend on the number of threads.
  const int64_t wanted = std::max<int64_t>(1, std::min(batch, up(32, groups)));
  const int64_t images = up(std::max<int64_t>(batch, 1), wanted), parts = up(std::max<int64_t>(batch, 1), images);
  const std::vector<int32_t> input_place = pass.source_place(pass.most_rows(band));
  std::vector<int32_t> grad_place(band * g.out_width);
  for (size_t i = 0; i < grad_place.size(); i++) grad_place[i] = static_cast<int32_t>(i);
  const Scratch sums(groups * parts * taps, k);
  torch::stable::parallel_for(0, groups * parts, 1, [&](int64_t begin, int64_t end) {
    const Scratch pixels(pass.most_rows(band) * pass.source_row, k), steady(band * g.out_width, k);
    pixels.clear();
    for (int64_t task = begin; task < end; task++) {
      const Group own(k, task / parts, outputs, 1, 1, 0);
      const Group from_input(k, task / parts, outputs, 1, outputs / channels, 0);
      char* const sum = sums.at(task * taps);
      std::memset(sum, 0, taps * k.bytes);
      const int64_t first = task % parts * images;
      for (int64_t image = first; image < std::min(first + images, batch); image++) {
        for (int64_t y = 0; y < g.out_height; y += band) {
          const int64_t to = std::min(y + band, g.out_height), row = pass.input_from(y);
          const int64_t rows = pass.input_to(to) - row;
          if (rows <= 0) continue;
          k.gather(grads.lanes(k, own, image, y), (to - y) * g.out_width, grad_place.data(), steady.at(0));
          k.gather(inputs.lanes(k, from_input, image, row), rows * g.width, input_place.data(), pixels.at(0));
          pass.run(k, pixels, steady, sum, y, to);
        }
      }
    }
  });
  torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; group++) {
      for (int64_t part = 1; part < parts; part++) {
        k.sum(sums.at((group * parts + part) * taps), taps, sums.at(group * parts * taps));
      }
      k.spread(sums.at(group * parts * taps), taps, nullptr, result.lanes(k, Group(k, group, outputs, 1, 1, 0), 0, 0));
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convswap, CPU, m) {
  m.impl("large_depthwise_conv2d", TORCH_BOX(&forward));
  m.impl("large_depthwise_conv2d_input_grad", TORCH_BOX(&input_grad));
  m.impl("large_depthwise_conv2d_weight_grad", TORCH_BOX(&weight_grad));
}
