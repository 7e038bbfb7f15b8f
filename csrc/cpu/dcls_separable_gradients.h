// Gradients of DCLS elements of learned width. That of a kernel is summed up with the bumps along all axes but one,
// which gives the gradient to the bump along that one.
#pragma once

#include "dcls_separable_draw.h"

namespace convswap {

// Copies a kernel to padded planes, as `pack` does the other way; beyond the last column there is anything.
template <typename R, typename T>
CONVSWAP_INLINE void unpack(const T* kernel, T* planes, const ThreeAxes& axes, bool at_end) {
  constexpr int N = sizeof(R) / sizeof(T);
  const int64_t columns = axes.size[2];
  for (int64_t z = 0; z < axes.size[0]; ++z) {
    for (int64_t y = 0; y < axes.size[1]; ++y, kernel += columns) {
      T* const row = planes + (z * axes.length[1] + y) * axes.length[2];
      if (at_end) {
        std::memcpy(row, kernel, columns * sizeof(T));
      } else {
        for (int64_t x = 0; x < columns; x += N) store(row + x, load<R>(kernel + x));
      }
    }
  }
}

// Gradients to the bumps along each axis, of elements of a block that belong to one kernel, from that to the kernel.
template <typename R, typename T>
CONVSWAP_INLINE void gradients_to_bumps(WideScratch<T>& scratch, const ThreeAxes& axes, int from, int to) {
  const int64_t elements = to - from, plane = axes.length[1] * axes.length[2];
  const T *const lanes_y = scratch.lanes[1].data() + from, *const lanes_x = scratch.lanes[2].data() + from;
  T *const grad_y = scratch.grad_lanes[1].data() + from, *const grad_x = scratch.grad_lanes[2].data() + from;
  const bool flat = axes.row[0] < 0;
  T* const plane_y = flat ? grad_y : scratch.plane_lanes[1].data() + from;
  T* const plane_x = flat ? grad_x : scratch.plane_lanes[2].data() + from;
  for (int64_t z = 0; z < axes.size[0]; ++z) {
    const T* const kernel = scratch.planes.data() + z * plane;
    small_product<R>(
        Steps<T>{kernel, axes.length[2], 1}, lanes_x, kLanes, axes.size[2], plane_y, kLanes, axes.size[1],
        elements, false);
    small_product<R>(
        Steps<T>{kernel, 1, axes.length[2]}, lanes_y, kLanes, axes.size[1], plane_x, kLanes, axes.size[2],
        elements, false);
    if (flat) return;
    const T* const lanes_z = scratch.lanes[0].data() + z * kLanes + from;
    T* const grad_z = scratch.grad_lanes[0].data() + z * kLanes + from;
    for (int64_t e = 0; e < elements; ++e) grad_z[e] = 0;
    for (int64_t i = 0; i < axes.size[1] * kLanes; i += kLanes) {
      for (int64_t e = 0; e < elements; ++e) {
        grad_z[e] += lanes_y[i + e] * plane_y[i + e];
        grad_y[i + e] = lanes_z[e] * plane_y[i + e] + (z > 0 ? grad_y[i + e] : 0);
      }
    }
    for (int64_t i = 0; i < axes.size[2] * kLanes; i += kLanes) {
      for (int64_t e = 0; e < elements; ++e) {
        grad_x[i + e] = lanes_z[e] * plane_x[i + e] + (z > 0 ? grad_x[i + e] : 0);
      }
    }
  }
}

// Sums over the cells of an axis: of the bump's derivatives, times the gradient to the bump less `lost`.
template <bool GAUSSIAN, typename V, typename T>
CONVSWAP_INLINE void sum_slopes(
    const Bump<V>& bump, int64_t size, const T* lanes, const T* grads, V lost, V& along_position, V& along_sigma) {
  along_position = along_sigma = V{};
  V cell = fill<V>(static_cast<T>(-(size / 2)));
  for (int64_t t = 0; t < size; ++t, cell += 1) {
    V for_position, for_sigma;
    bump.template slopes<GAUSSIAN>(cell, load<V>(lanes + t * kLanes), for_position, for_sigma);
    const V grad = load<V>(grads + t * kLanes) - lost;
    along_position += for_position * grad;
    along_sigma += for_sigma * grad;
  }
}

// Gradients of the elements in V's lanes from those to their bumps.
template <typename V, typename T>
CONVSWAP_INLINE void gradients_of_lanes(
    const T* weight, const T* P, const T* SIG, T* weight_grad, T* P_grad, T* SIG_grad, const WideScratch<T>& scratch,
    const Grid& grid, const ThreeAxes& axes, WideOptions options, Block block, int i) {
  const int64_t element = block.start + i, left = block.length - i;
  V sums[3], drawn{};
#pragma GCC unroll 3
  for (int axis = 0; axis < 3; ++axis) {
    sums[axis] = drawn = V{};
    for (int64_t t = 0; t < axes.size[axis]; ++t) {
      const V value = load<V>(scratch.lanes[axis].data() + t * kLanes + i);
      sums[axis] += value;
      drawn += value * load<V>(scratch.grad_lanes[axis].data() + t * kLanes + i);
    }
  }
  // What is drawn is the same along any axis: here along the last one.
  const V share = element_share<V>(sums[0] * sums[1] * sums[2], true);
  const V for_weight = drawn * share, scale = load_lanes<V>(weight + element, left) * share;
  store_lanes(weight_grad + element, for_weight, left);
#pragma GCC unroll 3
  for (int axis = 0; axis < 3; ++axis) {
    if (axes.row[axis] < 0) continue;
    const T *const lanes = scratch.lanes[axis].data() + i, *const grads = scratch.grad_lanes[axis].data() + i;
    const Bump<V> bump = load_bump<V>(P, SIG, axes.row[axis], grid, options, element, left);
    // What a larger sum takes from the element is taken from each cell, not from sums that nearly cancel.
    const V lost = for_weight * sums[axis == 0 ? 1 : 0] * sums[axis == 2 ? 1 : 2];
    V along_position, along_sigma;
    if (options.gaussian) {
      sum_slopes<true>(bump, axes.size[axis], lanes, grads, lost, along_position, along_sigma);
    } else {
      sum_slopes<false>(bump, axes.size[axis], lanes, grads, lost, along_position, along_sigma);
    }
    const int64_t at = axes.row[axis] * grid.elements + element;
    const V sign = load_lanes<V>(SIG + at, left) < 0 ? fill<V>(-1) : fill<V>(1);
    store_lanes(P_grad + at, scale * along_position, left);
    store_lanes(SIG_grad + at, sign * scale * along_sigma, left);
  }
}

template <typename V, typename R, typename T>
CONVSWAP_INLINE void wide_gradients(
    const T* grad, const T* weight, const T* P, const T* SIG, T* weight_grad, T* P_grad, T* SIG_grad, const Grid& grid,
    WideOptions options, int64_t begin, int64_t end) {
  const ThreeAxes axes(grid);
  WideScratch<T> scratch(axes, true);
  for_blocks<kWideBlock>(grid, begin, end, [&](Block block) __attribute__((always_inline)) {
    for (int i = 0; i < block.length; i += Lanes<V>::count) {
      for (int axis = 0; axis < 3; ++axis) {
        T* const to = scratch.lanes[axis].data() + i;
        if (axes.row[axis] < 0) {
          store(to, fill<V>(1));
          continue;
        }
        const Bump<V> bump =
            load_bump<V>(P, SIG, axes.row[axis], grid, options, block.start + i, block.length - i);
        if (options.gaussian) {
          store_bump<true>(bump, axes.size[axis], to);
        } else {
          store_bump<false>(bump, axes.size[axis], to);
        }
      }
    }
    block.for_kernels(grid.count, [&](int64_t kernel, int from, int to) __attribute__((always_inline)) {
      unpack<R>(grad + kernel * grid.cells, scratch.planes.data(), axes,
          (grid.kernels - 1 - kernel) * grid.cells < 8);
      gradients_to_bumps<R>(scratch, axes, from, to);
    });
    for (int i = 0; i < block.length; i += Lanes<V>::count) {
      gradients_of_lanes<V>(
          weight, P, SIG, weight_grad, P_grad, SIG_grad, scratch, grid, axes, options, block, i);
    }
  });
}

}  // namespace convswap
