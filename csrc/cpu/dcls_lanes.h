// Vectors whose lanes hold one element each, or in double precision, which is for checks, one element at a time.
#pragma once

#include "dcls_element.h"
#include "simd.h"

namespace convswap {

template <typename T, int BYTES>
using Together = std::conditional_t<std::is_same_v<T, float>, Vec<float, BYTES>, T>;

// Work::run<BYTES>(arguments...) for numbers T.
template <typename T, typename Work, typename... Args>
void run_best(const Args&... args) {
  if constexpr (std::is_same_v<T, float>) {
    run_at_best_level<Work>(args...);
  } else {
    Level<Work, 16>::run(args...);
  }
}

// As many numbers as exist: `left`, or those of all lanes. The other lanes are 0.
template <typename V, typename T>
CONVSWAP_INLINE V load_lanes(const T* from, int64_t left) {
  return left >= Lanes<V>::count ? load<V>(from) : load_some<V>(from, left);
}

template <typename V, typename T>
CONVSWAP_INLINE void store_lanes(T* to, V value, int64_t left) {
  if (left >= Lanes<V>::count) {
    store(to, value);
  } else {
    store_some(to, value, left);
  }
}

// Whether a number in any lane is not 0.
template <typename V>
CONVSWAP_INLINE bool any_lane(V value) {
  if constexpr (std::is_arithmetic_v<V>) {
    return value != 0;
  } else {
    bool any = false;
    for (int lane = 0; lane < Lanes<V>::count; ++lane) any |= value[lane] != 0;
    return any;
  }
}

}  // namespace convswap
