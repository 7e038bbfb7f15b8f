// Padding by extrapolation, and its transpose: each number of the result gathers those of the source it is made of.
#pragma once

#include "extrapolate_plan.cuh"
#include "guided_memory.cuh"

namespace convswap {

// Along an axis, the pixels of the source that one of the result is made of, each with the place of its weight.
struct Tap {
  int at;
  Index weight;
};

// Forwards: the same pixel of the image, or those that the polynomial goes through.
template <bool kBack>
struct Reach {
  int count, begin, step;
  Index weight;

  CONVSWAP_INLINE __device__ Reach(const Extrapolate& e, int axis, int at)
      : count(1), begin(at - e.before[axis]), step(1), weight(0) {
    const int beyond = begin - e.image[axis];
    if (begin >= 0 && beyond < 0) return;
    const ExtrapolatedSide& side = e.sides.side[axis][beyond >= 0];
    weight = side.first + (begin < 0 ? -1 - begin : beyond) * side.taps();
    count = side.order + 1;
    step = begin < 0 ? 1 : -1;
    begin = begin < 0 ? 0 : e.image[axis] - 1;
  }

  CONVSWAP_INLINE __device__ Tap operator[](int i) const { return {begin + i * step, weight + i}; }
};

// Backwards: the same pixel of the padded image, and on either side those outside that have a share of it.
template <>
struct Reach<true> {
  int count, own, outside, edge[2];
  Index weight[2], step[2];

  CONVSWAP_INLINE __device__ Reach(const Extrapolate& e, int axis, int at) {
    const ExtrapolatedSide &first = e.sides.side[axis][0], &last = e.sides.side[axis][1];
    const int to_end = e.image[axis] - 1 - at;
    own = at + e.before[axis];
    outside = at <= first.order ? first.pad : 0;
    count = 1 + outside + (to_end <= last.order ? last.pad : 0);
    edge[0] = e.before[axis] - 1;
    edge[1] = e.before[axis] + e.image[axis];
    weight[0] = first.first + at;
    weight[1] = last.first + to_end;
    step[0] = first.taps();
    step[1] = last.taps();
  }

  CONVSWAP_INLINE __device__ Tap operator[](int i) const {
    if (i == 0) return {own, 0};
    const int t = i - 1, u = t - outside;
    if (u < 0) return {edge[0] - t, weight[0] + t * step[0]};
    return {edge[1] + u, weight[1] + u * step[1]};
  }
};

// A pixel of the result, or a place in a row of it.
struct Spot {
  Index outer, in_row;
  int z, y;

  // The number at i.
  CONVSWAP_INLINE __device__ Spot(const Extrapolate& e, Index i) {
    if (e.small) {
      unsigned n = static_cast<unsigned>(i);
      take(e, n);
    } else {
      take(e, i);
    }
  }

  template <typename N>
  CONVSWAP_INLINE __device__ void take(const Extrapolate& e, N n) {
    in_row = e.row.take(n);
    y = static_cast<int>(e.rows.take(n));
    z = static_cast<int>(e.planes.take(n));
    outer = n;
  }

  // On by some numbers, into the next rows if need be.
  CONVSWAP_INLINE __device__ void advance(const Extrapolate& e, int by) {
    in_row += by;
    while (in_row >= e.row.value) {
      in_row -= e.row.value;
      if (++y < e.to[1]) continue;
      y = 0;
      if (++z < e.to[0]) continue;
      z = 0;
      ++outer;
    }
  }

  // In a row that is copied but for its ends.
  CONVSWAP_INLINE __device__ bool in_plain_row(const Extrapolate& e) const { return e.plain(0, z) && e.plain(1, y); }

