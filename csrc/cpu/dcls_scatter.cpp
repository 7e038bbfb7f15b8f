// DCLS elements drawn as triangles. A block of elements is worked out in vectors, one element in each lane, and kept in
// the cache; then each is added to the few cells that it touches, or gathers from them, in the order of the elements.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <tuple>
#include <vector>

#include "dcls_blocks.h"
#include "dcls_element.h"
#include "dcls_grid.h"
#include "dcls_lanes.h"
#include "simd.h"

namespace {

using namespace convswap;
using torch::stable::Tensor;

constexpr int kBlock = 128;  // elements

struct Options {
  bool normalise, right_slope;
};

// Offsets of the cells of windows from the first one, the last axis fastest.
template <int D>
struct Corners {
  int64_t offset[1 << D];

  CONVSWAP_INLINE explicit Corners(const Grid& grid) {
    for (int i = 0; i < 1 << D; ++i) {
      offset[i] = 0;
      for (int axis = 0; axis < D; ++axis) {
        if (i >> (D - 1 - axis) & 1 && grid.size[axis] > 1) offset[i] += grid.stride[axis];
      }
    }
  }
};

// Windows of the elements in V's lanes; those beyond the last are 0.
template <typename V, int D, typename T>
CONVSWAP_INLINE void load_windows(
    Window<V> (&along)[D], const T* P, const Grid& grid, int64_t element, int64_t lanes, bool right_slope) {
#pragma GCC unroll 3
  for (int axis = 0; axis < D; ++axis) {
    const V position = load_lanes<V>(P + grid.row[axis] * grid.elements + element, lanes);
    along[axis] = Window<V>(position, static_cast<CellOf<V>>(grid.size[axis]), right_slope);
  }
}

template <int D, typename V>
CONVSWAP_INLINE typename Lanes<V>::Int first_offset(const Window<V> (&along)[D], const Grid& grid) {
  typename Lanes<V>::Int offset = along[D - 1].first;
#pragma GCC unroll 3
  for (int axis = 0; axis < D - 1; ++axis) offset += along[axis].first * static_cast<CellOf<V>>(grid.stride[axis]);
  return offset;
}

template <typename V, int D, typename T>
CONVSWAP_INLINE void draw(
    const T* weight, const T* P, T* kernels, const Grid& grid, Options options, int64_t begin, int64_t end) {
  constexpr int corners = 1 << D;
  alignas(64) CellOf<V> offset[kBlock];
  alignas(64) T value[corners][kBlock];
  const Corners<D> corner(grid);
  for_blocks<kBlock>(grid, begin, end, [&](Block block) __attribute__((always_inline)) {
    for (int i = 0; i < block.length; i += Lanes<V>::count) {
      const int64_t element = block.start + i, lanes = block.length - i;
      Window<V> along[D];
      load_windows(along, P, grid, element, lanes, options.right_slope);
      V sum = along[0].value_sum();
#pragma GCC unroll 3
      for (int axis = 1; axis < D; ++axis) sum *= along[axis].value_sum();
      V product[corners];
      product[0] = load_lanes<V>(weight + element, lanes) * element_share(sum, options.normalise);
#pragma GCC unroll 3
      for (int axis = 0, n = 1; axis < D; ++axis, n *= 2) {
#pragma GCC unroll 4
        for (int j = n - 1; j >= 0; --j) {
          product[2 * j + 1] = product[j] * along[axis].value[1];
          product[2 * j] = product[j] * along[axis].value[0];
        }
      }
      store(offset + i, first_offset(along, grid));
#pragma GCC unroll 8
      for (int c = 0; c < corners; ++c) store(value[c] + i, product[c]);
    }
    // The kernels whose first element is in the block.
    const int64_t first = (block.start + grid.count - 1) / grid.count;
    const int64_t last = (block.start + block.length + grid.count - 1) / grid.count;
    std::memset(kernels + first * grid.cells, 0, (last - first) * grid.cells * sizeof(T));
    block.for_kernels(grid.count, [&](int64_t kernel, int from, int to) __attribute__((always_inline)) {
      T* const cells = kernels + kernel * grid.cells;
      for (int e = from; e < to; ++e) {
#pragma GCC unroll 8
        for (int c = 0; c < corners; ++c) cells[offset[e] + corner.offset[c]] += value[c][e];
      }
    });
  });
}

// What a block of elements gathers from the gradient of its kernels.
template <typename T, int D>
struct Gathered {
  alignas(64) T at[1 << D][kBlock];                // the cells of windows
  alignas(64) T before[D][1 << (D - 1)][kBlock];   // those before them along each axis
};

template <bool BEFORE, typename V, typename T, int D>
CONVSWAP_INLINE void gradients_of_block(
    const Gathered<T, D>& gathered, const T* weight, const T* P, T* weight_grad, T* P_grad, const Grid& grid,
    Options options, Block block) {
  constexpr int corners = 1 << D, across = corners / 2;
  for (int i = 0; i < block.length; i += Lanes<V>::count) {
    const int64_t element = block.start + i, lanes = block.length - i;
    Window<V> along[D];
    load_windows(along, P, grid, element, lanes, options.right_slope);
    V at[corners], before[D][across];
#pragma GCC unroll 8
    for (int c = 0; c < corners; ++c) at[c] = load_lanes<V>(gathered.at[c] + i, lanes);
#pragma GCC unroll 3
    for (int axis = 0; axis < D; ++axis) {
#pragma GCC unroll 4
      for (int c = 0; c < across; ++c) {
        before[axis][c] = BEFORE ? load_lanes<V>(gathered.before[axis][c] + i, lanes) : V{};
      }
    }
    const V weights = load_lanes<V>(weight + element, lanes);
    const ElementGrad<V, D> found = element_backward<BEFORE>(along, at, before, weights, options.normalise);
    store_lanes(weight_grad + element, found.weight, lanes);
#pragma GCC unroll 3
    for (int axis = 0; axis < D; ++axis) {
      store_lanes(P_grad + grid.row[axis] * grid.elements + element, found.position[axis], lanes);
    }
  }
}

template <typename V, int D, typename T>
CONVSWAP_INLINE void gradients(
    const T* grad, const T* weight, const T* P, T* weight_grad, T* P_grad, const Grid& grid, Options options,
    int64_t begin, int64_t end) {
  constexpr int corners = 1 << D;
  alignas(64) CellOf<V> offset[kBlock], back[D][kBlock];
  Gathered<T, D> gathered;
  const Corners<D> corner(grid);
  for_blocks<kBlock>(grid, begin, end, [&](Block block) __attribute__((always_inline)) {
    V sum{};
    for (int i = 0; i < block.length; i += Lanes<V>::count) {
      Window<V> along[D];
      load_windows(along, P, grid, block.start + i, block.length - i, options.right_slope);
      store(offset + i, first_offset(along, grid));
#pragma GCC unroll 3
      for (int axis = 0; axis < D; ++axis) {
        const V steps = along[axis].before + along[axis].before;  // -1 or 0
        store(back[axis] + i, Lanes<V>::integer(steps) * static_cast<CellOf<V>>(grid.stride[axis]));
        sum += steps;
      }
    }
    const bool any_before = any_lane(sum);
    block.for_kernels(grid.count, [&](int64_t kernel, int from, int to) __attribute__((always_inline)) {
      const T* const cells = grad + kernel * grid.cells;
      for (int e = from; e < to; ++e) {
#pragma GCC unroll 8
        for (int c = 0; c < corners; ++c) gathered.at[c][e] = cells[offset[e] + corner.offset[c]];
      }
      if (!any_before) return;
      for (int e = from; e < to; ++e) {
#pragma GCC unroll 3
        for (int axis = 0; axis < D; ++axis) {
          const T* const before = cells + offset[e] + back[axis][e];
#pragma GCC unroll 4
          for (int c = 0; c < corners / 2; ++c) {
            // The c-th of the corners that are first on the axis.
            const int low = (1 << (D - 1 - axis)) - 1;
            gathered.before[axis][c][e] = before[corner.offset[((c & ~low) << 1) | (c & low)]];
          }
        }
      }
    });
    if (any_before) {
      gradients_of_block<true, V>(gathered, weight, P, weight_grad, P_grad, grid, options, block);
    } else {
      gradients_of_block<false, V>(gathered, weight, P, weight_grad, P_grad, grid, options, block);
    }
  });
}

struct Draw {
  template <int BYTES, typename T>
  static CONVSWAP_INLINE void run(
      const T* weight, const T* P, T* kernels, const Grid& whole, Options options, int64_t begin, int64_t end) {
    using V = Together<T, BYTES>;
    const Grid grid = whole;
    if (grid.dims == 1) draw<V, 1>(weight, P, kernels, grid, options, begin, end);
    if (grid.dims == 2) draw<V, 2>(weight, P, kernels, grid, options, begin, end);
    if (grid.dims == 3) draw<V, 3>(weight, P, kernels, grid, options, begin, end);
  }
};

struct Gradients {
  template <int BYTES, typename T>
  static CONVSWAP_INLINE void run(
      const T* grad, const T* weight, const T* P, T* weight_grad, T* P_grad, const Grid& whole, Options options,
      int64_t begin, int64_t end) {
    using V = Together<T, BYTES>;
    const Grid grid = whole;
    if (grid.dims == 1) gradients<V, 1>(grad, weight, P, weight_grad, P_grad, grid, options, begin, end);
    if (grid.dims == 2) gradients<V, 2>(grad, weight, P, weight_grad, P_grad, grid, options, begin, end);
    if (grid.dims == 3) gradients<V, 3>(grad, weight, P, weight_grad, P_grad, grid, options, begin, end);
  }
};

template <typename T>
void draw_all(const Tensor& weight, const Tensor& P, Tensor& kernels, const Grid& grid, Options options) {
  const T *w = weight.const_data_ptr<T>(), *p = P.const_data_ptr<T>();
  T* const out = kernels.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, grid.kernels, grain(grid), [&](int64_t begin, int64_t end) {
    if (grid.count == 0) {
      std::memset(out + begin * grid.cells, 0, (end - begin) * grid.cells * sizeof(T));
    } else {
      run_best<T, Draw>(w, p, out, grid, options, begin, end);
    }
  });
}

