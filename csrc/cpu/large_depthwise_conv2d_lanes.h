// Vectors whose lanes are planes (a channel of an image), and moving images into such vectors and back.
//
// With one channel in each lane the width of an image, the stride and the borders of a depthwise convolution are the
// same for all lanes: no part of a vector is lost on them, and every load is aligned.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>
#include <type_traits>
#include <utility>

#include "simd.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions only
#endif

namespace convswap::lanes {

using c10::BFloat16;
using c10::Half;

// What sums of a storage type are kept in.
template <class T> struct Sum { using type = float; };
template <> struct Sum<double> { using type = double; };

// Where the elements of the lanes lie in a tensor: element i of lane l at lane[l] + i * step, in elements.
struct Lanes {
  const void* lane[16];
  int64_t step;
  int count;      // lanes in use; the others repeat one of these and are never written
  bool adjacent;  // lane l at lane[0] + l
};

template <class T, class A, int BYTES> CONVSWAP_INLINE void widen(const T* from, Vec<A, BYTES>& to) {
  constexpr int L = BYTES / sizeof(A);
  if constexpr (sizeof(T) == sizeof(A)) {
    std::memcpy(&to, from, BYTES);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    using Short = Vec<uint16_t, BYTES / 2>;
    using Word = Vec<uint32_t, BYTES>;
    Short bits;
    std::memcpy(&bits, from, BYTES / 2);
    to = (Vec<A, BYTES>)(__builtin_convertvector(bits, Word) << 16);
  } else {
    Vec<A, BYTES> value = {};
    for (int l = 0; l < L; l++) value[l] = static_cast<A>(from[l]);
    to = value;
  }
}

template <class T, class A, int BYTES> CONVSWAP_INLINE void narrow(const Vec<A, BYTES>& from, T* to) {
  constexpr int L = BYTES / sizeof(A);
  if constexpr (sizeof(T) == sizeof(A)) {
    std::memcpy(to, &from, BYTES);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    using Short = Vec<uint16_t, BYTES / 2>;
    using Word = Vec<uint32_t, BYTES>;
    const Word bits = (Word)from;
    const Word rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    const Word finite = (Word)(from == from);
    const Word chosen = (rounded & finite) | (~finite & 0x7fc0u);
    const Short out = __builtin_convertvector(chosen, Short);
    std::memcpy(to, &out, BYTES / 2);
  } else {
    for (int l = 0; l < L; l++) to[l] = static_cast<T>(static_cast<float>(from[l]));
  }
}

template <class V, int L, int H, int... K>
CONVSWAP_INLINE void exchange(V& a, V& b, std::integer_sequence<int, K...>) {
  const V x = a, y = b;
#if defined(__clang__)
  a = __builtin_shufflevector(x, y, ((K & H) ? L + K - H : K)...);
  b = __builtin_shufflevector(x, y, ((K & H) ? L + K : K + H)...);
#else
  using Index = std::conditional_t<sizeof(x[0]) == 4, int32_t, int64_t>;
  typedef Index Indices __attribute__((vector_size(sizeof(V))));
  a = __builtin_shuffle(x, y, Indices{((K & H) ? L + K - H : K)...});
  b = __builtin_shuffle(x, y, Indices{((K & H) ? L + K : K + H)...});
#endif
}

template <class V, int L, int H = L / 2> CONVSWAP_INLINE void transpose(V (&rows)[L]) {
  if constexpr (H > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < L; i++) {
      if (!(i & H)) exchange<V, L, H>(rows[i], rows[i + H], std::make_integer_sequence<int, L>{});
    }
    transpose<V, L, H / 2>(rows);
  }
}

// Bring elements 0 .. count - 1 of all lanes to vectors, element i to to[place[i]].
template <class T, int BYTES>
CONVSWAP_INLINE void gather(const Lanes& from, int64_t count, const int32_t* place, void* to) {
  using A = typename Sum<T>::type;
  using V = Vec<A, BYTES>;
  constexpr int L = BYTES / sizeof(A);
  V* out = static_cast<V*>(to);
  if (from.adjacent && from.count == L) {
    const T* base = static_cast<const T*>(from.lane[0]);
    for (int64_t i = 0; i < count; i++) widen<T, A, BYTES>(base + i * from.step, out[place[i]]);
    return;
  }
  if (from.step == 1 && count >= L) {
    for (int64_t start = 0; start < count; start += L) {
      const int64_t i = start + L <= count ? start : count - L;
      V rows[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; l++) widen<T, A, BYTES>(static_cast<const T*>(from.lane[l]) + i, rows[l]);
      transpose<V, L>(rows);
#pragma GCC unroll 16
      for (int l = 0; l < L; l++) out[place[i + l]] = rows[l];
    }
    return;
  }
  for (int64_t i = 0; i < count; i++) {
    V value = {};
    for (int l = 0; l < from.count; l++) {
      value[l] = static_cast<A>(static_cast<const T*>(from.lane[l])[i * from.step]);
    }
    out[place[i]] = value;
  }
}

// Write vectors 0 .. count - 1, plus `more` where it is not null, to all lanes.
template <class T, int BYTES>
CONVSWAP_INLINE void spread(const void* from, int64_t count, const void* more, const Lanes& to) {
  using A = typename Sum<T>::type;
  using V = Vec<A, BYTES>;
  constexpr int L = BYTES / sizeof(A);
  const V* in = static_cast<const V*>(from);
  const V add = more ? *static_cast<const V*>(more) : V{};
  const auto lane = [&](int l) __attribute__((always_inline)) {
    return static_cast<T*>(const_cast<void*>(to.lane[l]));
  };
  if (to.adjacent && to.count == L) {
    for (int64_t i = 0; i < count; i++) narrow<T, A, BYTES>(in[i] + add, lane(0) + i * to.step);
    return;
  }
  if (to.step == 1 && count >= L) {
    for (int64_t start = 0; start < count; start += L) {
      const int64_t i = start + L <= count ? start : count - L;
      V rows[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; l++) rows[l] = in[i + l] + add;
      transpose<V, L>(rows);
#pragma GCC unroll 16
      for (int l = 0; l < L; l++) {
        if (l < to.count) narrow<T, A, BYTES>(rows[l], lane(l) + i);
      }
    }
    return;
  }
  for (int64_t i = 0; i < count; i++) {
    const V value = in[i] + add;
    for (int l = 0; l < to.count; l++) lane(l)[i * to.step] = static_cast<T>(value[l]);
  }
}

template <class A> CONVSWAP_INLINE void add(const void* from, int64_t count, void* to) {
  for (int64_t i = 0; i < count; i++) static_cast<A*>(to)[i] += static_cast<const A*>(from)[i];
}

}  // namespace convswap::lanes
