// A DCLS element of learned width on one axis: a Gaussian, or a triangle of any width.
#pragma once

#include "dcls_element.h"
#include "exp2.h"
#include "simd.h"

namespace convswap {

// V holds one element in each lane.
template <typename V>
struct Bump {
  using T = typename Lanes<V>::T;
  V position;  // in cells, from the one that positions are relative to
  V sigma;
  V inverse;   // of sigma
  V exponent;  // of 2, at a distance of one cell

  CONVSWAP_INLINE Bump(V where, V SIG, T least_sigma) : position(where) {
    sigma = (SIG < 0 ? -SIG : SIG) + least_sigma;
    inverse = 1 / sigma;
    exponent = inverse * inverse * static_cast<T>(-0.72134752044448170);  // log2(e) / 2
  }

  // At a cell that is `cell` cells from the one that positions are relative to.
  template <bool GAUSSIAN>
  CONVSWAP_INLINE V value(V cell) const {
    const V distance = cell - position;
    if constexpr (GAUSSIAN) {
      return exp2_of_negative<V>(distance * distance * exponent);
    } else {
      const V height = sigma - (distance < 0 ? -distance : distance);
      return height < 0 ? V{} : height;
    }
  }

  // Derivatives along the position and sigma, from the value. At the kinks of a triangle they are the mean of both
  // one-sided ones.
  template <bool GAUSSIAN>
  CONVSWAP_INLINE void slopes(V cell, V value, V& along_position, V& along_sigma) const {
    const V distance = cell - position;
    if constexpr (GAUSSIAN) {
      // In this order far away 0 is multiplied with nothing infinite.
      along_position = value * inverse * inverse * distance;
      along_sigma = along_position * distance * inverse;
    } else {
      const V one = fill<V>(1), half = fill<V>(static_cast<T>(0.5));
      const V away = distance < 0 ? -distance : distance;
      const V at_kink = away == sigma ? half : V{};
      along_sigma = away < sigma ? one : at_kink;
      const V side = distance < 0 ? -along_sigma : along_sigma;
      along_position = distance == 0 ? V{} : side;
    }
  }
};

}  // namespace convswap
