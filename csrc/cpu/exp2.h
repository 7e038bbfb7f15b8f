// Powers of two with exponents that are not positive, in all lanes of a vector at once.
#pragma once

#include "dcls_element.h"
#include "simd.h"

namespace convswap {

template <typename To, typename From>
CONVSWAP_INLINE To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "bits are read as something of the same size");
  To result;
  __builtin_memcpy(&result, &value, sizeof(To));
  return result;
}

// How a number is made up, and 2^r for |r| <= 1/2 as a polynomial, exactly 1 at 0 and with an error of less than half a
// unit in the last place of a number otherwise.
template <typename T>
struct Exp2;
template <>
struct Exp2<float> {
  static constexpr int mantissa_bits = 23, exponent_bias = 127;
  static constexpr float rounding = 0x1.8p23f;  // added to a small number, it leaves no bits behind the point
  static constexpr float powers[] = {1.0f,           0.693147188f,   0.2402265076f,  0.05550357114f,
                                     0.009618082557f, 0.001339086336f, 0.0001545316295f};
};
template <>
struct Exp2<double> {
  static constexpr int mantissa_bits = 52, exponent_bias = 1023;
  static constexpr double rounding = 0x1.8p52;
  static constexpr double powers[] = {1.0,
                                      0.693147180559945309,
                                      0.240226506959100712,
                                      0.055504108664821627,
                                      0.00961812910762847949,
                                      0.00133335581464064707,
                                      0.000154035303933707334,
                                      0.0000152527338415567726,
                                      1.32154868087055628e-6,
                                      1.01780570877339411e-7,
                                      7.05489730415549928e-9,
                                      4.45581790833606449e-10,
                                      2.57293241773623042e-11};
};

// 2^x for x <= 0; 0 where that is below the normal numbers; NaN for NaN.
template <typename V>
CONVSWAP_INLINE V exp2_of_negative(V x) {
  using T = typename Lanes<V>::T;
  using Int = typename Lanes<V>::Int;
  constexpr int degree = sizeof(Exp2<T>::powers) / sizeof(T) - 1;
  const V shifted = x + Exp2<T>::rounding;
  const V rest = x - (shifted - Exp2<T>::rounding), square = rest * rest;
  // Two terms at a time, so that less waits for what comes before.
  static_assert(degree % 2 == 0, "the last term is alone");
  V power = fill<V>(Exp2<T>::powers[degree]);
#pragma GCC unroll 8
  for (int i = degree - 2; i >= 0; i -= 2) {
    power = power * square + (Exp2<T>::powers[i] + Exp2<T>::powers[i + 1] * rest);
  }
  // The whole part stands in the last bits of `shifted`, and is moved to where the exponent is.
  using Unsigned = std::make_unsigned_t<CellOf<V>>;
  Int bits = bits_as<Int>(shifted);
  if constexpr (std::is_arithmetic_v<V>) {
    bits = static_cast<Int>(static_cast<Unsigned>(bits + Exp2<T>::exponent_bias) << Exp2<T>::mantissa_bits);
  } else {
    bits = (bits + Exp2<T>::exponent_bias) << Exp2<T>::mantissa_bits;
  }
  const V result = power * bits_as<V>(bits);
  return x < 1 - Exp2<T>::exponent_bias ? V{} : result;  // there it is anything
}

}  // namespace convswap
