// Vectors of numbers that are stored in one type and computed with in another: half precision in single.
//
// Half precision is converted by integer arithmetic on whole vectors, which every instruction set has.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "simd.h"

namespace convswap::guided {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// What numbers of a storage type are computed in.
template <typename S>
using Computed = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <int BYTES, typename S>
using ComputedVec = Vec<Computed<S>, BYTES>;

template <int BYTES, typename S>
constexpr int LANES = BYTES / sizeof(Computed<S>);

template <typename V, typename Word>
CONVSWAP_INLINE V number_of(Word bits) {
  static_assert(sizeof(V) == sizeof(Word), "bits are reinterpreted");
  return (V)bits;
}

template <typename Mask, typename Word>
CONVSWAP_INLINE Word choose(Mask which, Word yes, Word no) {
  return ((Word)which & yes) | (~(Word)which & no);
}

// As many numbers as a vector of what is computed in has, from anywhere in memory.
template <int BYTES, typename S>
CONVSWAP_INLINE ComputedVec<BYTES, S> widened(const S* from) {
  using V = ComputedVec<BYTES, S>;
  if constexpr (sizeof(S) == 2) {
    using Word = Vec<uint32_t, BYTES>;
    const Word bits = __builtin_convertvector(load<Vec<uint16_t, BYTES / 2>>(from), Word);
    if constexpr (std::is_same_v<S, BFloat16>) {
      return number_of<V>(bits << 16);
    } else {
      // Exponents are 112 greater in single precision, and the greatest one, of infinity, 112 more. What is below the
      // least exponent has no leading 1: it is put behind one, which is then subtracted.
      const Word size = bits & 0x7fffu, placed = size << 13, least = Word{} + 0x38800000u;
      const Word normal = placed + 0x38000000u + ((Word)(size >= 0x7c00u) & 0x38000000u);
      const Word small = (Word)(number_of<V>(placed + least) - number_of<V>(least));
      return number_of<V>(choose(size < 0x400u, small, normal) | (bits & 0x8000u) << 16);
    }
  } else {
    return load<V>(from);
  }
}

// Past the caches, which what is written and not read soon would empty of all else. `to` is aligned to the vector.
template <typename V, typename T>
CONVSWAP_INLINE void store_past_caches(T* to, V value) {
#if defined(__x86_64__) && defined(__GNUC__)
  // No intrinsics: they are inlined into functions of their own instruction set alone.
  if constexpr (sizeof(V) == 64) {
    asm("vmovntps %1, %0" : "=m"(*reinterpret_cast<V*>(to)) : "v"(value));
    return;
  } else if constexpr (sizeof(V) == 32) {
    asm("vmovntps %1, %0" : "=m"(*reinterpret_cast<V*>(to)) : "x"(value));
    return;
  } else if constexpr (sizeof(V) == 16) {
    asm("movntps %1, %0" : "=m"(*reinterpret_cast<V*>(to)) : "x"(value));
    return;
  }
#endif
  store(to, value);
}

// After the last of these, before another thread reads what they stored.
CONVSWAP_INLINE void finish_stores_past_caches() {
#if defined(__x86_64__) && defined(__GNUC__)
  asm volatile("sfence" ::: "memory");
#endif
}

// Rounded to the nearest number of the storage type, to the even one of two.
template <int BYTES, bool PAST_CACHES = false, typename S>
CONVSWAP_INLINE void put(S* to, ComputedVec<BYTES, S> value) {
  if constexpr (sizeof(S) == 2) {
    using V = ComputedVec<BYTES, S>;
    using Word = Vec<uint32_t, BYTES>;
    const Word bits = (Word)value;
    Word found;
    if constexpr (std::is_same_v<S, BFloat16>) {
      found = choose(value == value, (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16, Word{} + 0x7fc0u);
    } else {
      // Behind a leading 1 of 0.5 the last bit of single precision is the least number of half.
      const Word size = bits & 0x7fffffffu, half = Word{} + 0x3f000000u;
      const Word rounded = (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13;
      const Word normal = choose(rounded < 0x7c00u, rounded, Word{} + 0x7c00u);
      const Word small = (Word)(number_of<V>(size) + number_of<V>(half)) - half;
      const Word finite = choose(size < 0x38800000u, small, normal);
      found = choose(value == value, finite, Word{} + 0x7e00u) | (bits >> 16 & 0x8000u);
    }
    const auto narrow = __builtin_convertvector(found, Vec<uint16_t, BYTES / 2>);
    if constexpr (PAST_CACHES) store_past_caches(to, narrow);
    else store(to, narrow);
  } else if constexpr (PAST_CACHES) {
    store_past_caches(to, value);
  } else {
    store(to, value);
  }
}

}  // namespace convswap::guided
