// The activation of hybrid dense layers and its gradients: a power with an exponent and a factor for each channel.
#pragma once

#include "common.cuh"

namespace convswap {

constexpr int kHybridThreads = 256, kHybridWarps = kHybridThreads / 32;
constexpr Index kHybridFull = 1056;  // blocks that keep a large GPU busy

// z is `runs` times `channels` runs of `pixels` numbers of a channel; where the channels are neighbours, runs of 1.
struct Hybrid {
  Index runs, channels, pixels;
  __host__ __device__ Index numbers() const { return runs * channels * pixels; }
};

// What all numbers of a channel have in common.
template <typename S>
struct HybridPower {
  S factor, exponent, most;  // |muls|, clipped, and the largest finite number of the dtype
  S sign;                    // of muls
  bool inside;               // the exponent is not clipped

  __device__ HybridPower(S muls, S power, S most) : most(most) {
    factor = muls < 0 ? -muls : muls;
    sign = muls > 0 ? S(1) : muls < 0 ? S(-1) : S(0);
    inside = power >= -10 && power <= 10;
    exponent = power > 10 ? S(10) : power < -10 ? S(-10) : power;
  }

  // What the power is taken of.
  __device__ static S base(S z) { return (z < 0 ? S(0) : z) + S(1e-8); }

  __device__ S value(S z) const {
    const S size = factor * pow(base(z), exponent);
    return copysign(size <= most ? size : size != size ? S(0) : most, z);  // no number is not a number
  }

  // Times a gradient, both bounded.
  __device__ S times(S grad, S derivative) const {
    return bounded(grad * bounded(derivative != derivative ? S(0) : derivative));
  }

  __device__ S bounded(S value) const { return value > most ? most : value < -most ? -most : value; }

