// Sheets: what each tap reads, or adds to, as runs of neighbours.
//
// Tap (i, j) of output (y, x) is at column x * stride + j * dilation of the padded image and at row y * stride + i *
// dilation. A sheet holds those columns for one j, out_width of them, for all rows of one residue by the stride. So the
// pixels of a tap for outputs y, y + 1, ... follow each other without a gap, as its generated numbers do.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "guided_numbers.h"

namespace convswap::guided {

struct Geometry {
  int64_t height, width, out_height, out_width;
  int64_t kernel_height, kernel_width, stride_y, stride_x, dilation_y, dilation_x;
  int64_t top, left;

  int64_t taps() const { return kernel_height * kernel_width; }
  int64_t in_pixels() const { return height * width; }
  int64_t out_pixels() const { return out_height * out_width; }
  int64_t residue(int64_t i) const { return i * dilation_y % stride_y; }
  int64_t shift(int64_t i) const { return i * dilation_y / stride_y; }
  int64_t last_shift() const { return shift(kernel_height - 1); }
  // Columns of the image that tap column j reads are those of the outputs, moved by this.
  int64_t offset(int64_t j) const { return j * dilation_x - left; }
  // An image and its sheets have rows of one length: moved as a whole, but for columns at their ends.
  bool whole_rows() const { return stride_y == 1 && stride_x == 1 && width == out_width; }
};

// Bytes of sheets that leave room in the nearer caches.
constexpr int64_t SHEET_BYTES = 1 << 17;

// Memory that starts where a cache line does: no vector of an aligned run lies in two lines.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : memory(new T[count + 64 / sizeof(T)]) {}
  T* get() const { return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) & ~uintptr_t(63)); }

 private:
  std::unique_ptr<T[]> memory;
};

// Where the sheets of one channel lie, for `rows` rows of each residue.
struct SheetLayout {
  Geometry g;
  int64_t rows, phase_width, residues = 0;
  std::vector<int64_t> slot;  // of a residue; -1 where no tap has it

  SheetLayout(const Geometry& geometry, int64_t rows) : g(geometry), rows(rows), slot(geometry.stride_y, -1) {
    for (int64_t i = 0; i < g.kernel_height; ++i) {
      if (slot[g.residue(i)] < 0) slot[g.residue(i)] = residues++;
    }
    const int64_t reach = (g.kernel_width - 1) * g.dilation_x / g.stride_x + g.out_width;
    phase_width = std::max(reach, (g.left + g.width - 1) / g.stride_x + 1);
  }

  int64_t sheet_size() const { return (rows * g.out_width + 15) / 16 * 16; }
  int64_t size() const { return residues * g.kernel_width * sheet_size(); }
  int64_t sheet(int64_t residue, int64_t j) const { return (slot[residue] * g.kernel_width + j) * sheet_size(); }
  // A padded row, its columns dealt out by their residues by the stride.
  int64_t row_size() const { return g.stride_x * phase_width; }
  int64_t place(int64_t column) const { return column % g.stride_x * phase_width + column / g.stride_x; }
};

// Rows of outputs (or of sheets) in a band, by shapes alone.
inline int64_t band_rows(const Geometry& g, int64_t all, int64_t bytes) {
  const int64_t row = g.kernel_width * g.out_width * bytes * std::min(g.stride_y, g.kernel_height);
  const int64_t fit = SHEET_BYTES / std::max<int64_t>(1, row) - g.last_shift();
  const int64_t least = std::max(g.last_shift(), 512 / std::max<int64_t>(1, g.out_width) + 1);
  const int64_t rows = std::max(fit, least);
  if (rows >= all) return std::max<int64_t>(1, all);
  const int64_t bands = (all + rows - 1) / rows;
  return (all + bands - 1) / bands;
}

// to[x] = from[x] as other numbers. Where there are too few for a vector, in shorter ones.
template <int BYTES, typename S>
CONVSWAP_INLINE void widen_run(const S* from, int64_t count, Computed<S>* to) {
  constexpr int64_t L = LANES<BYTES, S>;
  if (count >= L) {
    for (int64_t next = 0; next < count; next += L) {
      const int64_t x = std::min(next, count - L);
      store(to + x, widened<BYTES>(from + x));
    }
  } else if constexpr (BYTES > 16) {
    widen_run<BYTES / 2>(from, count, to);
  } else {
    for (int64_t x = 0; x < count; ++x) to[x] = static_cast<Computed<S>>(from[x]);
  }
}

