// The weights of pixels in those that a polynomial through them gives outside an image.
#pragma once

#include "common.cuh"

namespace convswap {

// A side of an axis: so many pixels are added, on the polynomial through `order` + 1 of them.
struct ExtrapolatedSide {
  int pad, order;
  Index first;  // its weights in the table: for each pixel outside, going outwards, those of the pixels, going inwards

  __host__ __device__ Index taps() const { return Index{1} + order; }
  __host__ __device__ Index count() const { return pad * taps(); }
};

// Of pixel j inside in pixel t outside, both counted from the edge: Lagrange's product, which is a whole number.
__host__ __device__ inline double lagrange_weight(Index t, Index j, Index order) {
  double product = 1;
  for (Index m = 0; m <= order; ++m) {
    if (m != j) product *= static_cast<double>(-(t + 1) - m) / static_cast<double>(j - m);
  }
  return rint(product);
}

// The sides of three axes, (before, after) each, and all their weights behind a 1, which pixels of the image have.
struct ExtrapolatedSides {
  ExtrapolatedSide side[3][2];
  Index weights;

  __host__ __device__ double weight(Index i) const {
    for (int n = 0; n < 6; ++n) {
      const ExtrapolatedSide& s = side[n / 2][n % 2];
      const Index at = i - s.first;
      if (s.pad > 0 && at >= 0 && at < s.count()) return lagrange_weight(at / s.taps(), at % s.taps(), s.order);
    }
    return 1;
  }
};

// Sides that are alike share their weights.
inline ExtrapolatedSides extrapolated_sides(const int (&pad)[3][2], const int (&order)[3][2]) {
  ExtrapolatedSides sides{};
  sides.weights = 1;
  for (int n = 0; n < 6; ++n) {
    ExtrapolatedSide& s = sides.side[n / 2][n % 2];
    s = {pad[n / 2][n % 2], order[n / 2][n % 2], sides.weights};
    for (int m = 0; m < n; ++m) {
      const ExtrapolatedSide& other = sides.side[m / 2][m % 2];
      if (other.order == s.order && other.pad >= s.pad) s.first = other.first;
    }
    if (s.first == sides.weights) sides.weights += s.count();
  }
  return sides;
}

constexpr Index kWeightsInLaunch = 256;  // they are an argument of the kernel, of which a launch takes 4 KB
constexpr int kWeightThreads = 128;

template <typename S>
struct ExtrapolatedWeights {
  const S* memory;  // null where these are all:
  S some[kWeightsInLaunch];

  CONVSWAP_INLINE __device__ S operator[](Index i) const { return memory ? memory[i] : some[i]; }
};

template <typename S>
__global__ void __launch_bounds__(kWeightThreads)
    extrapolated_weights(S* __restrict__ weights, ExtrapolatedSides sides, Launch launch) {
  for (Index n = blockIdx.x; n < launch.blocks; n += gridDim.x) {
    const Index i = n * kWeightThreads + threadIdx.x;
    if (i < sides.weights) weights[i] = static_cast<S>(sides.weight(i));
  }
}

// `run(launch, kernel, arguments...)` launches; `scratch(n)` gives room for n numbers of the sum's type.
template <typename S, typename Run, typename Scratch>
ExtrapolatedWeights<S> make_weights(Run&& run, Scratch&& scratch, const ExtrapolatedSides& sides) {
  ExtrapolatedWeights<S> weights{};
  if (sides.weights <= kWeightsInLaunch) {
    for (Index i = 0; i < sides.weights; ++i) weights.some[i] = static_cast<S>(sides.weight(i));
    return weights;
  }
  S* memory = scratch(sides.weights);
  const Launch launch{ceil_div<Index>(sides.weights, kWeightThreads), kWeightThreads, 0};
  run(launch, extrapolated_weights<S>, memory, sides, launch);
  weights.memory = memory;
  return weights;
}

}  // namespace convswap
