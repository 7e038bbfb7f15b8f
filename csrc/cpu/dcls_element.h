// One element of a DCLS kernel drawn as a product of triangles, max(0, 1 - |t - p|) on each axis: which cells it
// touches, with which values and derivatives, and its gradient from the kernel's gradient at those cells.
//
// V is float or double, or a vector of them (simd.h): then there is one element in each lane.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "simd.h"

namespace convswap {

constexpr double kNormaliserEps = 1e-7;

// What belongs to V: the number type T, the integers of its width, as many as V has lanes, and what comparisons give.
template <typename V>
struct Lanes {
  using T = std::decay_t<decltype(std::declval<V&>()[0])>;
  using Int = decltype(std::declval<V>() < std::declval<V>());
  using Mask = Int;
  static constexpr int count = sizeof(V) / sizeof(T);
  static CONVSWAP_INLINE Int integer(V value) { return __builtin_convertvector(value, Int); }
  static CONVSWAP_INLINE V number(Int value) { return __builtin_convertvector(value, V); }
};
template <typename S, typename I>
struct OneLane {
  using T = S;
  using Int = I;
  using Mask = bool;
  static constexpr int count = 1;
  static CONVSWAP_INLINE Int integer(S value) { return static_cast<Int>(value); }
  static CONVSWAP_INLINE S number(Int value) { return static_cast<S>(value); }
};
template <>
struct Lanes<float> : OneLane<float, int32_t> {};
template <>
struct Lanes<double> : OneLane<double, int64_t> {};

// An integer as wide as the numbers of V.
template <typename V>
using CellOf = typename Lanes<typename Lanes<V>::T>::Int;

template <typename V>
CONVSWAP_INLINE V fill(typename Lanes<V>::T value) {
  return V{} + value;
}

// The triangle of an element on one axis.
template <typename V>
struct Triangle {
  using T = typename Lanes<V>::T;
  using Int = typename Lanes<V>::Int;

  Int base;                         // the cell below the position; two cells off the grid at most
  V fraction;                       // how far above it the position is
  typename Lanes<V>::Mask centred;  // it is a whole number, and the derivative the mean of both one-sided ones

  // A position that is NaN draws NaN on the grid's first cell.
  CONVSWAP_INLINE Triangle(V position, CellOf<V> size, bool right_slope) {
    const V below = fill<V>(-2), above = fill<V>(static_cast<T>(size + 1));
    V place = position + static_cast<T>(size / 2);
    place = place < below ? below : place;
    place = place > above ? above : place;
    const V known = place == place ? place : fill<V>(-1);
    base = Lanes<V>::integer(known);
    base = Lanes<V>::number(base) > known ? base - 1 : base;  // conversion rounds towards 0
    fraction = place - Lanes<V>::number(base);
    centred = fraction == fill<V>(right_slope ? -1 : 0);  // which is never -1
  }

  // At the cell base + step.
  CONVSWAP_INLINE V value(Int step) const {
    const V high = step == 1 ? fraction : V{};
    return step == 0 ? 1 - fraction : high;
  }
  CONVSWAP_INLINE V slope(Int step) const {
    const V one = fill<V>(1), half = fill<V>(static_cast<T>(0.5));
    const V side = centred ? half : one, at = centred ? V{} : -one, before = centred ? -half : V{};
    const V upper = step == 1 ? side : V{}, middle = step == 0 ? at : upper;
    return step == -1 ? before : middle;
  }
};

// Two neighbouring cells of one axis, on the grid, that are all that an element touches, but for the cell before them:
// that one has a derivative where the position is a whole number, and never a value. Of a grid of one cell the second
// one is none: value and slope are 0 there.
template <typename V>
struct Window {
  typename Lanes<V>::Int first;
  V value[2], slope[2];
  V before;  // slope at the cell before, 0 where there is none

