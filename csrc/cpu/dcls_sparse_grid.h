// One kernel of DCLS drawn as triangles on a small grid, which cells are drawn on, and the elements' gradients.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "padded_plane.h"
#include "simd.h"

namespace convswap::sparse {

// Narrow vectors: two accumulate for each of seven rows in sixteen registers.
template <typename T>
using Lanes = Vec<T, 32>;
template <typename T>
constexpr int64_t LANES = 32 / sizeof(T);
template <typename T>
using Integers = Vec<int32_t, 4 * LANES<T>>;

// A whole vector, or what is left of one.
template <typename T>
CONVSWAP_INLINE Lanes<T> load_lanes(const T* from, int64_t count) {
  return count >= LANES<T> ? load<Lanes<T>>(from) : load_some<Lanes<T>>(from, count);
}

template <typename T>
CONVSWAP_INLINE void store_lanes(T* to, const Lanes<T>& value, int64_t count) {
  if (count >= LANES<T>) store(to, value);
  else store_some(to, value, count);
}

// The elements of one kernel: their weights, and positions along the kernel's rows and columns.
template <typename T>
struct Elements {
  const T *weight, *y, *x;
  int64_t count;
};

struct DrawingRules {
  bool normalise;
  bool right_slope;  // the derivative at whole numbers is the right one, else the mean of both
};

// A grid with a margin that what is off the kernel falls into, and a bit for each cell that is in use.
template <typename T>
class ElementGrid {
 public:
  static constexpr int64_t MARGIN = 3;

  ElementGrid(int64_t height, int64_t width, int64_t count)
      : height(height),
        width(width),
        pitch(width + 2 * MARGIN),
        words((width + 2 * MARGIN + 63) / 64),
        cells((height + 2 * MARGIN) * pitch),
        used((height + 2 * MARGIN) * words),
        scratch(words),
        row_of(round_up(count, LANES<T>)),
        column_of(round_up(count, LANES<T>)),
        fraction_y(round_up(count, LANES<T>)),
        fraction_x(round_up(count, LANES<T>)),
        sum_y(round_up(count, LANES<T>)),
        sum_x(round_up(count, LANES<T>)),
        share(round_up(count, LANES<T>)) {}

  int64_t height, width, pitch, words;
  std::vector<T> cells;
  std::vector<uint64_t> used, scratch;

  T* row(int64_t y) { return cells.data() + (y + MARGIN) * pitch + MARGIN; }
  const uint64_t* used_in(int64_t y) const { return used.data() + (y + MARGIN) * words; }