  // The gradient to z, and what is added to those to muls and powers.
  __device__ void gradients(S grad, S z, S& to_z, S& to_muls, S& to_power) const {
    const S from = base(z), raised = pow(from, exponent), size = factor * raised;
    const bool fits = size <= most;
    const S signed_grad = copysign(S(1), z);
    to_z = times(grad, fits && z > 0 ? size * (exponent / from) : S(0));
    to_muls = times(grad, fits ? signed_grad * sign * raised : S(0));
    to_power = times(grad, fits && inside ? signed_grad * size * log(from) : S(0));
  }
};

inline Launch plan_hybrid(Index numbers) { return {ceil_div<Index>(numbers, kHybridThreads), kHybridThreads, 0}; }

template <typename T>
__global__ void __launch_bounds__(kHybridThreads)
    hybrid_activation(const T* __restrict__ z, const T* __restrict__ muls, const T* __restrict__ powers,
                      T* __restrict__ y, Hybrid h, Sum<T> most, Launch launch) {
  using S = Sum<T>;
  for (Index n = blockIdx.x; n < launch.blocks; n += gridDim.x) {
    const Index i = n * kHybridThreads + threadIdx.x;
    if (i >= h.numbers()) break;
    const Index channel = i / h.pixels % h.channels;
    const HybridPower<S> power(static_cast<S>(muls[channel]), static_cast<S>(powers[channel]), most);
    y[i] = static_cast<T>(power.value(static_cast<S>(z[i])));
  }
}

// Sums of a channel are made of parts, in a fixed order. Lanes are neighbouring channels if `across`, else neighbouring
// numbers of one.
struct HybridParts {
  bool across;
  Index parts, part;  // and how many numbers of a channel each has
  Index tiles;        // of channels: 32, or 1
  Launch launch;
};

inline HybridParts plan_hybrid_parts(const Hybrid& h, Index enough) {
  HybridParts p{};
  p.across = h.pixels == 1;
  p.tiles = p.across ? ceil_div<Index>(h.channels, 32) : h.channels;
  const Index count = h.runs * h.pixels, fewest = p.across ? kHybridWarps : kHybridThreads;
  const Index wanted = p.tiles ? ceil_div<Index>(enough, p.tiles) : 1;
  const Index parts = most<Index>(1, least<Index>(wanted, ceil_div<Index>(count, 8 * fewest)));
  p.part = ceil_div<Index>(count, parts);
  p.parts = p.part ? ceil_div<Index>(count, p.part) : 1;
  p.launch = {p.tiles * p.parts, kHybridThreads, 2 * kHybridThreads * static_cast<int>(sizeof(double))};
  return p;
}

// Double precision may overflow on the way to a sum that does not: it is added up in so much smaller numbers.
template <typename S>
constexpr double kHybridScale = sizeof(S) == 8 ? 5.421010862427522e-20 : 1;  // 2^-64

// z_grad, laid out as z, and parts (2, parts, channels) of the gradients to muls and to powers.
template <typename T>
__global__ void __launch_bounds__(kHybridThreads)
    hybrid_backward(const T* __restrict__ grad, const T* __restrict__ z, const T* __restrict__ muls,
                    const T* __restrict__ powers, T* __restrict__ z_grad, double* __restrict__ parts, Hybrid h,
                    Sum<T> most, HybridParts p) {
  using S = Sum<T>;
  CONVSWAP_SHARED(memory);
  double* sums = reinterpret_cast<double*>(memory);
  const int thread = static_cast<int>(threadIdx.x);
  for (Index n = blockIdx.x; n < p.launch.blocks; n += gridDim.x) {
    const Index tile = n % p.tiles, part = n / p.tiles;
    const Index channel = p.across ? tile * 32 + thread % 32 : tile;
    const int first = p.across ? thread / 32 : thread, step = p.across ? kHybridWarps : kHybridThreads;
    const Index end = least((part + 1) * p.part, h.runs * h.pixels);
    double to_muls = 0, to_power = 0;
    if (channel < h.channels) {
      const HybridPower<S> power(static_cast<S>(muls[channel]), static_cast<S>(powers[channel]), most);
      for (Index i = part * p.part + first; i < end; i += step) {
        const Index at = (i / h.pixels * h.channels + channel) * h.pixels + i % h.pixels;
        S to_z, more_muls, more_power;
        power.gradients(static_cast<S>(grad[at]), static_cast<S>(z[at]), to_z, more_muls, more_power);
        z_grad[at] = static_cast<T>(to_z);
        to_muls += more_muls * kHybridScale<S>;
        to_power += more_power * kHybridScale<S>;
      }
    }
    __syncthreads();  // the sums before have been read
    sums[thread] = to_muls;
    sums[kHybridThreads + thread] = to_power;
    // Halves are added until a number for each channel is left.
    for (int half = kHybridThreads / 2; half >= (p.across ? 32 : 1); half /= 2) {
      __syncthreads();
      if (thread >= half) continue;
      sums[thread] += sums[thread + half];
      sums[kHybridThreads + thread] += sums[kHybridThreads + thread + half];
    }
    if (channel >= h.channels || thread >= (p.across ? 32 : 1)) continue;
    parts[part * h.channels + channel] = sums[thread];
    parts[(p.parts + part) * h.channels + channel] = sums[kHybridThreads + thread];
  }
}

// sums (channels) of parts (2, parts, channels).
template <typename T>
__global__ void __launch_bounds__(kHybridThreads)
    hybrid_sum(const double* __restrict__ parts, T* __restrict__ muls_grad, T* __restrict__ powers_grad,
               Index channels, Index count, Sum<T> most, Launch launch) {
  for (Index n = blockIdx.x; n < launch.blocks; n += gridDim.x) {
    const Index i = n * kHybridThreads + threadIdx.x;
    if (i >= 2 * channels) break;
    const Index which = i / channels, channel = i % channels;
    double total = 0;
    for (Index part = 0; part < count; ++part) total += parts[(which * count + part) * channels + channel];
    total /= kHybridScale<Sum<T>>;
    const double bound = most;
    total = total > bound ? bound : total < -bound ? -bound : total;
    (which ? powers_grad : muls_grad)[channel] = static_cast<T>(static_cast<Sum<T>>(total));
  }
}

// The launches. `run(launch, kernel, arguments...)` launches; `scratch(n)` gives room for n doubles; most: the largest
// finite number of T.
template <typename T, typename Run>
void run_hybrid_activation(Run&& run, const Hybrid& h, Sum<T> most, const T* z, const T* muls, const T* powers, T* y) {
  const Launch launch = plan_hybrid(h.numbers());
  run(launch, hybrid_activation<T>, z, muls, powers, y, h, most, launch);
}

template <typename T, typename Run, typename Scratch>
void run_hybrid_backward(Run&& run, Scratch&& scratch, const Hybrid& h, Sum<T> most, const T* grad, const T* z,
                         const T* muls, const T* powers, T* z_grad, T* muls_grad, T* powers_grad,
                         Index enough = kHybridFull) {
  const HybridParts p = plan_hybrid_parts(h, enough);
  double* parts = scratch(2 * p.parts * h.channels);
  run(p.launch, hybrid_backward<T>, grad, z, muls, powers, z_grad, parts, h, most, p);
  const Launch launch = plan_hybrid(2 * h.channels);
  run(launch, hybrid_sum<T>, static_cast<const double*>(parts), muls_grad, powers_grad, h.channels, p.parts, most,
      launch);
}

}  // namespace convswap
