// What padding by extrapolation does along each axis of an image.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace convswap::extrapolate {

// Lines added on one side, each a sum of the lines at the edge, `taps` of them; all in the order they have in memory.
// Lines are pixels, rows or planes. Without added lines there are no lines at the edge either.
template <typename A>
struct Side {
  static constexpr int64_t LANES = 64 / sizeof(A);

  static constexpr int64_t FEW = 8;

  int64_t pad = 0, taps = 0, pad_pitch = 0, tap_pitch = 0;
  std::vector<A> by_pad, by_tap;  // [pad][tap_pitch] and [tap][pad_pitch], whole vectors, zeros behind
  // Of at most FEW pixels, which lie at the outer end of FEW: [tap][FEW], [pad][FEW], and which are taps (all ones).
  std::vector<A> few_pads, few_taps;
  std::vector<std::conditional_t<sizeof(A) == 4, int32_t, int64_t>> is_tap;

  Side() = default;

  Side(int64_t pad_lines, int64_t order, bool before) : pad(pad_lines), taps(pad_lines > 0 ? order + 1 : 0) {
    pad_pitch = (pad + LANES - 1) / LANES * LANES;
    tap_pitch = (taps + LANES - 1) / LANES * LANES;
    by_pad.resize(pad * tap_pitch);
    by_tap.resize(taps * pad_pitch);
    few_pads.resize(taps * FEW);
    few_taps.resize(pad * FEW);
    is_tap.resize(FEW);
    const int64_t pads_from = before ? 0 : FEW - pad, taps_from = before ? 0 : FEW - taps;
    if (taps <= FEW) std::fill_n(is_tap.begin() + taps_from, taps, -1);
    for (int64_t t = 0; t < pad; ++t) {
      for (int64_t j = 0; j < taps; ++j) {
        const int64_t row = before ? pad - 1 - t : t, column = before ? j : taps - 1 - j;
        const A w = static_cast<A>(weight(t, j));
        by_pad[row * tap_pitch + column] = by_tap[column * pad_pitch + row] = w;
        if (pad <= FEW) few_pads[column * FEW + pads_from + row] = w;
        if (taps <= FEW) few_taps[row * FEW + taps_from + column] = w;
      }
    }
  }

  const A* of_pad(int64_t line) const { return by_pad.data() + line * tap_pitch; }
  const A* of_tap(int64_t line) const { return by_tap.data() + line * pad_pitch; }

 private:
  // Of the line j inside in the line t outside, both counted from the edge: Lagrange's product, a whole number.
  double weight(int64_t t, int64_t j) const {
    double product = 1;
    for (int64_t m = 0; m < taps; ++m) {
      if (m != j) product *= static_cast<double>(-(t + 1) - m) / static_cast<double>(j - m);
    }
    return __builtin_rint(product);
  }
};

// The lines begin to end - 1 of the image, and what is added before and after them.
template <typename A>
struct Axis {
  int64_t size, begin, end;
  const Side<A>*before, *after;

  int64_t padded() const { return before->pad + end - begin + after->pad; }
  bool at_first_edge(int64_t line) const { return line < before->taps; }
  bool at_last_edge(int64_t line) const { return line >= size - after->taps; }
  bool at_edge(int64_t line) const { return at_first_edge(line) || at_last_edge(line); }
  // Lines at edges are numbered without gaps.
  int64_t edges() const { return size < before->taps + after->taps ? size : before->taps + after->taps; }
  int64_t edge(int64_t line) const { return at_first_edge(line) ? line : line - (size - edges()); }
};

// Planes, rows and pixels. Numbers are what a pixel has, and what rows and parts of planes have in the padded image.
template <typename A>
struct Axes {
  Axis<A> planes, rows, pixels;
  int64_t pixel;

  // Whether pixels are single numbers, with so few of them outside, or at edges, that two vectors of a row hold all.
  bool few_pads() const {
    const int64_t few = Side<A>::FEW;
    return pixel == 1 && std::max(pixels.before->pad, pixels.after->pad) <= few && pixels.size >= few;
  }
  bool few_taps() const {
    const int64_t most = std::max(pixels.before->taps, pixels.after->taps), few = Side<A>::FEW;
    return pixel == 1 && most <= few && pixels.size >= few + most;
  }

  int64_t row() const { return pixels.size * pixel; }
  int64_t padded_row() const { return pixels.padded() * pixel; }
  int64_t padded_part() const { return rows.padded() * padded_row(); }
};

}  // namespace convswap::extrapolate
