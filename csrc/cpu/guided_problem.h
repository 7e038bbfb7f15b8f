// What the ops of guided convolutions are given, checked.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "guided_runs.h"
#include "guided_sheets.h"

namespace convswap::guided {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

inline std::string text(const Ints& numbers) {
  std::string all = "(";
  for (size_t i = 0; i < numbers.size(); ++i) all += (i ? ", " : "") + std::to_string(numbers[i]);
  return all + ")";
}

inline Ints shape(const Tensor& t) {
  Ints sizes;
  for (int64_t axis = 0; axis < t.dim(); ++axis) sizes.push_back(t.size(axis));
  return sizes;
}

inline bool is_channels_last(const Tensor& t) {
  if (t.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int axis : {1, 3, 2, 0}) {
    if (t.size(axis) != 1 && t.stride(axis) != expected) return false;
    expected *= t.size(axis);
  }
  return true;
}

// Of a padded axis, on any device.
constexpr int64_t MOST_PIXELS = int64_t{1} << 30;

inline Geometry make_geometry(const char* op, int64_t height, int64_t width, const Ints& kernel, const Ints& stride,
                              const Ints& padding, const Ints& dilation) {
  STD_TORCH_CHECK(kernel.size() == 2 && kernel[0] > 0 && kernel[1] > 0, op,
                  ": kernel_size must be two positive numbers, got ", text(kernel));
  STD_TORCH_CHECK(stride.size() == 2 && stride[0] > 0 && stride[1] > 0, op,
                  ": stride must be two positive numbers, got ", text(stride));
  STD_TORCH_CHECK(dilation.size() == 2 && dilation[0] > 0 && dilation[1] > 0, op,
                  ": dilation must be two positive numbers, got ", text(dilation));
  STD_TORCH_CHECK(padding.size() == 4, op, ": padding must be top, bottom, left, right; got ", text(padding));
  int64_t steps[2], spaces[2], outs[2];
  for (const int axis : {0, 1}) {
    const int64_t size = axis ? width : height, before = padding[2 * axis], after = padding[2 * axis + 1];
    STD_TORCH_CHECK(before >= 0 && after >= 0, op, ": padding must not be negative, got ", text(padding));
    STD_TORCH_CHECK(size >= 0 && size < MOST_PIXELS && before < MOST_PIXELS && after < MOST_PIXELS &&
                        size + before + after < MOST_PIXELS,
                    op, ": the padded input must have less than 2^30 pixels on an axis, got ", size, " and padding ",
                    before, " and ", after);
    const int64_t padded = size + before + after, gaps = kernel[axis] - 1;
    STD_TORCH_CHECK(gaps < padded && (gaps == 0 || dilation[axis] <= (padded - 1) / gaps), op, ": a kernel of ",
                    kernel[axis], " pixels with dilation ", dilation[axis],
                    " does not fit on an axis where the padded input has ", padded, ": pad more");
    spaces[axis] = gaps ? dilation[axis] : 1;      // a single tap has no next
    steps[axis] = std::min(stride[axis], padded);  // nor has a single output
    outs[axis] = (padded - gaps * spaces[axis] - 1) / steps[axis] + 1;
  }
  return {height,   width,    outs[0],   outs[1],   kernel[0],  kernel[1],
          steps[0], steps[1], spaces[0], spaces[1], padding[0], padding[2]};
}

inline void check_four_axes(const char* op, const Tensor& image, const char* name) {
  STD_TORCH_CHECK(image.dim() == 4, op, ": ", name, " must be (batch, channels, height, width), got ",
                  text(shape(image)));
}

inline void check_shape(const char* op, const Tensor& t, const char* name, const Ints& wanted) {
  STD_TORCH_CHECK(shape(t) == wanted, op, ": ", name, " must be ", text(wanted), " for the other arguments, got ",
                  text(shape(t)));
}

inline void check_alike(const char* op, const Tensor& first, const Tensor& second, const char* name) {
  STD_TORCH_CHECK(first.scalar_type() == second.scalar_type(), op, ": all tensors must have the same dtype, got ",
                  torch::headeronly::toString(first.scalar_type()), " and, of ", name, ", ",
                  torch::headeronly::toString(second.scalar_type()));
  STD_TORCH_CHECK(second.is_cpu(), op, ": ", name, " must be on the CPU");
}

inline Tensor empty(const Ints& size, const Tensor& like) {
  return torch::stable::empty(size, like.scalar_type(), std::nullopt, like.device());
}

// Images are computed with in one format, and given back in that of an argument.
inline Tensor in_format_of(const Tensor& image, const Tensor& argument) {
  return is_channels_last(argument) ? torch::stable::contiguous(image, MemoryFormat::ChannelsLast) : image;
}

template <typename S>
const S* numbers(const Tensor& t) {
  return static_cast<const S*>(t.data_ptr());
}

template <typename S>
S* result(const Tensor& t) {
  return static_cast<S*>(t.data_ptr());
}

// Calls run with a number of the type that is stored.
template <typename F>
void dispatch(const char* op, ScalarType dtype, const F& run) {
  switch (dtype) {
    case ScalarType::Float: return run(float{});
    case ScalarType::Double: return run(double{});
    case ScalarType::BFloat16: return run(BFloat16{});
    case ScalarType::Half: return run(Half{});
    default: STD_TORCH_CHECK(false, op, " takes float32, float64, bfloat16 and float16 on the CPU, got ",
                             torch::headeronly::toString(dtype));
  }
}

// Items that are worth a thread of their own, each so many multiply-adds.
inline int64_t grain(int64_t work) { return std::max<int64_t>(1, 100000 / std::max<int64_t>(1, work)); }

struct WidenRun {
  template <int BYTES, typename S>
  static CONVSWAP_INLINE void run(const S* from, int64_t count, Computed<S>* to) {
    widen_run<BYTES>(from, count, to);
  }
};

struct NarrowRun {
  template <int BYTES, typename S>
  static CONVSWAP_INLINE void run(const Computed<S>* from, int64_t count, S* to) {
    narrow_run<BYTES>(from, count, to);
  }
};

// Numbers as they are computed with: where they are, or a copy in `scratch`.
template <typename S>
const Computed<S>* computed(const S* from, int64_t count, Computed<S>* scratch) {
  if constexpr (std::is_same_v<S, Computed<S>>) {
    return from;
  } else {
    run_at_best_level<WidenRun>(from, count, scratch);
    return scratch;
  }
}

// Tap t of the geometry, read from sheets whose first row is that of the outputs.
template <typename T>
const T* tap_pixels(const SheetLayout& layout, const T* sheets, int64_t tap) {
  const Geometry& g = layout.g;
  const int64_t i = tap / g.kernel_width, j = tap % g.kernel_width;
  return sheets + layout.sheet(g.residue(i), j) + g.shift(i) * g.out_width;
}

// Which rows of kernels add to which rows of sheets: in rows `from` to `to` - 1 of the residue those `of` them do.
struct Segment {
  int64_t residue, from, to;
  std::vector<int64_t> of;
};

// Of the rows first to last - 1 of all residues.
inline std::vector<Segment> segments(const Geometry& g, int64_t first, int64_t last) {
  std::vector<Segment> found;
  for (int64_t residue = 0; residue < g.stride_y; ++residue) {
    std::vector<int64_t> own, borders{first, last};
    for (int64_t i = 0; i < g.kernel_height; ++i) {
      if (g.residue(i) != residue) continue;
      own.push_back(i);
      for (const int64_t border : {g.shift(i), g.shift(i) + g.out_height}) {
        if (first < border && border < last) borders.push_back(border);
      }
    }
    if (own.empty()) continue;
    std::sort(borders.begin(), borders.end());
    for (size_t b = 0; b + 1 < borders.size(); ++b) {
      if (borders[b] == borders[b + 1]) continue;
      Segment segment{residue, borders[b], borders[b + 1], {}};
      for (const int64_t i : own) {
        if (g.shift(i) <= segment.from && segment.to <= g.shift(i) + g.out_height) segment.of.push_back(i);
      }
      found.push_back(segment);
    }
  }
  return found;
}

// Rows of sheets of each residue that hold the whole image.
inline int64_t sheet_rows(const Geometry& g) { return (g.top + g.height - 1) / g.stride_y + 1; }

}  // namespace convswap::guided