  Window() = default;
  CONVSWAP_INLINE Window(V position, CellOf<V> size, bool right_slope) {
    using Int = typename Lanes<V>::Int;
    const Triangle<V> triangle(position, size, right_slope);
    const Int zero{}, last = zero + (size > 2 ? size - 2 : 0);
    first = triangle.base < 0 ? zero : triangle.base;
    first = first > last ? last : first;
    const Int step = first - triangle.base;
    value[0] = triangle.value(step);
    slope[0] = triangle.slope(step);
    value[1] = size > 1 ? triangle.value(step + 1) : V{};
    slope[1] = size > 1 ? triangle.slope(step + 1) : V{};
    before = first > 0 ? triangle.slope(step - 1) : V{};
  }

  CONVSWAP_INLINE V value_sum() const { return value[0] + value[1]; }
  CONVSWAP_INLINE V slope_sum() const { return before + slope[0] + slope[1]; }
};

// What an element's weight is multiplied with, besides its bump, whose sum over the grid is given.
template <typename V>
CONVSWAP_INLINE V element_share(V sum, bool normalise) {
  using T = typename Lanes<V>::T;
  return normalise ? 1 / (sum + static_cast<T>(kNormaliserEps)) : fill<V>(1);
}

template <typename V, int D>
struct ElementGrad {
  V weight;
  V position[D];  // by kernel axes
};

// Gradient of an element from that of its kernel: at the 2^D cells of its windows, the last axis fastest, and for each
// axis, if BEFORE, at the 2^(D - 1) cells before them along it. What is given for cells that are none
// or have none has no part in the result if it is finite.
template <bool BEFORE, int D, typename V>
CONVSWAP_INLINE ElementGrad<V, D> element_backward(
    const Window<V> (&along)[D], const V (&grad)[1 << D], const V (&grad_before)[D][1 << (D - 1)], V weight,
    bool normalise) {
  // From the last axis to the first, the cells of an axis are summed up: once for the element's value, and once for its
  // derivative along each axis.
  V value[1 << D], slope[D][1 << D];
#pragma GCC unroll 8
  for (int i = 0; i < 1 << D; ++i) value[i] = grad[i];
#pragma GCC unroll 3
  for (int axis = D - 1, rest = 1 << (D - 1); axis >= 0; --axis, rest /= 2) {
#pragma GCC unroll 4
    for (int i = 0; i < rest; ++i) {
#pragma GCC unroll 3
      for (int other = axis + 1; other < D; ++other) {
        slope[other][i] = along[axis].value[0] * slope[other][2 * i] + along[axis].value[1] * slope[other][2 * i + 1];
      }
      slope[axis][i] = along[axis].slope[0] * value[2 * i] + along[axis].slope[1] * value[2 * i + 1];
      value[i] = along[axis].value[0] * value[2 * i] + along[axis].value[1] * value[2 * i + 1];
    }
  }
  if constexpr (BEFORE) {
#pragma GCC unroll 3
    for (int axis = 0; axis < D; ++axis) {
      V across[1 << (D - 1)];
#pragma GCC unroll 4
      for (int i = 0; i < 1 << (D - 1); ++i) across[i] = grad_before[axis][i];
#pragma GCC unroll 3
      for (int other = D - 1, rest = 1 << (D - 1); other >= 0; --other) {
        if (other == axis) continue;
        rest /= 2;
#pragma GCC unroll 2
        for (int i = 0; i < rest; ++i) {
          across[i] = along[other].value[0] * across[2 * i] + along[other].value[1] * across[2 * i + 1];
        }
      }
      slope[axis][0] += along[axis].before * across[0];
    }
  }
  V sum = along[0].value_sum();
#pragma GCC unroll 3
  for (int axis = 1; axis < D; ++axis) sum *= along[axis].value_sum();
  const V share = element_share(sum, normalise);
  ElementGrad<V, D> result;
  result.weight = value[0] * share;
#pragma GCC unroll 3
  for (int axis = 0; axis < D; ++axis) {
    V moved = slope[axis][0];
    if (normalise) {
      V growth = along[axis].slope_sum();
#pragma GCC unroll 3
      for (int other = 0; other < D; ++other) {
        if (other != axis) growth *= along[other].value_sum();
      }
      moved -= result.weight * growth;  // what a larger sum takes from the element
    }
    result.position[axis] = weight * share * moved;
  }
  return result;
}

}  // namespace convswap
