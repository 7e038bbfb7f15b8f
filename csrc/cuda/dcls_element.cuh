// One element of a DCLS kernel drawn as a product of triangles: where it lies on the grid, and its derivatives.
// Device code without host includes.
#pragma once

#include "common.cuh"

namespace convswap {

// The grid of a kernel, always with three axes: those that a kernel lacks come first and have size 1 and row -1.
struct Grid {
  int size[3];
  int row[3];  // which row of P moves along the axis
  int cells;      // of a kernel
  Index kernels;  // outputs times inputs per group
  Index count;    // elements of a kernel
};

template <typename Size, typename Axis>
inline Grid make_grid(int dims, Size size, Axis axes, Index kernels, Index count) {
  Grid grid{{1, 1, 1}, {-1, -1, -1}, 1, kernels, count};
  for (int axis = 0; axis < dims; ++axis) {
    grid.size[3 - dims + axis] = static_cast<int>(size[axis]);
    grid.cells *= static_cast<int>(size[axis]);
  }
  for (int d = 0; d < dims; ++d) grid.row[3 - dims + axes[d]] = d;
  return grid;
}

// The place on the grid of the cell that is stored at `index`.
__device__ inline void cell_of(int index, const Grid& grid, int (&cell)[3]) {
  cell[2] = index % grid.size[2];
  cell[1] = index / grid.size[2] % grid.size[1];
  cell[0] = index / grid.size[2] / grid.size[1];
}

// A triangle of half width 1 on one axis: it touches cells base and base + 1, and base - 1 with its derivative where
// the position is a whole number. Of a position that touches no cell all is 0: base is kOffGrid. One that is not a
// number is NaN on cell 0, to be seen.
template <typename T>
struct Triangle {
  static constexpr int kOffGrid = -3;

  int base;
  int size;
  T fraction;
  bool centred;  // the derivative at whole numbers is the mean of the one-sided ones, else the right one

  __device__ Triangle() : base(0), size(1), fraction(0), centred(false) {}

  __device__ Triangle(T position, int cells, bool right_slope)
      : base(kOffGrid), size(cells), fraction(0), centred(false) {
    const T place = position + static_cast<T>(cells / 2);
    const T whole = floor(place);
    if (place != place) {
      base = -1;
      fraction = place;
      return;
    }
    // Nothing is converted that an int cannot hold.
    if (!(whole >= static_cast<T>(-1) && whole <= static_cast<T>(cells))) return;
    base = static_cast<int>(whole);
    fraction = place - whole;
    centred = fraction == static_cast<T>(0) && !right_slope;
  }

  __device__ int first() const { return centred ? -1 : 0; }
  __device__ bool inside(int offset) const { return base + offset >= 0 && base + offset < size; }
  __device__ T value(int offset) const {
    return offset == 0 ? static_cast<T>(1) - fraction : offset == 1 ? fraction : static_cast<T>(0);
  }
  __device__ T slope(int offset) const {
    if (fraction != fraction) return 0;
    return centred ? static_cast<T>(0.5) * static_cast<T>(offset) : static_cast<T>(2 * offset - 1);
  }
  __device__ T value_sum() const {
    return (inside(0) ? value(0) : static_cast<T>(0)) + (inside(1) ? value(1) : static_cast<T>(0));
  }
  __device__ T slope_sum() const {
    T sum = 0;
    for (int offset = first(); offset <= 1; ++offset) sum += inside(offset) ? slope(offset) : static_cast<T>(0);
    return sum;
  }
};

template <typename T>
__device__ T normaliser(T sum, bool normalise) {
  return normalise ? sum + static_cast<T>(1e-7) : static_cast<T>(1);
}

// The three triangles of an element; `element` counts through all kernels.
template <typename T>
struct Element {
  Triangle<T> along[3];

  __device__ Element(const T* P, const Grid& grid, Index element, bool right_slope) {
    const Index elements = grid.kernels * grid.count;
    CONVSWAP_UNROLL
    for (int axis = 0; axis < 3; ++axis) {
      if (grid.row[axis] >= 0) {
        along[axis] = Triangle<T>(P[grid.row[axis] * elements + element], grid.size[axis], right_slope);
      }
    }
  }

  __device__ T value_sum() const { return along[0].value_sum() * along[1].value_sum() * along[2].value_sum(); }

  // Whether the kernel's gradient at a cell has a part in the element's: a cell that is reached by the slopes of two
  // axes only has none.
  __device__ bool wants(int z, int y, int x) const {
    const T zero = 0;
    return (along[0].value(z) == zero) + (along[1].value(y) == zero) + (along[2].value(x) == zero) <= 1;
  }
};

template <typename T>
struct ElementGrad {
  T weight;
  T position[3];
};

// Gradient of an element from the gradient of its kernel, of which it reads only the cells that it wants.
template <typename T>
__device__ ElementGrad<T> element_backward(const Element<T>& element, const T* grad, T weight, bool normalise) {
  const Triangle<T>&a = element.along[0], &b = element.along[1], &c = element.along[2];
  T drawn = 0, slope_a = 0, slope_b = 0, slope_c = 0;
  for (int z = a.first(); z <= 1; ++z) {
    if (!a.inside(z)) continue;
    T plane = 0, plane_b = 0, plane_c = 0;
    for (int y = b.first(); y <= 1; ++y) {
      if (!b.inside(y)) continue;
      T line = 0, line_c = 0;
      for (int x = c.first(); x <= 1; ++x) {
        if (!c.inside(x) || !element.wants(z, y, x)) continue;
        const Index row = static_cast<Index>(a.base + z) * b.size + (b.base + y);
        const T g = grad[row * c.size + (c.base + x)];
        line += g * c.value(x);
        line_c += g * c.slope(x);
      }
      plane += b.value(y) * line;
      plane_b += b.slope(y) * line;
      plane_c += b.value(y) * line_c;
    }
    drawn += a.value(z) * plane;
    slope_a += a.slope(z) * plane;
    slope_b += a.value(z) * plane_b;
    slope_c += a.value(z) * plane_c;
  }
  const T sum_a = a.value_sum(), sum_b = b.value_sum(), sum_c = c.value_sum();
  const T share = static_cast<T>(1) / normaliser(sum_a * sum_b * sum_c, normalise);
  const T lost = normalise ? drawn * share : static_cast<T>(0);  // what a larger sum takes from the element
  const T scale = weight * share;
  return {drawn * share,
          {scale * (slope_a - lost * (a.slope_sum() * sum_b * sum_c)),
           scale * (slope_b - lost * (sum_a * b.slope_sum() * sum_c)),
           scale * (slope_c - lost * (sum_a * sum_b * c.slope_sum()))}};
}

}  // namespace convswap