template <int BYTES, typename S>
CONVSWAP_INLINE void narrow_run(const Computed<S>* from, int64_t count, S* to) {
  constexpr int64_t L = LANES<BYTES, S>;
  if (count >= L) {
    for (int64_t next = 0; next < count; next += L) {
      const int64_t x = std::min(next, count - L);
      put<BYTES>(to + x, load<ComputedVec<BYTES, S>>(from + x));
    }
  } else if constexpr (BYTES > 16) {
    narrow_run<BYTES / 2>(from, count, to);
  } else {
    for (int64_t x = 0; x < count; ++x) to[x] = static_cast<S>(from[x]);
  }
}

template <int BYTES, typename T>
CONVSWAP_INLINE void add_run(const T* from, int64_t count, T* to) {
  using V = Vec<T, BYTES>;
  constexpr int64_t L = BYTES / sizeof(T);
  int64_t x = 0;
  for (; x + L <= count; x += L) store(to + x, load<V>(to + x) + load<V>(from + x));
  if constexpr (BYTES > 16) {
    add_run<BYTES / 2>(from + x, count - x, to + x);
  } else {
    for (; x < count; ++x) to[x] += from[x];
  }
}

// Every step-th number of a row.
template <int BYTES, typename S>
CONVSWAP_INLINE void take_row(const S* from, int64_t step, int64_t count, Computed<S>* to) {
  if (step == 1) {
    widen_run<BYTES>(from, count, to);
  } else if (step == 2) {  // a constant, for which there are shuffles
    for (int64_t x = 0; x < count; ++x) to[x] = static_cast<Computed<S>>(from[2 * x]);
  } else {
    for (int64_t x = 0; x < count; ++x) to[x] = static_cast<Computed<S>>(from[step * x]);
  }
}

template <int BYTES, typename S>
CONVSWAP_INLINE void put_row(const Computed<S>* from, int64_t step, int64_t count, S* to) {
  if (step == 1) {
    narrow_run<BYTES>(from, count, to);
  } else if (step == 2) {
    for (int64_t x = 0; x < count; ++x) to[2 * x] = static_cast<S>(from[x]);
  } else {
    for (int64_t x = 0; x < count; ++x) to[step * x] = static_cast<S>(from[x]);
  }
}

// In all rows, the columns that are moved in from the row before or behind.
template <typename T>
CONVSWAP_INLINE void clear_ends(T* to, int64_t rows, int64_t width, int64_t offset) {
  const int64_t begin = offset < 0 ? 0 : std::max<int64_t>(0, width - offset);
  const int64_t end = offset < 0 ? std::min(width, -offset) : width;
  for (int64_t x = begin; x < end; ++x) {
    for (int64_t y = 0; y < rows; ++y) to[y * width + x] = 0;
  }
}

// Fill the sheets with rows first_row to first_row + layout.rows - 1 of each residue.
struct FillSheets {
  template <int BYTES, typename S>
  static CONVSWAP_INLINE void run(const S* plane, const SheetLayout& layout, int64_t first_row, Computed<S>* sheets) {
    const Geometry& g = layout.g;
    if (g.in_pixels() == 0) {  // and no memory to point into
      std::fill_n(sheets, layout.size(), Computed<S>(0));
      return;
    }
    if (g.whole_rows()) return fill_whole<BYTES>(plane, layout, first_row, sheets);
    for (int64_t residue = 0; residue < g.stride_y; ++residue) {
      if (layout.slot[residue] < 0) continue;
      for (int64_t j = 0; j < g.kernel_width; ++j) {
        // Outputs `begin` to `end` - 1 read pixels, the others the zeros around them.
        const int64_t offset = g.offset(j);
        const int64_t begin = std::min(g.out_width, offset < 0 ? (-offset + g.stride_x - 1) / g.stride_x : 0);
        const int64_t last = g.width - 1 - offset;
        const int64_t end = std::max(begin, std::min(g.out_width, last < 0 ? 0 : last / g.stride_x + 1));
        Computed<S>* to = sheets + layout.sheet(residue, j);
        for (int64_t k = 0; k < layout.rows; ++k, to += g.out_width) {
          const int64_t y = (first_row + k) * g.stride_y + residue - g.top;
          if (y < 0 || y >= g.height) {
            for (int64_t x = 0; x < g.out_width; ++x) to[x] = 0;
            continue;
          }
          for (int64_t x = 0; x < begin; ++x) to[x] = 0;
          take_row<BYTES>(plane + y * g.width + begin * g.stride_x + offset, g.stride_x, end - begin, to + begin);
          for (int64_t x = end; x < g.out_width; ++x) to[x] = 0;
        }
      }
    }
  }

