// Copies of one image's channels in the precision that is computed in, zeros around them, as convolutions read them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.h"
#include "transpose.h"

namespace convswap {

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Where the pixels of a plane lie. With a column stride, columns of one residue lie side by side, so that what a tap
// reads for neighbouring outputs is contiguous.
struct PlaneLayout {
  int64_t rows;
  int64_t phases;       // the column stride
  int64_t phase_width;  // columns of one residue
  int64_t top, left;    // plane pixel of the image's first; negative where the plane starts inside the image

  int64_t pitch() const { return phases * phase_width; }
  int64_t size() const { return rows * pitch(); }
  int64_t column(int64_t x) const { return x % phases * phase_width + x / phases; }
};

// An image in a tensor: steps between rows, columns and channels, counted in numbers.
struct ImageSteps {
  int64_t height, width;
  int64_t row, column, channel;
};

using Eight = Vec<float, 32>;

// Whether eight channels of eight pixels can be turned at once: numbers computed in single precision, channels side by
// side, columns not dealt out.
template <typename T>
constexpr bool can_transpose(int64_t width, int64_t count, int64_t channel, int64_t phases) {
#ifdef CONVSWAP_SHUFFLES
  return sizeof(T) == 4 && width >= 8 && count % 8 == 0 && channel == 1 && phases == 1;
#else
  return false;
#endif
}

// Pixels [0, width) of a row, channel by channel to rows that are `size` apart.
template <typename T, typename S>
CONVSWAP_INLINE void transpose_in(const S* from, int64_t column, int64_t width, int64_t count, int64_t size, T* to) {
#ifdef CONVSWAP_SHUFFLES
  for (int64_t next = 0; next < width; next += 8) {
    const int64_t x = std::min(next, width - 8);  // the last block overlaps the one before
    for (int64_t c = 0; c < count; c += 8) {
      Eight rows[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        T pixel[8];
        for (int k = 0; k < 8; ++k) pixel[k] = static_cast<T>(from[(x + i) * column + c + k]);
        rows[i] = load<Eight>(pixel);
      }
      transpose_square(rows);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) store(to + (c + i) * size + x, rows[i]);
    }
  }
#endif
}

// The way back.
template <typename T, typename S>
CONVSWAP_INLINE void transpose_out(const T* from, int64_t column, int64_t width, int64_t count, int64_t size, S* to) {
#ifdef CONVSWAP_SHUFFLES
  for (int64_t next = 0; next < width; next += 8) {
    const int64_t x = std::min(next, width - 8);
    for (int64_t c = 0; c < count; c += 8) {
      Eight rows[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) rows[i] = load<Eight>(from + (c + i) * size + x);
      transpose_square(rows);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        T pixel[8];
        store(pixel, rows[i]);
        for (int k = 0; k < 8; ++k) to[(x + i) * column + c + k] = static_cast<S>(pixel[k]);
      }
    }
  }
#endif
}

// Numbers that are neighbours in both places.
template <typename T, typename S>
CONVSWAP_INLINE void copy_row(const S* from, int64_t count, T* to) {
  for (int64_t x = 0; x < count; ++x) to[x] = static_cast<T>(from[x]);
}

// Of one type: in vectors, the last of which overlaps the one before.
template <typename T>
CONVSWAP_INLINE void copy_row(const T* from, int64_t count, T* to) {
  constexpr int64_t lanes = 32 / sizeof(T);
  if (count < lanes) {
    for (int64_t x = 0; x < count; ++x) to[x] = from[x];
  }
  for (int64_t next = 0; count >= lanes && next < count; next += lanes) {
    const int64_t x = std::min(next, count - lanes);
    store(to + x, load<Vec<T, 32>>(from + x));
  }
}

// Channels of pixels that are neighbours in the planes.
template <typename T, typename S>
CONVSWAP_INLINE void copy_pixels(const S* from, int64_t column, int64_t pixels, int64_t count, int64_t channel,
                                 int64_t size, T* to) {
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t c = 0; c < count; ++c) to[c * size + i] = static_cast<T>(from[i * column + c * channel]);
  }
}

// Copy `count` channels to as many planes, `layout.size()` apart. Only pixels of the image are written: the zeros
// around them must be there.
template <typename T, typename S>
CONVSWAP_INLINE void copy_to_planes(const S* image, const ImageSteps& steps, int64_t count, const PlaneLayout& layout,
                                    T* planes) {
  const int64_t y_begin = std::max<int64_t>(0, -layout.top), x_begin = std::max<int64_t>(0, -layout.left);
  const int64_t y_end = std::min(steps.height, layout.rows - layout.top);
  const int64_t x_end = std::min(steps.width, layout.pitch() - layout.left);
  const int64_t size = layout.size(), column = steps.column;
  const bool whole_rows = count == 1 && layout.phases == 1 && column == 1;
  const bool turned = can_transpose<T>(x_end - x_begin, count, steps.channel, layout.phases);
  for (int64_t y = y_begin; y < y_end; ++y) {
    const S* from = image + y * steps.row;
    T* to = planes + (y + layout.top) * layout.pitch();
    if (whole_rows) {
      copy_row(from + x_begin, x_end - x_begin, to + x_begin + layout.left);
    } else if (turned) {
      transpose_in(from + x_begin * column, column, x_end - x_begin, count, size, to + x_begin + layout.left);
    } else {
      for (int64_t residue = 0; residue < layout.phases; ++residue) {
        const int64_t x = x_begin + residue;
        T* place = to + layout.column(x + layout.left);
        const int64_t pixels = (x_end - x + layout.phases - 1) / layout.phases;
        if (count == 1 && layout.phases == 2 && column == 1) {
          for (int64_t i = 0; i < pixels; ++i) place[i] = static_cast<T>(from[x + 2 * i]);
        } else {
          copy_pixels(from + x * column, column * layout.phases, pixels, count, steps.channel, size, place);
        }
      }
    }
  }
}

// Copy the first `steps.height` rows and `steps.width` columns of planes, `size` apart, to `count` channels.
template <typename T, typename S>
CONVSWAP_INLINE void copy_from_planes(const T* planes, int64_t pitch, int64_t size, int64_t count,
                                      const ImageSteps& steps, S* image) {
  const bool turned = can_transpose<T>(steps.width, count, steps.channel, 1);
  for (int64_t y = 0; y < steps.height; ++y) {
    const T* from = planes + y * pitch;
    S* to = image + y * steps.row;
    if (count == 1 && steps.column == 1) {
      copy_row(from, steps.width, to);
    } else if (turned) {
      transpose_out(from, steps.column, steps.width, count, size, to);
    } else {
      for (int64_t x = 0; x < steps.width; ++x) {
        S* pixel = to + x * steps.column;
        for (int64_t c = 0; c < count; ++c) pixel[c * steps.channel] = static_cast<S>(from[c * size + x]);
      }
    }
  }
}

}  // namespace convswap