  // Of each element: its cell counted from the margin's first, fractions, what the triangles sum to, and the weight
  // over the normaliser.
  std::vector<int32_t> row_of, column_of;
  std::vector<T> fraction_y, fraction_x, sum_y, sum_x, share;
};

// A triangle on an axis: the last cell at or before its centre, how far it is behind that, and the sum of its values on
// the grid. What lies beyond the grid is off it at -2 or size + 1; what is no number is on the first cell, to be seen.
template <typename T>
CONVSWAP_INLINE void place_on(const Lanes<T>& position, int64_t size, Integers<T>& cell, Lanes<T>& fraction,
                              Lanes<T>& sum) {
  using W = Lanes<T>;
  const T half = static_cast<T>(size / 2), end = static_cast<T>(size);
  const W zero{}, place = position + half;
  W kept = place < -2 ? zero - 2 : place;
  kept = kept > end + 1 ? zero + (end + 1) : kept;
  kept = place == place ? kept : zero - 1;
  W whole = __builtin_convertvector(__builtin_convertvector(kept, Integers<T>), W);
  whole = whole > kept ? whole - 1 : whole;
  fraction = place == place ? kept - whole : place;
  cell = __builtin_convertvector(whole, Integers<T>);
  const W first = (whole >= 0) & (whole < end) ? 1 - fraction : zero;
  const W second = (whole >= -1) & (whole < end - 1) ? fraction : zero;
  sum = first + second;
}

template <typename T>
CONVSWAP_INLINE void place_elements(ElementGrid<T>& grid, const Elements<T>& elements, bool normalise) {
  using W = Lanes<T>;
  for (int64_t e = 0; e < elements.count; e += LANES<T>) {
    const int64_t count = elements.count - e;
    Integers<T> row, column;
    W fraction_y, fraction_x, sum_y, sum_x;
    place_on<T>(load_lanes(elements.y + e, count), grid.height, row, fraction_y, sum_y);
    place_on<T>(load_lanes(elements.x + e, count), grid.width, column, fraction_x, sum_x);
    const W weight = load_lanes(elements.weight + e, count);
    const W share = normalise ? weight / (sum_y * sum_x + static_cast<T>(1e-7)) : weight;
    store(grid.row_of.data() + e, row + static_cast<int32_t>(grid.MARGIN));
    store(grid.column_of.data() + e, column + static_cast<int32_t>(grid.MARGIN));
    store(grid.fraction_y.data() + e, fraction_y);
    store(grid.fraction_x.data() + e, fraction_x);
    store(grid.sum_y.data() + e, sum_y);
    store(grid.sum_x.data() + e, sum_x);
    store(grid.share.data() + e, share);
  }
}

template <typename T>
CONVSWAP_INLINE void clear(ElementGrid<T>& grid) {
  std::fill(grid.cells.begin(), grid.cells.end(), static_cast<T>(0));
  std::fill(grid.used.begin(), grid.used.end(), 0);
}

// Mark, from column x of a row, the cells whose bits are set in `pattern`.
template <typename T>
CONVSWAP_INLINE void mark(ElementGrid<T>& grid, int64_t row, int64_t x, uint64_t pattern) {
  uint64_t* words = grid.used.data() + row * grid.words + (x >> 6);
  words[0] |= pattern << (x & 63);
  if ((x & 63) > 61 && (x >> 6) + 1 < grid.words) words[1] |= pattern >> (64 - (x & 63));
}

// Draw the elements and mark the cells that they are not zero on.
template <typename T>
CONVSWAP_INLINE void draw_values(ElementGrid<T>& grid, const Elements<T>& elements, const DrawingRules& rules) {
  clear(grid);
  place_elements(grid, elements, rules.normalise);
  for (int64_t e = 0; e < elements.count; ++e) {
    const int64_t row = grid.row_of[e], column = grid.column_of[e];
    const T fy = grid.fraction_y[e], fx = grid.fraction_x[e], share = grid.share[e];
    if (share == 0) continue;
    T* cell = grid.cells.data() + row * grid.pitch + column;
    const T upper = share * (1 - fy), lower = share * fy;
    cell[0] += upper * (1 - fx);
    cell[1] += upper * fx;
    cell[grid.pitch] += lower * (1 - fx);
    cell[grid.pitch + 1] += lower * fx;
    const uint64_t pattern = fx == 0 ? 1 : 3;
    mark(grid, row, column, pattern);
    if (fy != 0) mark(grid, row + 1, column, pattern);
  }
}

// Mark the cells whose gradients the elements' gradients are made of: those of the values, and those that a slope along
// one axis reaches from a value on the other.
template <typename T>
CONVSWAP_INLINE void mark_wanted(ElementGrid<T>& grid, const Elements<T>& elements, const DrawingRules& rules) {
  clear(grid);
  place_elements(grid, elements, rules.normalise);
  for (int64_t e = 0; e < elements.count; ++e) {
    const int64_t row = grid.row_of[e], column = grid.column_of[e] - 1;
    const bool whole_y = grid.fraction_y[e] == 0, whole_x = grid.fraction_x[e] == 0;
    // Bits are the cells before the element's own, its own and the next.
    const uint64_t values = whole_x ? 2 : 6, reached = whole_x && !rules.right_slope ? 7 : 6;
    if (whole_y && !rules.right_slope) mark(grid, row - 1, column, values);
    mark(grid, row, column, reached);
    mark(grid, row + 1, column, whole_y ? values : reached);
  }
}

// What an element at a whole number reads of the kernel's gradient: three cells on each axis that it is centred on.
template <typename T>
struct Reading {
  T drawn, along_y, along_x;
};

template <typename T>
CONVSWAP_INLINE Reading<T> read_centred(const T* cell, int64_t pitch, T fy, T fx) {
  const T half = static_cast<T>(0.5), zero = static_cast<T>(0), one = static_cast<T>(1);
  const T value_y[3] = {zero, one - fy, fy}, value_x[3] = {zero, one - fx, fx};
  const bool whole_y = fy == 0, whole_x = fx == 0;
  const T slope_y[3] = {whole_y ? -half : zero, whole_y ? zero : -one, whole_y ? half : one};
  const T slope_x[3] = {whole_x ? -half : zero, whole_x ? zero : -one, whole_x ? half : one};
  Reading<T> read{zero, zero, zero};
  for (int64_t i = 0; i < 3; ++i) {
    const T* row = cell + (i - 1) * pitch - 1;
    const T value = row[0] * value_x[0] + row[1] * value_x[1] + row[2] * value_x[2];
    read.drawn += value_y[i] * value;
    read.along_y += slope_y[i] * value;
    read.along_x += value_y[i] * (row[0] * slope_x[0] + row[1] * slope_x[1] + row[2] * slope_x[2]);
  }
  return read;
}

// The derivative of what a triangle sums to on the grid.
template <typename T>
CONVSWAP_INLINE Lanes<T> slope_of_sum(const int32_t* cells, const Lanes<T>& fraction, int64_t size, bool right_slope) {
  using W = Lanes<T>;
  const W zero{}, one = zero + 1, end = zero + static_cast<T>(size);
  const W cell = __builtin_convertvector(load<Integers<T>>(cells), W) - static_cast<T>(ElementGrid<T>::MARGIN);
  const W before = (cell >= 1) & (cell <= end) ? one : zero, here = (cell >= 0) & (cell < end) ? one : zero;
  const W next = (cell >= -1) & (cell < end - 1) ? one : zero;
  const W right = next - here, both = (next - before) * static_cast<T>(0.5);
  return right_slope ? right : fraction == 0 ? both : right;
}

// From the gradient of the kernel in the grid, zero in the margin, to those of the elements.
template <typename T>
CONVSWAP_INLINE void gradients_of_elements(ElementGrid<T>& grid, const Elements<T>& elements,
                                           const DrawingRules& rules, T* __restrict__ weight_grad,
                                           T* __restrict__ y_grad, T* __restrict__ x_grad) {
  place_elements(grid, elements, rules.normalise);
  const T *fraction_y = grid.fraction_y.data(), *fraction_x = grid.fraction_x.data();
  for (int64_t e = 0; e < elements.count; ++e) {
    const T fy = fraction_y[e], fx = fraction_x[e];
    const T* cell = grid.cells.data() + grid.row_of[e] * grid.pitch + grid.column_of[e];
    Reading<T> read;
    if (!rules.right_slope && (fy == 0 || fx == 0)) {
      read = read_centred(cell, grid.pitch, fy, fx);
    } else {
      const T *above = cell, *below = cell + grid.pitch;
      const T upper = above[0] * (1 - fx) + above[1] * fx, lower = below[0] * (1 - fx) + below[1] * fx;
      read = {upper * (1 - fy) + lower * fy, lower - upper,
              (above[1] - above[0]) * (1 - fy) + (below[1] - below[0]) * fy};
    }
    weight_grad[e] = read.drawn;
    y_grad[e] = read.along_y;
    x_grad[e] = read.along_x;
  }
  using W = Lanes<T>;
  for (int64_t e = 0; e < elements.count; e += LANES<T>) {
    const int64_t count = elements.count - e;
    const W share = load<W>(grid.share.data() + e), drawn = load_lanes(weight_grad + e, count);
    const W along_y = load_lanes(y_grad + e, count), along_x = load_lanes(x_grad + e, count);
    if (!rules.normalise) {
      store_lanes(y_grad + e, share * along_y, count);
      store_lanes(x_grad + e, share * along_x, count);
      continue;
    }
    const W sum_y = load<W>(grid.sum_y.data() + e), sum_x = load<W>(grid.sum_x.data() + e);
    const W mean = drawn / (sum_y * sum_x + static_cast<T>(1e-7));  // what a larger sum takes from the element
    const W more_y = slope_of_sum<T>(grid.row_of.data() + e, load<W>(fraction_y + e), grid.height, rules.right_slope);
    const W more_x = slope_of_sum<T>(grid.column_of.data() + e, load<W>(fraction_x + e), grid.width, rules.right_slope);
    store_lanes(weight_grad + e, mean, count);
    store_lanes(y_grad + e, share * (along_y - mean * more_y * sum_x), count);
    store_lanes(x_grad + e, share * (along_x - mean * more_x * sum_y), count);
  }
}

}  // namespace convswap::sparse