  template <int BYTES, typename S>
  static CONVSWAP_INLINE void fill_whole(const S* plane, const SheetLayout& layout, int64_t first_row,
                                         Computed<S>* sheets) {
    const Geometry& g = layout.g;
    const int64_t all = layout.rows * g.width, moved = (first_row - g.top) * g.width;
    for (int64_t j = 0; j < g.kernel_width; ++j) {
      Computed<S>* to = sheets + layout.sheet(0, j);
      const int64_t offset = moved + g.offset(j);
      const int64_t begin = std::min(all, std::max<int64_t>(0, -offset));
      const int64_t end = std::max(begin, std::min(all, g.in_pixels() - offset));
      std::fill_n(to, begin, Computed<S>(0));
      widen_run<BYTES>(plane + begin + offset, end - begin, to + begin);
      std::fill_n(to + end, all - end, Computed<S>(0));
      clear_ends(to, layout.rows, g.width, g.offset(j));
    }
  }
};

// Add up what the sheets hold for image rows, `first_row` and layout.rows as above, and write it to the plane.
// `rows` is scratch, of layout.rows * layout.row_size() numbers: one column of taps is added after the other, so that
// no vector is read that has just been written in parts.
struct FoldSheets {
  template <int BYTES, typename S>
  static CONVSWAP_INLINE void run(Computed<S>* sheets, const SheetLayout& layout, int64_t first_row,
                                  Computed<S>* rows, S* plane) {
    const Geometry& g = layout.g;
    if (g.whole_rows()) return fold_whole<BYTES>(sheets, layout, first_row, rows, plane);
    const int64_t size = layout.row_size();
    for (int64_t residue = 0; residue < g.stride_y; ++residue) {
      std::fill_n(rows, layout.rows * size, Computed<S>(0));
      for (int64_t j = 0; layout.slot[residue] >= 0 && j < g.kernel_width; ++j) {
        const Computed<S>* from = sheets + layout.sheet(residue, j);
        Computed<S>* to = rows + layout.place(j * g.dilation_x);
        for (int64_t k = 0; k < layout.rows; ++k) {
          add_run<BYTES>(from + k * g.out_width, g.out_width, to + k * size);
        }
      }
      for (int64_t k = 0; k < layout.rows; ++k) {
        const int64_t y = (first_row + k) * g.stride_y + residue - g.top;
        if (y < 0 || y >= g.height) continue;
        for (int64_t x = 0; x < std::min(g.stride_x, g.width); ++x) {
          put_row<BYTES>(static_cast<const Computed<S>*>(rows + k * size + layout.place(g.left + x)), g.stride_x,
                         (g.width - x + g.stride_x - 1) / g.stride_x, plane + y * g.width + x);
        }
      }
    }
  }

  template <int BYTES, typename S>
  static CONVSWAP_INLINE void fold_whole(Computed<S>* sheets, const SheetLayout& layout, int64_t first_row,
                                         Computed<S>* rows, S* plane) {
    const Geometry& g = layout.g;
    const int64_t all = layout.rows * g.width, moved = (first_row - g.top) * g.width;
    const int64_t from = std::max<int64_t>(0, moved), to = std::min(moved + all, g.in_pixels());
    std::fill_n(rows, all, Computed<S>(0));
    for (int64_t j = 0; j < g.kernel_width; ++j) {
      Computed<S>* sheet = sheets + layout.sheet(0, j);
      const int64_t offset = g.offset(j);
      clear_ends(sheet, layout.rows, g.width, offset);
      const int64_t begin = std::min(all, std::max<int64_t>(0, -offset));
      const int64_t end = std::max(begin, std::min(all, all - offset));
      add_run<BYTES>(static_cast<const Computed<S>*>(sheet + begin), end - begin, rows + begin + offset);
    }
    if (from < to) {
      narrow_run<BYTES>(static_cast<const Computed<S>*>(rows + from - moved), to - from, plane + from);
    }
  }
};

}  // namespace convswap::guided
