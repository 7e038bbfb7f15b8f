"""The functional form of convolution with explicit boundaries: a kernel for each distance to the interior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._geometry import (
    IntOrInts,
    Padding,
    conv_nd,
    effective_size,
    least,
    most,
    normalise_padding,
    pad,
    per_axis,
    split_outputs,
)
from .border_ends import ends, joined
from .border_geometry import BorderConv, fitting_kernel
from .border_geometry2d import resolve_border_conv2d

torch.fx.wrap("explicit_boundary_conv2d")


def explicit_boundary_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    boundary_weight: Tensor | None = None,
    boundary_bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve with a kernel and bias of its own for each signed distance of the window to the interior.

    "Learning on the Edge: Explicit Boundary Handling in CNNs" (Innamorati et al. 2018, arXiv 1805.03106). Along an
    axis, the distance of an output is minus the number of pixels that its window, from first tap to last, begins before
    the image, or the number that it ends behind it; of a window that does both, the greater number counts, the first
    where they are equal. Outside the image there are zeros. Each part of the result is computed with its own kernel
    alone, which takes as many multiply-adds as one kernel for all.

    Args:
        input: (B, C, H, W), or (C, H, W). The result is channels_last where it is.
        weight: (O, C / groups, kh, kw), of the interior: the distances (0, 0).
        bias: (O) or None, of the interior.
        boundary_weight: (n * O, C / groups, kh, kw), the n kernels of all other distances that `boundary_distances`
            lists, in its order, one after the other. None where there are none, without padding.
        boundary_bias: (n * O), stacked likewise; None without ``bias``.
        stride, dilation, groups: as in ``F.conv2d``.
        padding: pixels of zeros around the image: one number, two, ``"valid"``, or ``"same"`` with any stride, then as
            TensorFlow does.

    Returns:
        (B, O, Ho, Wo), or (O, Ho, Wo).

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, a number is out of range, or the kernel is larger
            than the padded input.
    """
    conv = resolve_border_conv2d(input, weight, bias, stride, padding, dilation, groups)
    reach = boundary_reach(weight.shape[2:], padding, dilation)
    kernels = _Kernels(conv, reach, (boundary_weight, boundary_bias))
    y = _all_rows(conv, kernels, _parts(conv, 0), _parts(conv, 1))
    return y.squeeze(0) if input.dim() == 3 else y


