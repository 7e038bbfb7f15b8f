"""Extrapolation beyond the border of an image: the polynomial through the outermost pixels of an axis, and its degree.

The polynomial of degree ``order`` through the ``order + 1`` pixels nearest to a side, continued beyond it (Lagrange):
order 0 repeats the last pixel, order 1 goes on in a straight line.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch

Order: TypeAlias = int | Sequence[int] | Sequence[tuple[int, int]]
"""Degree of the polynomial: one for all sides, one for each axis, or one before and one after each axis."""


def lagrange_weights(pad: int, order: int) -> list[list[float]]:
    """What the pixels next to the edge contribute to those outside it.

    ``[t][j]`` is the weight of the j-th pixel from the edge, j = 0..order, in the pixel that lies t + 1 outside,
    t = 0..pad-1: ``prod_{m != j} (-(t + 1) - m) / (j - m)``, which is a whole number.

    Raises:
        ValueError: if one is too large for a number.
    """
    return [[_finite(_weight(-(t + 1), j, order), order) for j in range(order + 1)] for t in range(pad)]


def noise_gain(pad: int, order: int) -> float:
    """How many times greater errors of the pixels can be at the outermost of ``pad`` pixels of one axis.

    The sum of the absolute weights there: 1 for order 0 or without a pad, and 7, 129 and 2815 for a pad of 1, 2 and 3
    with the orders 2, 4 and 6. Where axes meet, in the corners, gains are multiplied.
    """
    return _finite(sum(abs(_weight(-pad, j, order)) for j in range(order + 1)), order) if pad else 1.0


def normalise_order(order: Order, dims: int) -> tuple[tuple[int, int], ...]:
    """The orders (before, after) of each of ``dims`` axes.

    Raises:
        ValueError: if there are not as many as axes, or one is negative or no whole number.
    """
    return normalise_sides(order, dims, "order")


def normalise_sides(value: Any, dims: int, name: str) -> tuple[tuple[int, int], ...]:
    """(before, after) for each of ``dims`` axes, from one number, one for each axis, or such pairs.

    Raises:
        ValueError: if there are not as many as axes, or one is negative or no whole number.
    """
    try:
        entries = [value] * dims if _is_one(value) else list(value)
        given = [(entry, entry) if _is_one(entry) else tuple(entry) for entry in entries]
        pairs = [tuple(_whole(side) for side in pair) for pair in given]
    except TypeError:
        pairs = []
    if len(pairs) != dims or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"{name} must be one number, one for each of the {dims} axes, or (before, after) for each, and whole "
            f"numbers, got {value!r}"
        )
    if any(side < 0 for pair in pairs for side in pair):
        raise ValueError(f"{name} must not be negative, got {value}")
    return tuple((before, after) for before, after in pairs)


def check_order(
    input_size: Sequence[int],
    widths: Sequence[tuple[int, int]],
    order: Sequence[tuple[int, int]],
    dtype: torch.dtype = torch.float64,
) -> None:
    """Check that every axis has the pixels that the polynomials of its padded sides go through.

    And that their weights are numbers in the precision that images of ``dtype`` are extrapolated in, but for sizes that
    a compiler leaves open.

    Raises:
        ValueError: if an axis has fewer than ``order + 1`` pixels, or a weight is too large.
    """
    for axis, (size, pads, orders) in enumerate(zip(input_size, widths, order, strict=True)):
        for pad, degree in zip(pads, orders, strict=True):
            if pad > 0 and size < degree + 1:
                raise ValueError(
                    f"extrapolation of order {degree} takes {degree + 1} pixels, and axis {axis} of the image "
                    f"{tuple(input_size)} has {size}: take a lower order or a larger image"
                )
            if pad > 0 and not torch.compiler.is_compiling() and _greatest(pad, degree) > _largest(dtype):
                raise ValueError(
                    f"extrapolation of order {degree} by {pad} pixels has weights that are too large for {dtype}: take "
                    "a lower order"
                )


@functools.lru_cache(maxsize=1024)
def _greatest(pad: int, order: int) -> int:
    """The greatest of the absolute weights, which is one of the outermost pixel."""
    common = (order + 1) * math.comb(pad + order, order + 1)
    return max(common * math.comb(order, j) // (pad + j) for j in range(order + 1))


def _largest(dtype: torch.dtype) -> float:
    return torch.finfo(torch.promote_types(dtype, torch.float32)).max


def _finite(weight: int, order: int) -> float:
    try:
        return float(weight)
    except OverflowError as error:
        raise ValueError(
            f"extrapolation of order {order} has weights that are too large: take a lower order"
        ) from error


def _is_one(value: Any) -> bool:
    return not isinstance(value, Iterable) or (isinstance(value, torch.Tensor) and not value.dim())


def _whole(value: Any) -> Any:
    """As ``operator.index``, but for a size that a compiler leaves open, which stays so."""
    return value if isinstance(value, int | torch.SymInt) else operator.index(value)


def _weight(at: int, j: int, order: int) -> int:
    others = [m for m in range(order + 1) if m != j]
    return math.prod([at - m for m in others]) // math.prod([j - m for m in others])
