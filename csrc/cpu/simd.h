// Vectors as GCC and Clang have them, and functions compiled for several instruction sets, the best of which the
// machine has is run. What such a function calls must be inlined into it: CONVSWAP_INLINE.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define CONVSWAP_X86_LEVELS 1
// The same code for each instruction set, chosen when the library is loaded.
#define CONVSWAP_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define CONVSWAP_X86_LEVELS 0
#define CONVSWAP_CLONES
#endif
#define CONVSWAP_INLINE inline __attribute__((always_inline))

namespace convswap {

template <typename T, int BYTES>
struct VecOf {
  typedef T type __attribute__((vector_size(BYTES)));
};

// A vector of numbers, of 64 bytes unless told.
template <typename T, int BYTES = 64>
using Vec = typename VecOf<T, BYTES>::type;

// Calls Work::run<BYTES>(arguments...) compiled for an instruction set whose vectors have so many bytes: 64, 32 or 16.
// For code that compares and converts: in vectors longer than those of the machine that is done number by number.
template <typename Work, int BYTES>
struct Level {
  template <typename... Args>
  static void run(const Args&... args) {
    Work::template run<BYTES>(args...);
  }
};
#if CONVSWAP_X86_LEVELS
template <typename Work>
struct Level<Work, 32> {
  template <typename... Args>
  __attribute__((target("arch=x86-64-v3"))) static void run(const Args&... args) {
    Work::template run<32>(args...);
  }
};
template <typename Work>
struct Level<Work, 64> {
  template <typename... Args>
  __attribute__((target("arch=x86-64-v4"))) static void run(const Args&... args) {
    Work::template run<64>(args...);
  }
};
#endif

template <typename Work, typename... Args>
void run_at_best_level(const Args&... args) {
#if CONVSWAP_X86_LEVELS
  if (__builtin_cpu_supports("x86-64-v4")) return Level<Work, 64>::run(args...);
  if (__builtin_cpu_supports("x86-64-v3")) return Level<Work, 32>::run(args...);
#endif
  Level<Work, 16>::run(args...);
}

// Wherever the memory lies: no alignment is asked for.
template <typename V, typename T>
CONVSWAP_INLINE V load(const T* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof(V));
  return value;
}

template <typename V, typename T>
CONVSWAP_INLINE void store(T* to, V value) {
  __builtin_memcpy(to, &value, sizeof(V));
}

// The first `count` numbers, then zeros.
template <typename V, typename T>
CONVSWAP_INLINE V load_some(const T* from, int64_t count) {
  V value{};
  __builtin_memcpy(&value, from, count * sizeof(T));
  return value;
}

template <typename V, typename T>
CONVSWAP_INLINE void store_some(T* to, V value, int64_t count) {
  __builtin_memcpy(to, &value, count * sizeof(T));
}

}  // namespace convswap
