// What the ops of dynamic convolutions are given, checked.
#pragma once

#include "dynamic_plan.h"

namespace convswap::dynamic {

using torch::stable::Tensor;

struct Problem {
  Geometry g;
  Sizes sizes;
};

// The tensors that all three ops have.
struct Arguments {
  const char* op;
  const Tensor &weight, &attention;

  Arguments(const char* op, const Tensor& image, const char* name, const Tensor& weight, const Tensor& attention)
      : op(op), weight(weight), attention(attention) {
    guided::check_four_axes(op, image, name);
    guided::check_alike(op, image, weight, "weight");
    guided::check_alike(op, image, attention, "attention");
    STD_TORCH_CHECK(weight.dim() == 4, op, ": weight must be (kernels * outputs, inputs, height, width), got ",
                    guided::text(guided::shape(weight)));
    STD_TORCH_CHECK(attention.dim() == 2 && attention.size(0) == image.size(0) && attention.size(1) > 0, op,
                    ": attention must be (", image.size(0), ", kernels), got ", guided::text(guided::shape(attention)));
    STD_TORCH_CHECK(weight.size(0) % attention.size(1) == 0, op, ": weight must have a row for each output of ",
                    attention.size(1), " kernels, got ", guided::text(guided::shape(weight)));
  }

  Problem problem(int64_t batch, int64_t inputs, int64_t height, int64_t width, const Ints& stride, const Ints& padding,
                  const Ints& dilation, int64_t groups) const {
    const Geometry g =
        guided::make_geometry(op, height, width, {weight.size(2), weight.size(3)}, stride, padding, dilation);
    const int64_t kernels = attention.size(1), outputs = weight.size(0) / kernels;
    STD_TORCH_CHECK(groups > 0 && inputs == weight.size(1) * groups && outputs % groups == 0, op, ": ", inputs,
                    " input channels, ", groups, " groups, ", kernels, " kernels and a weight of ",
                    guided::text(guided::shape(weight)), " do not fit together");
    return {g, {batch, kernels, groups, inputs / groups, outputs / groups}};
  }
};

// Contiguous or channels_last: as it is, or a contiguous copy.
inline Tensor in_one_format(const Tensor& t) {
  return guided::is_channels_last(t) ? t : torch::stable::contiguous(t);
}

inline Tensor empty_image(const Ints& size, const Tensor& like, bool last) {
  return torch::stable::empty(size, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              last ? torch::headeronly::MemoryFormat::ChannelsLast
                                   : torch::headeronly::MemoryFormat::Contiguous);
}

}  // namespace convswap::dynamic
