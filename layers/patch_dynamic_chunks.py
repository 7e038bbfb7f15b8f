"""The predicted part of a `PatchDynamicConv2d`, and the ways to compute it a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from ._geometry import conv_nd, effective_size
from .patch_dynamic_hidden import Maps, Statistics, first_units, second_map, second_units

CHUNK = 1 << 18
"""Numbers of a hidden layer that are computed at a time, where there is a choice."""

PIXELS = 256
"""Rows of a matrix product that are enough to make it fast."""


class Window(NamedTuple):
    """The geometry of a convolution with zeros around its input."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    widths: list[tuple[int, int]]
    dilation: tuple[int, ...]


class Piece(NamedTuple):
    """Outputs that are computed together, the input channels that they read, and how many groups those are."""

    outputs: slice
    channels: slice
    groups: int

    def maps(self, maps: Maps) -> Maps:
        """Those of these outputs."""
        return Maps(*(value[self.outputs] for value in maps))

    def statistics(self, statistics: Statistics) -> Statistics:
        """Those of these outputs."""
        return Statistics(*(None if value is None else value[self.outputs] for value in statistics))


def pieces(outputs: int, groups: int, channels: int, numbers: int, most: int) -> Iterator[Piece]:
    """All outputs, so many at a time that each with ``numbers`` has ``most`` or fewer together, but at least one.

    Args:
        outputs, groups: of the convolution.
        channels: input channels of a group.
    """
    each = outputs // groups
    together = max(1, most // max(1, numbers))
    if together >= each:
        step = together // each
        for g in range(0, groups, step):
            last = min(g + step, groups)
            yield Piece(slice(g * each, last * each), slice(g * channels, last * channels), last - g)
        return
    for g in range(groups):
        for o in range(g * each, (g + 1) * each, together):
            yield Piece(slice(o, min(o + together, (g + 1) * each)), slice(g * channels, (g + 1) * channels), 1)


def patch_map(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int) -> Tensor:
    """Linear maps (outputs, hidden, D) of each patch, (B, outputs * hidden, Ho, Wo)."""
    kernel = weight.reshape(-1, x.shape[1] // groups, *window.kernel_size)
    offset = None if bias is None else bias.flatten()
    return conv_nd(x, kernel, offset, window.stride, window.widths, window.dilation, groups)


def mean_product(h: Tensor, x: Tensor, maps: Maps, window: Window, groups: int) -> Tensor:
    """``h . (W3^T p)`` for each patch p, (B, outputs, Ho, Wo), from h (B, outputs * hidden, Ho, Wo)."""
    return _summed(h * patch_map(x, maps.last_weight, None, window, groups), maps)


def _summed(products: Tensor, maps: Maps) -> Tensor:
    apart = products.reshape(products.shape[0], len(maps.last_weight), maps.hidden, *products.shape[2:])
    return apart.sum(2, dtype=products.dtype)  # autocast would make it single precision on CUDA


def predicted(x: Tensor, maps: Maps, statistics: Statistics, window: Window, groups: int, training: bool) -> Tensor:
    """``h . (W3^T p) / D`` for each patch p of x (B, C, H, W): (B, outputs, Ho, Wo)."""
    z = patch_map(x, maps.first_weight, maps.first_bias, window, groups)
    z = second_map(first_units(z, maps, statistics, training), maps)
    return mean_product(second_units(z, maps, statistics, training), x, maps, window, groups)


def in_chunks(
    y: Tensor, x: Tensor, maps: Maps, statistics: Statistics, window: Window, groups: int, training: bool
) -> Tensor:
    """``y``, to which `predicted` is added a piece at a time; not differentiable.

    Where no norm needs to see all patches, not all rows of pixels are taken at once.
    """
    outputs, hidden = maps.last_weight.shape[:2]
    batch, _, height, width = y.shape
    if not y.numel():
        return y
    samples, rows = batch, height
    if not training:
        rows = min(height, -(-PIXELS // width))
        samples = min(batch, max(1, PIXELS // (rows * width)))
    for piece in pieces(outputs, groups, x.shape[1] // groups, hidden * samples * rows * width, CHUNK):
        own, own_statistics = piece.maps(maps), piece.statistics(statistics)
        own = own._replace(last_weight=own.last_weight.contiguous())  # once, and not for each part of the image
        for b in range(0, batch, samples):
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                seen, around = _rows(x[b : b + samples, piece.channels], window, top, bottom)
                h = _second_units_alone(seen, own, own_statistics, around, piece.groups, training)
                h *= patch_map(seen, own.last_weight, None, around, piece.groups)
                y[b : b + samples, piece.outputs, top:bottom] += _summed(h, own)
                del h
    return y


def _second_units_alone(
    x: Tensor, maps: Maps, statistics: Statistics, window: Window, groups: int, training: bool
) -> Tensor:
    """The second hidden units, divided by D; of what comes before them no more is held at a time than need be."""
    y = first_units(patch_map(x, maps.first_weight, maps.first_bias, window, groups), maps, statistics, training)
    z = second_map(y, maps)
    del y
    return second_units(z, maps, statistics, training)


def _rows(x: Tensor, window: Window, top: int, bottom: int) -> tuple[Tensor, Window]:
    """The part of x that rows ``top`` to ``bottom - 1`` of the result see, and the window with zeros around that."""
    step = window.stride[0]
    extent = effective_size(window.kernel_size, window.dilation)[0]
    first = top * step - window.widths[0][0]
    last = (bottom - 1) * step - window.widths[0][0] + extent
    inside = x[:, :, max(first, 0) : max(min(last, x.shape[2]), 0)]
    before = min(max(-first, 0), last - first)
    after = last - first - before - inside.shape[2]
    return inside, window._replace(widths=[(before, after), window.widths[1]])