  // Where it is copied from.
  CONVSWAP_INLINE __device__ Index source(const Extrapolate& e) const {
    return e.line(outer, z + e.shift[0], y + e.shift[1]) + in_row + e.shift[2] * e.inner;
  }
};

// Of the pixel that a spot is in, kPixels numbers from the spot on.
template <typename T, int kPixels, bool kBack>
CONVSWAP_INLINE __device__ Pixels<T, kPixels> gather(const T* __restrict__ source, const Extrapolate& e,
                                                     const ExtrapolatedWeights<Sum<T>>& weights, const Spot& spot) {
  using S = Sum<T>;
  const int column = e.column(spot.in_row);
  const T* from = source + (spot.in_row - column * e.inner);
  const Reach<kBack> planes(e, 0, spot.z), rows(e, 1, spot.y), columns(e, 2, column);
  S total[kPixels] = {};
  for (int i = 0; i < planes.count; ++i) {
    const Tap plane = planes[i];
    for (int j = 0; j < rows.count; ++j) {
      const Tap row = rows[j];
      const T* line = from + e.line(spot.outer, plane.at, row.at);
      const S outside = weights[plane.weight] * weights[row.weight];
      for (int k = 0; k < columns.count; ++k) {
        const Tap tap = columns[k];
        const S weight = outside * weights[tap.weight];
        const auto pixels = *reinterpret_cast<const Pixels<T, kPixels>*>(line + tap.at * e.inner);
        CONVSWAP_UNROLL
        for (int n = 0; n < kPixels; ++n) total[n] += weight * static_cast<S>(pixels.v[n]);
      }
    }
  }
  Pixels<T, kPixels> result;
  CONVSWAP_UNROLL
  for (int n = 0; n < kPixels; ++n) result.v[n] = static_cast<T>(total[n]);
  return result;
}

CONVSWAP_INLINE __device__ int lowest_bit(unsigned bits) {
#if defined(__CUDACC__)
  return __ffs(static_cast<int>(bits)) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

// Some consecutive numbers of the result, of which there are `count`, in several pixels. Those that are no copies wait
// for each other, so that neighbouring threads do the long work together.
template <typename T, bool kBack>
CONVSWAP_INLINE __device__ Pixels<T, kExtrapolated<T>> mixed(const T* __restrict__ source, const Extrapolate& e,
                                                             const ExtrapolatedWeights<Sum<T>>& weights,
                                                             const Spot& spot, int count) {
  Pixels<T, kExtrapolated<T>> result;
  unsigned left = 0;
  Spot at = spot;
  CONVSWAP_UNROLL
  for (int n = 0; n < kExtrapolated<T>; ++n) {
    result.v[n] = {};
    if (n < count) {
      if (at.in_plain_row(e) && at.in_row >= e.copy_begin && at.in_row < e.copy_end) {
        result.v[n] = source[at.source(e)];
      } else {
        left |= 1u << n;
      }
    }
    at.advance(e, 1);
  }
  for (; left; left &= left - 1) {
    const int which = lowest_bit(left);
    at = spot;
    at.advance(e, which);
    const T found = gather<T, 1, kBack>(source, e, weights, at).v[0];
    CONVSWAP_UNROLL
    for (int n = 0; n < kExtrapolated<T>; ++n) {
      if (n == which) result.v[n] = found;
    }
  }
  return result;
}

// kWhole: the numbers of a thread lie in one pixel, aligned in the source.
template <typename T, bool kBack, bool kWhole>
__global__ void __launch_bounds__(kExtrapolateThreads, kExtrapolateBlocks)
    extrapolate(const T* __restrict__ source, T* __restrict__ result, CONVSWAP_ARGUMENT Extrapolate e,
                CONVSWAP_ARGUMENT ExtrapolatedWeights<Sum<T>> weights, Launch launch) {
  constexpr int kPixels = kExtrapolated<T>;
  using Vector = Pixels<T, kPixels>;
  for (Index n = blockIdx.x; n < launch.blocks; n += gridDim.x) {
    const Index i = (n * kExtrapolateThreads + threadIdx.x) * kPixels;
    if (i >= e.numbers) break;
    const Spot spot(e, i);
    Vector vector;
    if (spot.in_plain_row(e) && spot.in_row >= e.copy_begin && spot.in_row + kPixels <= e.copy_end) {
      const T* from = source + spot.source(e);
      if constexpr (kWhole) {
        vector = *reinterpret_cast<const Vector*>(from);
      } else {
        CONVSWAP_UNROLL
        for (int k = 0; k < kPixels; ++k) vector.v[k] = from[k];
      }
    } else if constexpr (kWhole) {
      vector = gather<T, kPixels, kBack>(source, e, weights, spot);
    } else {
      const int count = static_cast<int>(least<Index>(kPixels, e.numbers - i));
      vector = mixed<T, kBack>(source, e, weights, spot, count);
      if (count < kPixels) {
        CONVSWAP_UNROLL
        for (int k = 0; k < kPixels; ++k) {
          if (k < count) result[i + k] = vector.v[k];
        }
        continue;
      }
    }
    *reinterpret_cast<Vector*>(result + i) = vector;  // what comes next reads it: it stays in the caches
  }
}

// The launches. `run(launch, kernel, arguments...)` launches; `scratch(n)` gives room for n numbers of Sum<T>.
template <typename T, typename Run, typename Scratch>
void run_extrapolate(Run&& run, Scratch&& scratch, const Extrapolate& e, bool back, const T* source, T* result) {
  constexpr int kPixels = kExtrapolated<T>;
  const ExtrapolatedWeights<Sum<T>> weights = make_weights<Sum<T>>(run, scratch, e.sides);
  const Launch launch = extrapolate_launch(e, kPixels);
  const bool aligned = reinterpret_cast<unsigned long long>(source) % sizeof(Pixels<T, kPixels>) == 0;
  const bool whole = aligned && e.inner % kPixels == 0;
  const auto kernel = back ? (whole ? extrapolate<T, true, true> : extrapolate<T, true, false>)
                           : (whole ? extrapolate<T, false, true> : extrapolate<T, false, false>);
  run(launch, kernel, source, result, e, weights, launch);
}

}  // namespace convswap
