// Padding by extrapolation and its transpose, axis by axis.
//
// Pixels are numbers of one channel, or of all channels where these are neighbours. A row is extended as it is copied;
// rows beyond the border are sums of extended rows, planes of extended planes. Half precision is rounded once, at the
// end: rows and planes that others are made of are kept in single meanwhile.
#include <torch/csrc/stable/library.h>

#include "extrapolate_lines.h"
#include "guided_problem.h"

namespace convswap::extrapolate {
namespace {

using guided::Ints;
using guided::numbers;
using guided::result;
using torch::stable::Tensor;

// What the tasks of one image have in common. Bands of rows are made apart.
template <typename A>
struct Problem {
  int64_t images, size[3], pixel;
  Side<A> sides[3][2];
  Side<A> none;

  int64_t padded(int axis) const { return sides[axis][0].pad + size[axis] + sides[axis][1].pad; }

  // The rows of a band, and those added at the borders of the image. All rows at one edge are in one band.
  Axes<A> axes(int64_t begin, int64_t end) const {
    return {{size[0], 0, size[0], &sides[0][0], &sides[0][1]},
            {size[1], begin, end, begin == 0 ? &sides[1][0] : &none, end == size[1] ? &sides[1][1] : &none},
            {size[2], 0, size[2], &sides[2][0], &sides[2][1]},
            pixel};
  }

  // Where a band begins in the padded image.
  int64_t place(int64_t begin) const {
    return (begin == 0 ? 0 : sides[1][0].pad + begin) * padded(2) * pixel;
  }

  int64_t image() const { return size[0] * size[1] * size[2] * pixel; }
  int64_t padded_plane() const { return padded(1) * padded(2) * pixel; }
  int64_t padded_image() const { return padded(0) * padded_plane(); }

  // Bands that are worth a task of their own.
  int64_t grain(int64_t of_image) const {
    return std::max<int64_t>(1, 32768 * of_image / std::max<int64_t>(1, padded_image()));
  }

  int64_t bands() const {
    const int64_t threads = torch::stable::get_num_threads(), least = std::max(sides[1][0].taps, sides[1][1].taps);
    if (threads == 1 || images >= 4 * threads) return 1;
    return std::max<int64_t>(1, std::min((4 * threads + images - 1) / images, size[1] / std::max<int64_t>(8, least)));
  }
};

template <typename Work, typename S>
void run(const Problem<Computed<S>>& p, const S* from, S* to) {
  using A = Computed<S>;
  constexpr bool back = std::is_same_v<Work, Fold>;
  const int64_t bands = p.bands(), rows = p.size[1], image = p.image(), plane = p.padded_plane();
  torch::stable::parallel_for(0, p.images * bands, p.grain(bands), [&](int64_t begin, int64_t end) {
    std::vector<A> scratch;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / bands, band = task % bands, first = rows * band / bands;
      const Axes<A> axes = p.axes(first, rows * (band + 1) / bands);
      if (back || sizeof(S) != sizeof(A)) scratch.resize(std::max<int64_t>(scratch.size(), scratch_of(axes)));
      const int64_t small = n * image, large = n * p.padded_image() + p.place(first);
      run_at_best_level<Work>(axes, plane, from + (back ? large : small), scratch.data(), to + (back ? small : large));
    }
  });
}

// Each image to its place, which those before it have left, or several threads to the beginning of its own padded one,
// and from there to its place.
template <typename S>
void run_in_place(const Problem<Computed<S>>& p, S* numbers) {
  const int64_t image = p.image(), padded = p.padded_image();
  const bool one_by_one = torch::stable::get_num_threads() == 1;
  torch::stable::parallel_for(0, p.images, one_by_one ? p.images : p.grain(1), [&](int64_t begin, int64_t end) {
    const Axes<Computed<S>> axes = p.axes(0, p.size[1]);
    std::vector<Computed<S>> scratch(scratch_of(axes));
    std::vector<S> room(axes.padded_row());
    for (int64_t n = begin; n < end; ++n) {
      S* const own = numbers + n * padded;
      S* const to = one_by_one ? numbers + n * image : own;
      run_at_best_level<Fold>(axes, p.padded_plane(), static_cast<const S*>(own), scratch.data(), to, room.data());
    }
  });
  if (one_by_one) return;
  // So many at once as find their places in what those before them have left.
  for (int64_t first = 1, next; first < p.images && image < padded; first = next) {
    next = std::min(p.images, std::max(first + 1, first * padded / image));
    torch::stable::parallel_for(first, next, p.grain(1), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        std::memmove(static_cast<void*>(numbers + n * image), numbers + n * padded, image * sizeof(S));
      }
    });
  }
}

// As layers/_geometry.py has it: of four or five axes, and not contiguous as well.
bool is_channels_last(const Tensor& t) {
  if (t.is_contiguous() || t.dim() < 4) return false;
  int64_t expected = 1;
  for (const int64_t axis : t.dim() == 4 ? Ints{1, 3, 2, 0} : Ints{1, 4, 3, 2, 0}) {
    if (t.size(axis) != 1 && t.stride(axis) != expected) return false;
    expected *= t.size(axis);
  }
  return true;
}

