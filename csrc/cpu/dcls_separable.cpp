// DCLS elements of learned width. Their bumps along each axis are worked out in vectors, one element in each lane, and
// kernels are sums of their outer products. The gradient of a kernel is summed up with the bumps along all axes but one,
// which gives the gradient to the bump along that one.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <tuple>
#include <vector>

#include "dcls_blocks.h"
#include "dcls_bump.h"
#include "dcls_grid.h"
#include "dcls_lanes.h"
#include "dcls_separable_scratch.h"
#include "simd.h"
#include "small_products.h"
#include "transpose.h"

namespace {

using namespace convswap;
using torch::stable::Tensor;

struct Options {
  bool gaussian;
  double least_sigma;
};

// Vectors along the cells of an axis: of 8 numbers at most.
template <typename T, int BYTES>
using CellsTogether = Vec<T, (BYTES < 32 ? BYTES : 32)>;

// The bump of the elements in V's lanes along an axis.
template <typename V, typename T>
CONVSWAP_INLINE Bump<V> load_bump(
    const T* P, const T* SIG, int64_t row, const Grid& grid, Options options, int64_t element, int64_t left) {
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

// Writes the bumps of a block into the scratch's lanes; along axis 1 they are multiplied with the elements' weights over
// their normalisers.
template <typename V, typename T>
CONVSWAP_INLINE void store_weighted_bumps(
    const T* weight, const T* P, const T* SIG, WideScratch<T>& scratch, const Grid& grid, const ThreeAxes& axes,
    Options options, Block block) {
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

// The other way; beyond the last column there is anything.
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

template <typename V, typename R, typename T>
CONVSWAP_INLINE void draw(
    const T* weight, const T* P, const T* SIG, T* kernels, const Grid& grid, Options options, int64_t begin,
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
    const Grid& grid, const ThreeAxes& axes, Options options, Block block, int i) {
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
CONVSWAP_INLINE void gradients(
    const T* grad, const T* weight, const T* P, const T* SIG, T* weight_grad, T* P_grad, T* SIG_grad, const Grid& grid,
    Options options, int64_t begin, int64_t end) {
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

struct Draw {
  template <int BYTES, typename T>
  static CONVSWAP_INLINE void run(
      const T* weight, const T* P, const T* SIG, T* kernels, const Grid& whole, Options options, int64_t begin,
      int64_t end) {
    const Grid grid = whole;
    draw<Together<T, BYTES>, CellsTogether<T, BYTES>>(weight, P, SIG, kernels, grid, options, begin, end);
  }
};

struct Gradients {
  template <int BYTES, typename T>
  static CONVSWAP_INLINE void run(
      const T* grad, const T* weight, const T* P, const T* SIG, T* weight_grad, T* P_grad, T* SIG_grad,
      const Grid& whole, Options options, int64_t begin, int64_t end) {
    const Grid grid = whole;
    gradients<Together<T, BYTES>, CellsTogether<T, BYTES>>(
        grad, weight, P, SIG, weight_grad, P_grad, SIG_grad, grid, options, begin, end);
  }
};

template <typename T>
void draw_all(
    const Tensor& weight, const Tensor& P, const Tensor& SIG, Tensor& kernels, const Grid& grid, Options options) {
  const T *w = weight.const_data_ptr<T>(), *p = P.const_data_ptr<T>(), *s = SIG.const_data_ptr<T>();
  T* const out = kernels.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, grid.kernels, grain(grid), [&](int64_t begin, int64_t end) {
    if (grid.count == 0) {
      std::memset(out + begin * grid.cells, 0, (end - begin) * grid.cells * sizeof(T));
    } else {
      run_best<T, Draw>(w, p, s, out, grid, options, begin, end);
    }
  });
}

template <typename T>
void gradients_all(
    const Tensor& grad, const Tensor& weight, const Tensor& P, const Tensor& SIG, Tensor& weight_grad, Tensor& P_grad,
    Tensor& SIG_grad, const Grid& grid, Options options) {
  const T *g = grad.const_data_ptr<T>(), *w = weight.const_data_ptr<T>();
  const T *p = P.const_data_ptr<T>(), *s = SIG.const_data_ptr<T>();
  T *const dw = weight_grad.mutable_data_ptr<T>(), *const dp = P_grad.mutable_data_ptr<T>();
  T* const ds = SIG_grad.mutable_data_ptr<T>();
  if (grid.elements == 0) return;
  torch::stable::parallel_for(0, grid.kernels, grain(grid), [&](int64_t begin, int64_t end) {
    run_best<T, Gradients>(g, w, p, s, dw, dp, ds, grid, options, begin, end);
  });
}

void check_widths(const char* op, const Tensor& P, const Tensor& SIG) {
  STD_TORCH_CHECK(SIG.scalar_type() == P.scalar_type(), op, ": SIG must have the dtype of P");
  bool fits = SIG.dim() == 4;
  for (int64_t i = 0; fits && i < 4; ++i) fits = SIG.size(i) == P.size(i);
  STD_TORCH_CHECK(
      fits, op, ": SIG must have the shape of P, (", P.size(0), ", ", P.size(1), ", ", P.size(2), ", ", P.size(3), ")");
}

Tensor dcls_separable(
    Tensor weight, Tensor P, Tensor SIG, std::vector<int64_t> size, std::vector<int64_t> axes, bool gaussian,
    double least_sigma) {
  const Grid grid = checked_grid("dcls_separable", weight, P, size, axes);
  check_widths("dcls_separable", P, SIG);
  std::vector<int64_t> shape{weight.size(0), weight.size(1)};
  shape.insert(shape.end(), size.begin(), size.end());
  Tensor kernels = torch::stable::new_empty(weight, shape);
  const Options options{gaussian, least_sigma};
  weight = torch::stable::contiguous(weight);
  P = torch::stable::contiguous(P);
  SIG = torch::stable::contiguous(SIG);
  if (weight.scalar_type() == torch::headeronly::ScalarType::Float) {
    draw_all<float>(weight, P, SIG, kernels, grid, options);
  } else {
    draw_all<double>(weight, P, SIG, kernels, grid, options);
  }
  return kernels;
}

std::tuple<Tensor, Tensor, Tensor> dcls_separable_backward(
    Tensor grad, Tensor weight, Tensor P, Tensor SIG, std::vector<int64_t> axes, bool gaussian, double least_sigma) {
  const Grid grid = checked_grid("dcls_separable_backward", grad, weight, P, axes);
  check_widths("dcls_separable_backward", P, SIG);
  const Options options{gaussian, least_sigma};
  grad = torch::stable::contiguous(grad);
  weight = torch::stable::contiguous(weight);
  P = torch::stable::contiguous(P);
  SIG = torch::stable::contiguous(SIG);
  Tensor weight_grad = torch::stable::empty_like(weight), P_grad = torch::stable::empty_like(P);
  Tensor SIG_grad = torch::stable::empty_like(SIG);
  if (weight.scalar_type() == torch::headeronly::ScalarType::Float) {
    gradients_all<float>(grad, weight, P, SIG, weight_grad, P_grad, SIG_grad, grid, options);
  } else {
    gradients_all<double>(grad, weight, P, SIG, weight_grad, P_grad, SIG_grad, grid, options);
  }
  return {weight_grad, P_grad, SIG_grad};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convswap, CPU, m) {
  m.impl("dcls_separable", TORCH_BOX(&dcls_separable));
  m.impl("dcls_separable_backward", TORCH_BOX(&dcls_separable_backward));
}
