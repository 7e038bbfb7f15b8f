// Padding by extrapolation: what is to be done, and how threads share the work. The transpose goes the other way.
#pragma once

#include "extrapolate_weights.cuh"
#include "guided_plan.cuh"

// An argument that is read where the launch has put it, by an index too.
#if defined(__CUDACC__)
#define CONVSWAP_ARGUMENT const __grid_constant__
#else
#define CONVSWAP_ARGUMENT const
#endif

namespace convswap {

constexpr int kExtrapolateThreads = 256, kExtrapolateBlocks = 4;  // of which a multiprocessor is to hold so many

// Numbers of the result that a thread makes: 16 bytes.
template <typename T>
constexpr int kExtrapolated = static_cast<int>(16 / sizeof(T));

// Source and result are (outer, *three axes, inner): channels are outer, or inner where they are neighbours.
struct Extrapolate {
  Index inner, numbers;                        // numbers of the result
  int image[3], before[3], from[3], to[3];     // sizes: of the image without its padding, of source and result
  int plain_begin[3], plain_end[3], shift[3];  // pixels of the result that are copied, from so much further on
  Index copy_begin, copy_end;                  // the same on the last axis, in numbers of a row
  ExtrapolatedSides sides;
  Divisor row, rows, planes;  // numbers of a row of the result, its rows and planes
  bool small;                 // places are numbers of 31 bits

  CONVSWAP_INLINE __device__ bool plain(int axis, int at) const {
    return at >= plain_begin[axis] && at < plain_end[axis];
  }

  // The pixel of a place in a row.
  CONVSWAP_INLINE __device__ int column(Index in_row) const {
    if (inner == 1) return static_cast<int>(in_row);
    if (small) return static_cast<int>(static_cast<unsigned>(in_row) / static_cast<unsigned>(inner));
    return static_cast<int>(in_row / inner);
  }

  // Where a row of the source begins.
  CONVSWAP_INLINE __device__ Index line(Index outer, int z, int y) const {
    return ((outer * from[0] + z) * from[1] + y) * from[2] * inner;
  }
};

// `back`: from the gradient of the padded image to that of the image. Missing axes have size 1 and no padding.
inline Extrapolate plan_extrapolate(Index outer, const int (&image)[3], Index inner, const int (&pad)[3][2],
                                    const int (&order)[3][2], bool back) {
  Extrapolate e{};
  e.inner = inner;
  e.numbers = outer * inner;
  e.sides = extrapolated_sides(pad, order);
  for (int axis = 0; axis < 3; ++axis) {
    const int size = image[axis], before = pad[axis][0], after = pad[axis][1], padded = before + size + after;
    e.image[axis] = size;
    e.before[axis] = before;
    e.from[axis] = back ? padded : size;
    e.to[axis] = back ? size : padded;
    e.shift[axis] = back ? before : -before;
    e.plain_begin[axis] = !back ? before : before ? order[axis][0] + 1 : 0;
    e.plain_end[axis] = !back ? before + size : after ? size - 1 - order[axis][1] : size;
    e.numbers *= e.to[axis];
  }
  e.copy_begin = e.plain_begin[2] * inner;
  e.copy_end = e.plain_end[2] * inner;
  e.row = Divisor(e.to[2] * inner);
  e.rows = Divisor(e.to[1]);
  e.planes = Divisor(e.to[0]);
  e.small = e.numbers >> 31 == 0;
  return e;
}

inline Launch extrapolate_launch(const Extrapolate& e, int numbers_of_thread) {
  return {ceil_div<Index>(e.numbers, Index{kExtrapolateThreads} * numbers_of_thread), kExtrapolateThreads, 0};
}

}  // namespace convswap