def boundary_reach(kernel_size: IntOrInts, padding: Padding, dilation: IntOrInts = 1) -> list[tuple[int, int]]:
    """How far windows can reach beyond the image, (before, after) for each axis, whatever its size."""
    extents = effective_size(per_axis(kernel_size, 2, "kernel_size"), per_axis(dilation, 2, "dilation"))
    amounts = normalise_padding(padding, 2)
    if amounts == "same":  # with a stride, images of some sizes need less
        return [((extent - 1) // 2, extent // 2) for extent in extents]
    return [(0, 0)] * 2 if isinstance(amounts, str) else [(amount, amount) for amount in amounts]


def boundary_distances(kernel_size: IntOrInts, padding: Padding, dilation: IntOrInts = 1) -> list[tuple[int, int]]:
    """The distances (vertical, horizontal) with kernels of their own, all but (0, 0), row by row.

    With numbers of pixels there are ``(2 * vertical + 1) * (2 * horizontal + 1) - 1``.
    """
    (top, bottom), (left, right) = boundary_reach(kernel_size, padding, dilation)
    rows, columns = range(-top, bottom + 1), range(-left, right + 1)
    return [(row, column) for row in rows for column in columns if (row, column) != (0, 0)]


class _Parts(NamedTuple):
    """The outputs of an axis by the distances of their windows, in their order."""

    low: list[int]
    """The negative distances, each of one output."""
    interior: int
    """How many outputs have the distance 0."""
    high: list[int]
    """The positive distances, each of one output."""


def _parts(conv: BorderConv, axis: int) -> _Parts:
    size, (before, after), extent = conv.size[axis], conv.widths[axis], conv.extents[axis]
    step, outputs = conv.stride[axis], conv.output_size[axis]

    def distance(output: int) -> int:
        low = before - output * step
        high = extent - low - size
        return -low if low >= high else high

    split = split_outputs(size, (before, after), extent, step, outputs)
    # The numbers that a compiler leaves open cancel out, without a stride; `int` says so.
    edge = [int(distance(output)) for output in range(split.low)]  # all outputs, where there is no interior
    high = [int(distance(split.low + split.interior + n)) for n in range(split.high)]
    return _Parts([d for d in edge if d < 0], split.interior, [d for d in edge if d > 0] + high)


class _Kernels:
    """The kernels of the boundary by their distances."""

    def __init__(self, conv: BorderConv, reach: Sequence[tuple[int, int]], stacks: tuple[Tensor | None, Tensor | None]):
        (self.top, bottom), (self.left, right) = reach
        row = self.left, 1, right
        # One split for all, as slices would each pass back a gradient of the size of the whole stack.
        sizes = [*row * self.top, self.left, right, *row * bottom]
        self.weights = _split("boundary_weight", stacks[0], conv.weight, sizes, conv.image)
        self.biases = None
        if conv.bias is not None:
            self.biases = _split("boundary_bias", stacks[1], conv.bias, sizes, conv.image)
        elif stacks[1] is not None:
            raise ValueError("there is a boundary_bias and no bias of the interior: give both or none")

    def at(self, row: int, side: int) -> tuple[Tensor, Tensor | None]:
        """Those with the vertical distance ``row`` and a horizontal one that is negative, 0 or positive, as ``side``.

        (n, O, C / groups, kh, kw) and (n, O), by growing distance.
        """
        index = 3 * (row + self.top) + side + 1
        if (row, side) > (0, 0):
            index -= 1  # the interior is not among them
        return self.weights[index], None if self.biases is None else self.biases[index]

    def of(self, row: int, columns: Sequence[int], step: int) -> tuple[Tensor, Tensor | None]:
        """Those with the vertical distance ``row`` and these horizontal ones, all negative or all positive."""
        side = -1 if columns[0] < 0 else 1
        first = columns[0] + (self.left if side < 0 else -1)
        chosen = slice(first, first + (len(columns) - 1) * step + 1, step)
        weights, biases = self.at(row, side)
        if len(columns) == len(weights):  # even a slice of all would pass back a copy of the gradient
            return weights, biases
        return weights[chosen], None if biases is None else biases[chosen]


def _split(
    name: str, stack: Tensor | None, interior: Tensor, sizes: Sequence[int], image: Tensor
) -> tuple[Tensor, ...]:
    """A stack of kernels, or biases, as parts of so many of them."""
    count = sum(sizes)
    shape = (count * interior.shape[0], *interior.shape[1:])
    if stack is None:
        if count:
            raise ValueError(f"{name} must be of shape {shape}, for {count} distances to the interior, got None")
        stack = interior[:0]
    kernels = fitting_kernel(name, stack, shape, image).unflatten(0, (count, interior.shape[0]))
    parts: tuple[Tensor, ...] = kernels.split(list(sizes))
    return parts


def _all_rows(conv: BorderConv, kernels: _Kernels, rows: _Parts, columns: _Parts) -> Tensor:
    above, below = _edge_windows(conv, conv.image, 0, rows)

    def border_rows(windows: list[Tensor], distances: list[int]) -> list[Tensor]:
        return [_border_row(conv, kernels, *own, columns) for own in zip(windows, distances, strict=True)]

    y = border_rows(above, rows.low)
    if rows.interior:
        y.append(_interior_rows(conv, kernels, _interior_pixels(conv, conv.image, 0, rows), columns))
    return joined(y + border_rows(below, rows.high), 2, conv.image)


def _interior_rows(conv: BorderConv, kernels: _Kernels, image: Tensor, columns: _Parts) -> Tensor:
    """The outputs with the vertical distance 0, whose windows span the rows of ``image``."""
    before, behind = _edge_windows(conv, image, 1, columns)

    def border_columns(windows: list[Tensor], distances: list[int]) -> list[Tensor]:
        if not distances:
            return []
        weights, biases = kernels.of(0, distances, conv.stride[1])
        each = weights.unbind(), [None] * len(distances) if biases is None else biases.unbind()
        return [_convolved(conv, *own) for own in zip(windows, *each, strict=True)]

    y = border_columns(before, columns.low)
    if columns.interior:
        y.append(_convolved(conv, _interior_pixels(conv, image, 1, columns), conv.weight, conv.bias))
    return joined(y + border_columns(behind, columns.high), 3, conv.image)


def _border_row(conv: BorderConv, kernels: _Kernels, window: Tensor, row: int, columns: _Parts) -> Tensor:
    """The outputs with the vertical distance ``row``, one row, whose windows span the rows of ``window``."""
    step, extent = conv.stride[1], conv.extents[1]
    window, at = pad(window, [(0, 0), conv.widths[1]]), 0
    y = []
    for distances, count in (
        (columns.low, len(columns.low)),
        ([], columns.interior),
        (columns.high, len(columns.high)),
    ):
        if not count:
            continue
        part = window.narrow(3, at * step, (count - 1) * step + extent)
        if distances:
            y.append(_corner(conv, part, *kernels.of(row, distances, step)))
        else:
            weights, biases = kernels.at(row, 0)
            y.append(_convolved(conv, part, weights.squeeze(0), None if biases is None else biases.squeeze(0)))
        at += count
    return joined(y, 3, conv.image)


def _corner(conv: BorderConv, window: Tensor, weights: Tensor, biases: Tensor | None) -> Tensor:
    """A row of outputs with a kernel each, (n, O, C / groups, kh, kw): (B, O, 1, n)."""
    (down, across), groups = conv.dilation, conv.groups
    seen = window[:, :, ::down].unfold(3, conv.extents[1], conv.stride[1])[..., ::across]
    y = torch.einsum("bgcynx,ngocyx->bgon", seen.unflatten(1, (groups, -1)), weights.unflatten(1, (groups, -1)))
    y = y.flatten(1, 2)
    return (y if biases is None else y + biases.t()).unsqueeze(2)


def _convolved(conv: BorderConv, window: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return conv_nd(window, weight, bias, conv.stride, [(0, 0)] * 2, conv.dilation, conv.groups)


def _interior_pixels(conv: BorderConv, image: Tensor, axis: int, parts: _Parts) -> Tensor:
    """What the windows of the interior span."""
    start = len(parts.low) * conv.stride[axis] - conv.widths[axis][0]
    length = (parts.interior - 1) * conv.stride[axis] + conv.extents[axis]
    # A slice, even of all there is, would pass back a copy of the gradient.
    return image if length == image.shape[2 + axis] else image.narrow(2 + axis, start, length)


def _edge_windows(conv: BorderConv, image: Tensor, axis: int, parts: _Parts) -> tuple[list[Tensor], list[Tensor]]:
    """What the window of each output before and behind the interior spans, with zeros for what is outside the image."""
    size, (before, _), extent, step = conv.size[axis], conv.widths[axis], conv.extents[axis], conv.stride[axis]
    low_end = (len(parts.low) - 1) * step - before + extent
    high_start = (len(parts.low) + parts.interior) * step - before
    high_end = high_start + (len(parts.high) - 1) * step + extent
    # At least one pixel, even if all windows lie outside the image.
    used = least(most(low_end, 1), size) if parts.low else 0
    unused = least(most(high_start, 0), size - 1) if parts.high else size
    first, last = ends(image, 2 + axis, used, size - unused)

    def windows(band: Tensor, widths: tuple[int, int], start: int, count: int) -> list[Tensor]:
        padded = pad(band, [widths if own == axis else (0, 0) for own in range(2)])
        return [padded.narrow(2 + axis, start + n * step, extent) for n in range(count)]

    low = windows(first, (before, most(low_end - size, 0)), 0, len(parts.low)) if parts.low else []
    if not parts.high:
        return low, []
    widths = most(-high_start, 0), most(high_end - size, 0)
    return low, windows(last, widths, most(high_start, 0) - unused, len(parts.high))