torch::headeronly::MemoryFormat format_of(const Tensor& t) {
  if (!is_channels_last(t)) return guided::MemoryFormat::Contiguous;
  return t.dim() == 4 ? guided::MemoryFormat::ChannelsLast : guided::MemoryFormat::ChannelsLast3d;
}

// The size of the image that `t` is, or that is padded to it, checked.
Ints image_size(const char* op, const Tensor& t, const Ints& padding, const Ints& order, bool is_padded) {
  const size_t dims = t.dim() < 2 ? 0 : t.dim() - 2;
  STD_TORCH_CHECK(1 <= dims && dims <= 3, op, ": the image must be (B, C, *size) with 1 to 3 spatial axes, got ",
                  guided::text(guided::shape(t)));
  STD_TORCH_CHECK(padding.size() == 2 * dims && order.size() == 2 * dims, op,
                  ": padding and order must be before and after of each axis, got ", guided::text(padding), " and ",
                  guided::text(order));
  Ints size = guided::shape(t);
  for (size_t side = 0; side < 2 * dims; ++side) {
    STD_TORCH_CHECK(padding[side] >= 0 && order[side] >= 0, op, ": padding and order must not be negative, got ",
                    guided::text(padding), " and ", guided::text(order));
    if (is_padded) size[2 + side / 2] -= padding[side];
  }
  for (size_t side = 0; side < 2 * dims; ++side) {
    STD_TORCH_CHECK(size[2 + side / 2] >= (padding[side] > 0 ? order[side] + 1 : 0), op, ": extrapolation of order ",
                    order[side], " takes ", order[side] + 1, " pixels, and axis ", side / 2, " has ",
                    size[2 + side / 2]);
  }
  return size;
}

template <typename A>
Problem<A> problem(const Ints& size, const Ints& padding, const Ints& order, bool channels_last) {
  Problem<A> p;
  const size_t dims = size.size() - 2;
  p.images = channels_last ? size[0] : size[0] * size[1];
  p.pixel = channels_last ? size[1] : 1;
  for (size_t axis = 0; axis < 3; ++axis) {
    const bool there = axis + dims >= 3;
    const size_t own = axis + dims - 3;
    p.size[axis] = there ? size[2 + own] : 1;
    for (size_t side = 0; side < 2 && there; ++side) {
      p.sides[axis][side] = Side<A>(padding[2 * own + side], order[2 * own + side], side == 0);
    }
  }
  return p;
}

template <typename Work>
Tensor pad(const char* op, const Tensor& source, const Ints& padding, const Ints& order) {
  constexpr bool back = std::is_same_v<Work, Fold>;
  const Ints size = image_size(op, source, padding, order, back);
  const bool last = is_channels_last(source);
  const Tensor dense = last ? source : torch::stable::contiguous(source);
  Ints wanted = size;
  for (size_t side = 0; side < padding.size() && !back; ++side) wanted[2 + side / 2] += padding[side];
  const Tensor out = torch::stable::empty(wanted, source.scalar_type(), std::nullopt, source.device(), std::nullopt,
                                          format_of(source));
  if (out.numel() == 0) return out;
  guided::dispatch(op, source.scalar_type(), [&](auto s) {
    using S = decltype(s);
    run<Work>(problem<Computed<S>>(size, padding, order, last), numbers<S>(dense), result<S>(out));
  });
  return out;
}

Tensor forward(Tensor input, Ints padding, Ints order) {
  return pad<Extend>("extrapolate_pad", input, padding, order);
}

Tensor backward(Tensor grad, Ints padding, Ints order) {
  return pad<Fold>("extrapolate_pad_backward", grad, padding, order);
}

void backward_in_place(Tensor grad, Ints padding, Ints order) {
  const char* op = "extrapolate_pad_backward_";
  const Ints size = image_size(op, grad, padding, order, true);
  const bool last = is_channels_last(grad);
  STD_TORCH_CHECK(last || grad.is_contiguous(), op, ": the gradient must be contiguous or channels_last");
  if (grad.numel() == 0) return;
  guided::dispatch(op, grad.scalar_type(), [&](auto s) {
    using S = decltype(s);
    run_in_place(problem<Computed<S>>(size, padding, order, last), result<S>(grad));
  });
}

}  // namespace
}  // namespace convswap::extrapolate

STABLE_TORCH_LIBRARY_IMPL(convswap, CPU, m) {
  m.impl("extrapolate_pad", TORCH_BOX(&convswap::extrapolate::forward));
  m.impl("extrapolate_pad_backward", TORCH_BOX(&convswap::extrapolate::backward));
  m.impl("extrapolate_pad_backward_", TORCH_BOX(&convswap::extrapolate::backward_in_place));
}
