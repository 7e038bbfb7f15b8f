// How the guided ops read and write: generated kernels in vectors, once each, and images pixel by pixel.
#pragma once

#include "guided_plan.cuh"

namespace convswap {

constexpr int kGuidedTaps = 3;  // of a row of the kernel that are in flight together

template <typename T, int kPixels>
struct alignas(sizeof(T) * kPixels) Pixels {
  T v[kPixels];
};

#if defined(__CUDACC__)
template <int kBytes>
struct WordsOf;
template <>
struct WordsOf<16> {
  using type = uint4;
};
template <>
struct WordsOf<8> {
  using type = uint2;
};
template <>
struct WordsOf<4> {
  using type = unsigned;
};
template <>
struct WordsOf<2> {
  using type = unsigned short;
};
#endif

// Goes on by a step at run time. The compiler would rather keep a multiple of the step for each access in flight, in so
// many registers that threads are lost.
template <typename T>
CONVSWAP_INLINE __device__ void advance(T& at, Index step) {
  at += step;
#if defined(__CUDACC__)
  asm("" : "+l"(at));
#endif
}

// Of memory that nobody reads again: it goes out of the caches first.
template <typename T, int kPixels>
CONVSWAP_INLINE __device__ Pixels<T, kPixels> load_once(const T* from) {
#if defined(__CUDACC__)
  using Words = typename WordsOf<sizeof(T) * kPixels>::type;
  const Words words = __ldcs(reinterpret_cast<const Words*>(from));
  Pixels<T, kPixels> pixels;
  memcpy(&pixels, &words, sizeof(words));
  return pixels;
#else
  return *reinterpret_cast<const Pixels<T, kPixels>*>(from);
#endif
}

// One number, of memory that other threads read as well.
template <typename T>
CONVSWAP_INLINE __device__ T load_number(const T* from) {
#if defined(__CUDACC__)
  using Word = typename WordsOf<sizeof(T)>::type;
  const Word word = __ldca(reinterpret_cast<const Word*>(from));
  T number;
  memcpy(&number, &word, sizeof(word));
  return number;
#else
  return *from;
#endif
}

template <typename T, int kPixels>
CONVSWAP_INLINE __device__ void store_once(T* to, const Pixels<T, kPixels>& pixels) {
#if defined(__CUDACC__)
  using Words = typename WordsOf<sizeof(T) * kPixels>::type;
  Words words;
  memcpy(&words, &pixels, sizeof(words));
  __stcs(reinterpret_cast<Words*>(to), words);
#else
  *reinterpret_cast<Pixels<T, kPixels>*>(to) = pixels;
#endif
}

// What the first tap of each pixel of a vector reads; one place for all if they are a window.
template <int kPixels, bool kWindow>
struct Corners {
  int y[kWindow ? 1 : kPixels], x[kWindow ? 1 : kPixels];
};

CONVSWAP_INLINE __device__ bool in_image(int y, int x, const int (&size)[2]) {
  return static_cast<unsigned>(y) < static_cast<unsigned>(size[0]) &&
         static_cast<unsigned>(x) < static_cast<unsigned>(size[1]);
}

// The numbers of an image that a row of taps meets, zero outside.
template <typename T, int kPixels, bool kWindow>
struct Seen {
  T v[kWindow ? kPixels + kGuidedTaps - 1 : kPixels * kGuidedTaps];

  CONVSWAP_INLINE __device__ Sum<T> at(int tap, int pixel) const {
    return static_cast<Sum<T>>(v[kWindow ? tap + pixel : tap * kPixels + pixel]);
  }

  // `down` and `across`: from a corner to the first of `count` taps, which lie `apart`, 1 in a window.
  CONVSWAP_INLINE __device__ void load(const T* plane, const int (&size)[2], const Corners<kPixels, kWindow>& corners,
                                       int down, int across, int apart, int count) {
    if constexpr (kWindow) {
      const int y = corners.y[0] + down, x = corners.x[0] + across;
      const T* from = plane + (static_cast<Index>(y) * size[1] + x);
      CONVSWAP_UNROLL
      for (int i = 0; i < kPixels + kGuidedTaps - 1; ++i) {
        v[i] = {};
        if (i < kPixels - 1 + count && in_image(y, x + i, size)) v[i] = from[i];
      }
    } else {
      CONVSWAP_UNROLL
      for (int tap = 0; tap < kGuidedTaps; ++tap) {
        CONVSWAP_UNROLL
        for (int pixel = 0; pixel < kPixels; ++pixel) {
          const int y = corners.y[pixel] + down, x = corners.x[pixel] + across + tap * apart;
          T& one = v[tap * kPixels + pixel];
          one = {};
          if (tap < count && in_image(y, x, size)) one = plane[static_cast<Index>(y) * size[1] + x];
        }
      }
    }
  }
};

}  // namespace convswap
