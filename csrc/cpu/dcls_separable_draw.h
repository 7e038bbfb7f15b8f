// Kernels of DCLS elements of learned width. Their bumps along each axis are worked out in vectors, one element in each
// lane, and kernels are sums of their outer products.
#pragma once

#include <cstring>

#include "dcls_blocks.h"
#include "dcls_bump.h"
#include "dcls_grid.h"
#include "dcls_lanes.h"
#include "dcls_separable_scratch.h"
#include "simd.h"
#include "small_products.h"
#include "transpose.h"

namespace convswap {

struct WideOptions {
  bool gaussian;
  double least_sigma;
};

// Vectors along the cells of an axis: of 8 numbers at most.
template <typename T, int BYTES>
using CellsTogether = Vec<T, (BYTES < 32 ? BYTES : 32)>;

// The bump of the elements in V's lanes along an axis.
template <typename V, typename T>
CONVSWAP_INLINE Bump<V> load_bump(
    const T* P, const T* SIG, int64_t row, const Grid& grid, WideOptions options, int64_t element, int64_t left) {
  const int64_t at = row * grid.elements + element;
  return Bump<V>(
      load_lanes<V>(P + at, left), load_lanes<V>(SIG + at, left), static_cast<T>(options.least_sigma));
}

template <bool GAUSSIAN, typename V, typename T>
CONVSWAP_INLINE V store_bump(const Bump<V>& bump, int64_t size, T* to) {
  V sum{}, cell = fill<V>(static_cast<T>(-(size / 2)));
  for (int64_t t = 0; t < size; ++t, cell += 1) {
    const V value = bump.template value<GAUSSIAN>(cell);
    store(to + t * kLanes, value);
    sum += value;
  }
  return sum;
}

// Writes the bumps of a block into the scratch's lanes. Along axis 1 they are multiplied with the elements' weights
// over their normalisers.
template <typename V, typename T>
CONVSWAP_INLINE void store_weighted_bumps(
    const T* weight, const T* P, const T* SIG, WideScratch<T>& scratch, const Grid& grid, const ThreeAxes& axes,
    WideOptions options, Block block) {
  for (int i = 0; i < block.length; i += Lanes<V>::count) {
    const int64_t element = block.start + i, left = block.length - i;
    V sum = fill<V>(1);
    for (int axis = 0; axis < 3; ++axis) {
      T* const to = scratch.lanes[axis].data() + i;
      if (axes.row[axis] < 0) {
        store(to, fill<V>(1));
        continue;
      }
      const Bump<V> bump = load_bump<V>(P, SIG, axes.row[axis], grid, options, element, left);
      sum *= options.gaussian ? store_bump<true>(bump, axes.size[axis], to)
                              : store_bump<false>(bump, axes.size[axis], to);
    }
    const V scale = load_lanes<V>(weight + element, left) * element_share(sum, true);
    for (int64_t t = 0; t < axes.size[1]; ++t) {
      T* const to = scratch.lanes[1].data() + t * kLanes + i;
      store(to, load<V>(to) * scale);
    }
  }
}

// Copies the padded planes of a kernel to where it belongs. Rows are written in whole vectors, whose ends the next row
// overwrites; but not at the end, where fewer than 8 cells follow the kernel.
template <typename R, typename T>
CONVSWAP_INLINE void pack(const T* planes, T* kernel, const ThreeAxes& axes, bool at_end) {
  constexpr int N = sizeof(R) / sizeof(T);
  const int64_t columns = axes.size[2];
  for (int64_t z = 0; z < axes.size[0]; ++z) {
    for (int64_t y = 0; y < axes.size[1]; ++y, kernel += columns) {
      const T* const row = planes + (z * axes.length[1] + y) * axes.length[2];
      if (at_end) {
        std::memcpy(kernel, row, columns * sizeof(T));
      } else {
        for (int64_t x = 0; x < columns; x += N) store(kernel + x, load<R>(row + x));
      }
    }
  }
}

template <typename V, typename R, typename T>
CONVSWAP_INLINE void draw_wide(
    const T* weight, const T* P, const T* SIG, T* kernels, const Grid& grid, WideOptions options, int64_t begin,
    int64_t end) {
  const ThreeAxes axes(grid);
  WideScratch<T> scratch(axes, false);
  const int64_t plane = axes.length[1] * axes.length[2];
  T *const rows = scratch.rows.data(), *const planes = scratch.planes.data();
  for_blocks<kWideBlock>(grid, begin, end, [&](Block block) __attribute__((always_inline)) {
    store_weighted_bumps<V>(weight, P, SIG, scratch, grid, axes, options, block);
    transpose<R>(scratch.lanes[2].data(), kLanes, rows, axes.length[2], axes.length[2], kWideBlock);
    block.for_kernels(grid.count, [&](int64_t kernel, int from, int to) __attribute__((always_inline)) {
      const bool first = block.start + from == kernel * grid.count;
      for (int64_t z = 0; z < axes.size[0]; ++z) {
        const T* lanes = scratch.lanes[1].data();
        if (axes.row[0] >= 0) {
          const T* const lanes_z = scratch.lanes[0].data() + z * kLanes;
          T* const of_plane = scratch.plane_lanes[1].data();
          for (int64_t y = 0; y < axes.size[1]; ++y) {
            for (int64_t e = from; e < to; ++e) {
              of_plane[y * kLanes + e] = lanes_z[e] * lanes[y * kLanes + e];
            }
          }
          lanes = of_plane;
        }
        small_product<R>(
            Steps<T>{lanes + from, kLanes, 1}, rows + from * axes.length[2], axes.length[2], to - from,
            planes + z * plane, axes.length[2], axes.size[1], axes.size[2], !first);
      }
      if (block.start + to == (kernel + 1) * grid.count) {
        pack<R>(planes, kernels + kernel * grid.cells, axes, (end - 1 - kernel) * grid.cells < 8);
      }
    });
  });
}

}  // namespace convswap
