// The activation of hybrid dense layers, and its gradients.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "guided_problem.h"
#include "hybrid_activation_runs.h"

namespace convswap::hybrid {
namespace {

using guided::dispatch;
using guided::Ints;
using guided::numbers;
using guided::result;
using torch::stable::Tensor;

// Where the numbers of channels lie: each sample has a run of `pixels` for every channel, or, where the channels are
// neighbours, there are so many samples of one pixel.
struct Layout {
  int64_t samples, channels, pixels;

  bool neighbours() const { return pixels == 1; }
  int64_t rows(int64_t cost) const { return std::max<int64_t>(1, cost / std::max<int64_t>(1, channels)); }
};

// Numbers that are worth a task of their own: a power takes longer than what else the tasks do.
constexpr int64_t TASK = 1 << 13;

inline int64_t runs(const Layout& layout) { return std::max<int64_t>(1, TASK / layout.pixels); }

// As layers/_geometry.py has it: of four or five axes, and not contiguous as well.
bool is_channels_last(const Tensor& t) {
  if (t.is_contiguous() || t.dim() < 4 || t.dim() > 5) return false;
  int64_t expected = 1;
  for (const int64_t axis : t.dim() == 4 ? Ints{1, 3, 2, 0} : Ints{1, 4, 3, 2, 0}) {
    if (t.size(axis) != 1 && t.stride(axis) != expected) return false;
    expected *= t.size(axis);
  }
  return true;
}

Layout layout_of(const Tensor& z) {
  const int64_t channels = z.size(1);
  if (is_channels_last(z)) return {z.numel() / channels, channels, 1};
  return {z.size(0), channels, z.size(0) * channels ? z.numel() / (z.size(0) * channels) : 0};
}

void check(const char* op, const Tensor& z, const Tensor& muls, const Tensor& powers) {
  STD_TORCH_CHECK(z.dim() >= 2, op, ": z must be (N, C, *any), got ", guided::text(guided::shape(z)));
  guided::check_alike(op, z, muls, "muls");
  guided::check_alike(op, z, powers, "powers");
  guided::check_shape(op, muls, "muls", {z.size(1)});
  guided::check_shape(op, powers, "powers", {z.size(1)});
}

Tensor empty_as(const Tensor& z) {
  return is_channels_last(z) ? torch::stable::empty_like(z) : guided::empty(guided::shape(z), z);
}

template <typename S>
std::vector<double> as_doubles(const Tensor& t) {
  const Tensor dense = torch::stable::contiguous(t);
  const S* from = numbers<S>(dense);
  return std::vector<double>(from, from + dense.numel());
}

template <typename S>
void run_forward(const Layout& layout, const S* z, const double* muls, const double* powers, S* out) {
  const int64_t C = layout.channels, P = layout.pixels;
  if (layout.neighbours()) {
    torch::stable::parallel_for(0, layout.samples, layout.rows(TASK), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        run_at_best_level<Forward<false>>(z + n * C, muls, powers, C, out + n * C);
      }
    });
    return;
  }
  torch::stable::parallel_for(0, layout.samples * C, runs(layout), [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) {
      const int64_t c = run % C;
      run_at_best_level<Forward<true>>(z + run * P, muls + c, powers + c, P, out + run * P);
    }
  });
}

// `sums` and `more` are 0, one number for each channel.
template <typename S>
void run_backward(const Layout& layout, const S* grad, const S* z, const double* muls, const double* powers, S* out,
                  double* sums, double* more) {
  const int64_t C = layout.channels, P = layout.pixels;
  if (layout.neighbours()) {
    // Rows are taken together however many threads there are, so that the sums are the same.
    const int64_t rows = layout.rows(TASK), blocks = (layout.samples + rows - 1) / rows;
    std::vector<double> parts(2 * blocks * C);
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        double *const own = parts.data() + 2 * block * C, *const own_more = own + C;
        for (int64_t n = block * rows; n < std::min((block + 1) * rows, layout.samples); ++n) {
          run_at_best_level<Backward<false>>(grad + n * C, z + n * C, muls, powers, C, out + n * C, own, own_more);
        }
      }
    });
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t c = 0; c < C; ++c) {
        sums[c] += parts[2 * block * C + c];
        more[c] += parts[(2 * block + 1) * C + c];
      }
    }
    return;
  }
  torch::stable::parallel_for(0, C, std::max<int64_t>(1, runs(layout) / std::max<int64_t>(1, layout.samples)),
                              [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t n = 0; n < layout.samples; ++n) {
        const int64_t at = (n * C + c) * P;
        run_at_best_level<Backward<true>>(grad + at, z + at, muls + c, powers + c, P, out + at, sums + c, more + c);
      }
    }
  });
}

// As they are stored, or the greatest finite number of the type that they are stored in.
template <typename S>
Tensor stored(const std::vector<double>& sums, const Tensor& like) {
  const Tensor out = guided::empty({static_cast<int64_t>(sums.size())}, like);
  for (size_t c = 0; c < sums.size(); ++c) {
    result<S>(out)[c] = static_cast<S>(static_cast<guided::Computed<S>>(bounded<S>(sums[c] / SHARE<S>)));
  }
  return out;
}

Tensor forward(Tensor z, Tensor muls, Tensor powers) {
  check("hybrid_activation", z, muls, powers);
  const Tensor dense = is_channels_last(z) ? z : torch::stable::contiguous(z), out = empty_as(dense);
  if (out.numel() == 0) return out;
  dispatch("hybrid_activation", z.scalar_type(), [&](auto s) {
    using S = decltype(s);
    const std::vector<double> m = as_doubles<S>(muls), p = as_doubles<S>(powers);
    run_forward(layout_of(dense), numbers<S>(dense), m.data(), p.data(), result<S>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad, Tensor z, Tensor muls, Tensor powers) {
  const char* op = "hybrid_activation_backward";
  check(op, z, muls, powers);
  guided::check_alike(op, z, grad, "grad");
  guided::check_shape(op, grad, "grad", guided::shape(z));
  const bool last = is_channels_last(z);
  const Tensor dense = last ? z : torch::stable::contiguous(z), out = empty_as(dense);
  Tensor own = torch::stable::contiguous(grad);
  if (last) {
    own = empty_as(dense);
    torch::stable::copy_(own, grad);
  }
  Tensor muls_grad, powers_grad;
  dispatch(op, z.scalar_type(), [&](auto s) {
    using S = decltype(s);
    const std::vector<double> m = as_doubles<S>(muls), p = as_doubles<S>(powers);
    std::vector<double> sums(m.size()), more(m.size());
    if (out.numel() != 0) {
      run_backward(layout_of(dense), numbers<S>(own), numbers<S>(dense), m.data(), p.data(), result<S>(out),
                   sums.data(), more.data());
    }
    muls_grad = stored<S>(sums, muls);
    powers_grad = stored<S>(more, powers);
  });
  return {out, muls_grad, powers_grad};
}

}  // namespace
}  // namespace convswap::hybrid

STABLE_TORCH_LIBRARY_IMPL(convswap, CPU, m) {
  m.impl("hybrid_activation", TORCH_BOX(&convswap::hybrid::forward));
  m.impl("hybrid_activation_backward", TORCH_BOX(&convswap::hybrid::backward));
}
