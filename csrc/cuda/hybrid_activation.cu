// The activation of hybrid dense layers: checks, memory and launches.
#include "guided_arguments.h"

#include <limits>

#include "hybrid_activation.cuh"

namespace convswap {
namespace {

Hybrid layout(const Tensor& z, bool last) {
  Hybrid h{z.size(0), z.size(1), 1};
  for (int64_t axis = 2; axis < z.dim(); ++axis) (last ? h.runs : h.pixels) *= z.size(axis);
  return h;
}

void check(const Tensor& z, const Tensor& muls, const Tensor& powers) {
  STD_TORCH_CHECK(z.dim() >= 2, "z must be (N, C, *any), got ", told(sizes_of(z)));
  check_guided_alike(z, "z", muls, "muls");
  check_guided_alike(z, "z", powers, "powers");
  check_guided_shape(muls, "muls", {z.size(1)});
  check_guided_shape(powers, "powers", {z.size(1)});
}

template <typename T>
constexpr Sum<T> largest() {
  return static_cast<Sum<T>>(std::numeric_limits<T>::max());
}

Tensor forward(const Tensor& z, const Tensor& muls, const Tensor& powers) {
  check(z, muls, powers);
  const OnDevice run(z);
  const bool last = is_channels_last(z);
  const Tensor from = in_format(z, last), m = in_order(muls), p = in_order(powers);
  const Tensor y = torch::stable::empty_like(from);
  if (y.numel() == 0) return y;
  with_element(z, "z", [&](auto zero) {
    using T = decltype(zero);
    run_hybrid_activation<T>(run, layout(from, last), largest<T>(), data<T>(from), data<T>(m), data<T>(p), data<T>(y));
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& z, const Tensor& muls,
                                            const Tensor& powers) {
  check(z, muls, powers);
  check_guided_alike(z, "z", grad, "grad");
  check_guided_shape(grad, "grad", sizes_of(z));
  const OnDevice run(z);
  const bool last = is_channels_last(z);
  const Tensor from = in_format(z, last), g = in_format(grad, last), m = in_order(muls), p = in_order(powers);
  const Tensor to_z = torch::stable::empty_like(from), to_muls = torch::stable::empty_like(m);
  const Tensor to_powers = torch::stable::empty_like(p);
  std::optional<Tensor> parts;
  const auto scratch = [&](Index count) {
    parts = torch::stable::new_empty(m, Sizes{count}, ScalarType::Double);
    return data<double>(*parts);
  };
  with_element(z, "z", [&](auto zero) {
    using T = decltype(zero);
    run_hybrid_backward<T>(run, scratch, layout(from, last), largest<T>(), data<T>(g), data<T>(from), data<T>(m),
                           data<T>(p), data<T>(to_z), data<T>(to_muls), data<T>(to_powers));
  });
  return {to_z, to_muls, to_powers};
}

}  // namespace
}  // namespace convswap

CONVSWAP_LIBRARY(m) {
  m.impl("hybrid_activation", TORCH_BOX(&convswap::forward));
  m.impl("hybrid_activation_backward", TORCH_BOX(&convswap::backward));
}
