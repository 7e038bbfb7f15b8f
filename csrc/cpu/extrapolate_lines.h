// Padding by extrapolation and its transpose of a band of rows of an image, line by line.
#pragma once

#include "extrapolate_runs.h"

namespace convswap::extrapolate {

// Lines of an axis to those of the padded image, `run` numbers each. `extend(line, to)` makes one of the image's own.
template <int BYTES, typename S, typename T, typename Extend>
CONVSWAP_INLINE void extend_axis(const Axis<Computed<S>>& axis, int64_t run, int64_t step, Computed<S>* kept, T* to,
                                 const Extend& extend) {
  using A = Computed<S>;
  T* const own = to + axis.before->pad * step;
  for (int64_t line = axis.begin; line < axis.end; ++line) {
    T* const place = own + (line - axis.begin) * step;
    if (std::is_same_v<T, A> || !axis.at_edge(line)) {
      extend(line, place);
    } else {
      A* const precise = kept + axis.edge(line) * run;
      extend(line, precise);
      copy_run<BYTES>(static_cast<const A*>(precise), run, place);
    }
  }
  const Side<A>&before = *axis.before, &after = *axis.after;
  const A *first = kept, *last = kept + (axis.edges() - after.taps) * run;
  int64_t apart = run;
  if constexpr (std::is_same_v<T, A>) {
    first = own, last = own + (axis.end - axis.begin - after.taps) * step;
    apart = step;
  }
  for (int64_t t = 0; t < before.pad; ++t) {
    sum_of<BYTES>(lines(first, apart, before.taps, before.of_pad(t)), run, to + t * step);
  }
  T* const behind = own + (axis.end - axis.begin) * step;
  for (int64_t t = 0; t < after.pad; ++t) {
    sum_of<BYTES>(lines(last, apart, after.taps, after.of_pad(t)), run, behind + t * step);
  }
}

// The way back: `fold(from, line)` makes a line of the image of one that is added up. Those at edges are added up first
// of all, in `kept`: thereafter no other lines are read, and the image's may be put in the place of earlier ones.
template <int BYTES, typename S, typename F, typename Fold>
CONVSWAP_INLINE void fold_axis(const Axis<Computed<S>>& axis, int64_t run, int64_t step, Computed<S>* kept,
                               const F* from, const Fold& fold) {
  using A = Computed<S>;
  const Side<A>&before = *axis.before, &after = *axis.after;
  const F *const own = from + before.pad * step, *const behind = own + (axis.end - axis.begin) * step;
  const auto place = [&](int64_t line) __attribute__((always_inline)) { return own + (line - axis.begin) * step; };
  for (int64_t line = axis.begin; line < axis.end; ++line) {
    if (!axis.at_edge(line)) {
      line = std::max(line, axis.size - after.taps - 1);
      continue;
    }
    const bool first = axis.at_first_edge(line), last = axis.at_last_edge(line);
    sum_with<BYTES>(
        place(line), lines(from, step, first ? before.pad : 0, first ? before.of_tap(line) : nullptr),
        lines(behind, step, last ? after.pad : 0, last ? after.of_tap(line - (axis.size - after.taps)) : nullptr), run,
        kept + axis.edge(line) * run);
  }
  for (int64_t line = axis.begin; line < axis.end; ++line) {
    if (axis.at_edge(line)) fold(static_cast<const A*>(kept + axis.edge(line) * run), line);
    else fold(place(line), line);
  }
}

// A band of all planes of an image. `scratch` is what `scratch_of` says; numbers that are stored as they are computed
// with need none.
struct Extend {
  template <int BYTES, typename S>
  static CONVSWAP_INLINE void run(const Axes<Computed<S>>& axes, int64_t plane, const S* from, Computed<S>* scratch,
                                  S* to) {
    const int64_t row = axes.padded_row(), part = axes.padded_part();
    Computed<S>* const rows = scratch + axes.planes.edges() * part;
    const auto plane_to = [&](int64_t z, auto* part_of_plane) __attribute__((always_inline)) {
      const auto row_to = [&](int64_t y, auto* place) __attribute__((always_inline)) {
        Level<ExtendRow, BYTES>::run(axes, from + (z * axes.rows.size + y) * axes.row(), place);
      };
      extend_axis<BYTES, S>(axes.rows, row, row, rows, part_of_plane, row_to);
    };
    extend_axis<BYTES, S>(axes.planes, part, plane, scratch, to, plane_to);
  }
};

// The other way. Where the image takes the place of the padded one, a row is read from `room`, to where it is copied.
struct Fold {
  template <int BYTES, typename S>
  static CONVSWAP_INLINE void run(const Axes<Computed<S>>& axes, int64_t plane, const S* from, Computed<S>* scratch,
                                  S* to, S* room = nullptr) {
    const int64_t row = axes.padded_row(), part = axes.padded_part();
    Computed<S>* const rows = scratch + axes.planes.edges() * part;
    const auto from_plane = [&](const auto* part_of_plane, int64_t z) __attribute__((always_inline)) {
      const auto from_row = [&](const auto* line, int64_t y) __attribute__((always_inline)) {
        if constexpr (std::is_same_v<decltype(line), const S*>) {
          if (room) copy_run<BYTES>(line, row, room), line = room;
        }
        Level<FoldRow, BYTES>::run(axes, line, to + (z * axes.rows.size + y) * axes.row());
      };
      fold_axis<BYTES, S>(axes.rows, row, row, rows, part_of_plane, from_row);
    };
    fold_axis<BYTES, S>(axes.planes, part, plane, scratch, from, from_plane);
  }
};

// Numbers that are kept of a band.
template <typename A>
int64_t scratch_of(const Axes<A>& axes) {
  return axes.planes.edges() * axes.padded_part() + axes.rows.edges() * axes.padded_row();
}

}  // namespace convswap::extrapolate