template <typename T>
void gradients_all(
    const Tensor& grad, const Tensor& weight, const Tensor& P, Tensor& weight_grad, Tensor& P_grad, const Grid& grid,
    Options options) {
  const T *g = grad.const_data_ptr<T>(), *w = weight.const_data_ptr<T>(), *p = P.const_data_ptr<T>();
  T *const dw = weight_grad.mutable_data_ptr<T>(), *const dp = P_grad.mutable_data_ptr<T>();
  if (grid.elements == 0) return;
  torch::stable::parallel_for(0, grid.kernels, grain(grid), [&](int64_t begin, int64_t end) {
    run_best<T, Gradients>(g, w, p, dw, dp, grid, options, begin, end);
  });
}

Tensor dcls_scatter(
    Tensor weight, Tensor P, std::vector<int64_t> size, std::vector<int64_t> axes, bool normalise, bool right_slope) {
  const Grid grid = checked_grid("dcls_scatter", weight, P, size, axes);
  std::vector<int64_t> shape{weight.size(0), weight.size(1)};
  shape.insert(shape.end(), size.begin(), size.end());
  Tensor kernels = torch::stable::new_empty(weight, shape);
  const Options options{normalise, right_slope};
  weight = torch::stable::contiguous(weight);
  P = torch::stable::contiguous(P);
  if (weight.scalar_type() == torch::headeronly::ScalarType::Float) {
    draw_all<float>(weight, P, kernels, grid, options);
  } else {
    draw_all<double>(weight, P, kernels, grid, options);
  }
  return kernels;
}

std::tuple<Tensor, Tensor> dcls_scatter_backward(
    Tensor grad, Tensor weight, Tensor P, std::vector<int64_t> axes, bool normalise, bool right_slope) {
  const Grid grid = checked_grid("dcls_scatter_backward", grad, weight, P, axes);
  const Options options{normalise, right_slope};
  grad = torch::stable::contiguous(grad);
  weight = torch::stable::contiguous(weight);
  P = torch::stable::contiguous(P);
  Tensor weight_grad = torch::stable::empty_like(weight), P_grad = torch::stable::empty_like(P);
  if (weight.scalar_type() == torch::headeronly::ScalarType::Float) {
    gradients_all<float>(grad, weight, P, weight_grad, P_grad, grid, options);
  } else {
    gradients_all<double>(grad, weight, P, weight_grad, P_grad, grid, options);
  }
  return {weight_grad, P_grad};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convswap, CPU, m) {
  m.impl("dcls_scatter", TORCH_BOX(&dcls_scatter));
  m.impl("dcls_scatter_backward", TORCH_BOX(&dcls_scatter_backward));
}
