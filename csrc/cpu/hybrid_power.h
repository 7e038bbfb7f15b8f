// Powers of positive numbers with any exponent, in all lanes of a vector of doubles at once or in one double.
//
// In vectors they are as exact as single precision needs: their relative error is below 2^-28 wherever they are numbers
// of single precision. One double alone is raised by the standard library, which is as exact as a double can be.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "simd.h"

namespace convswap::hybrid {

// A signed whole number of the size of a lane, in each lane.
template <typename D>
struct WholeOf {
  typedef int64_t type __attribute__((vector_size(sizeof(D))));
};
template <>
struct WholeOf<double> {
  using type = int64_t;
};
template <typename D>
using Whole = typename WholeOf<D>::type;

template <typename To, typename From>
CONVSWAP_INLINE To as_bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "bits are read as something of the same size");
  To result;
  __builtin_memcpy(&result, &value, sizeof(To));
  return result;
}

// `yes` where the comparison holds, else `no`. In bits: of vectors a chain of `?:` may be computed lane by lane.
template <typename Mask, typename D>
CONVSWAP_INLINE D choose(Mask holds, D yes, D no) {
  if constexpr (std::is_arithmetic_v<D>) {
    return holds ? yes : no;
  } else {
    const Whole<D> which = (Whole<D>)holds;
    return as_bits<D>((which & as_bits<Whole<D>>(yes)) | (~which & as_bits<Whole<D>>(no)));
  }
}

template <typename D>
struct Power {
  D raised;  // base^exponent
  D log2;    // of the base
};

// Horner's rule, every other coefficient apart, so that less waits for what comes before.
template <int COUNT, typename D>
CONVSWAP_INLINE D polynomial(const double (&coefficients)[COUNT], D x) {
  static_assert(COUNT % 2 == 0, "they come in pairs");
  const D square = x * x;
  D even = D{} + coefficients[COUNT - 2], odd = D{} + coefficients[COUNT - 1];
#pragma GCC unroll 8
  for (int i = COUNT - 4; i >= 0; i -= 2) {
    even = even * square + coefficients[i];
    odd = odd * square + coefficients[i + 1];
  }
  return odd * x + even;
}

// log2(1 + t) / t for 1 + t from sqrt(1/2) to sqrt(2), and 2^r for |r| <= 1/2.
constexpr double LOG2[] = {1.4426950409375938,   -0.72134752522972578, 0.48089832160273871, -0.36067279821124182,
                           0.28854057215297652,  -0.24050423414238006, 0.20609835701896079, -0.17904742982788854,
                           0.15897562051513844,  -0.15695713690309868, 0.15497145831373954, -0.086518436503968579};
constexpr double EXP2[] = {0.9999999999595488,    0.69314718054592994,   0.24022651213596133,   0.055504109412164652,
                           0.0096180256028651039, 0.0013333450559416982, 0.0001546973200175844, 1.5310081406904916e-05};

// The base is at least 1e-8, and may be infinite.
template <typename D>
CONVSWAP_INLINE Power<D> power_of(D base, D exponent) {
  if constexpr (std::is_same_v<D, double>) {
    return {std::pow(base, exponent), std::log2(base)};
  } else {
    using W = Whole<D>;
    constexpr double whole = 0x1.8p52;  // added to a number, it leaves no bits behind the point
    constexpr int64_t one = 0x3ff0000000000000, root_half = 0x3fe6a09e667f3bcd;
    const W bits = as_bits<W>(base), biased = (bits - root_half + one) >> 52;
    const D mantissa = as_bits<D>(bits - ((biased - 1023) << 52)), t = mantissa - 1;
    const D log2 = as_bits<D>(biased | 0x4330000000000000) - (0x1p52 + 1023) + t * polynomial(LOG2, t);
    D y = exponent * log2;
    y = choose(y < -1020, D{} - 1020, y);
    y = choose(y > 1020, D{} + 1020, y);
    const D shifted = y + whole;
    const D near = polynomial(EXP2, y - (shifted - whole));
    const D raised = near * as_bits<D>((as_bits<W>(shifted) + 1023) << 52);
    constexpr double infinity = std::numeric_limits<double>::infinity();
    const D other = choose(exponent == 0, D{} + 1, exponent);  // no number stays none
    const D limit = choose(exponent > 0, D{} + infinity, choose(exponent < 0, D{}, other));
    const auto endless = base == infinity;
    return {choose(endless, limit, raised), choose(endless, D{} + infinity, log2)};
  }
}

}  // namespace convswap::hybrid
