"""Padding an image by extrapolation: the polynomial through its outermost pixels, continued beyond the border."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._lagrange import Order, check_order, lagrange_weights, noise_gain, normalise_order, normalise_sides
from .ops._load import want_ops
from .ops.extrapolate_pad import extrapolate_pad_ref, forward

__all__ = [
    "Order",
    "check_order",
    "extrapolate_pad",
    "lagrange_weights",
    "noise_gain",
    "normalise_order",
]

torch.fx.wrap("extrapolate_pad")


def extrapolate_pad(input: Tensor, pad: int | Sequence[int] | Sequence[tuple[int, int]], order: Order) -> Tensor:
    """Extend an image on all sides by polynomials, axis by axis, so that corners are products of two or three of them.

    The polynomial of degree ``order`` goes through the ``order + 1`` pixels nearest to a side (Lagrange): order 0 is
    ``F.pad(mode="replicate")``, order 1 goes on in a straight line, and an image that is a polynomial of that degree
    along each axis is continued exactly. Errors of the pixels grow outside, the more the higher the order: see
    `noise_gain`. Half precision is computed in single and rounded once.

    Args:
        input: (B, C, *size) with 1 to 3 spatial axes, floating-point or complex. The result is channels_last where it
            is.
        pad: pixels to add: one number for all sides, one for each axis, or (before, after) for each axis, the first
            axis first.
        order: degree of the polynomial, in the same forms.

    Returns:
        (B, C, *(size + before + after)).

    Raises:
        ValueError: if the input is none of these, ``pad`` or ``order`` does not fit it, or an axis has fewer than
            ``order + 1`` pixels on a side that is padded, or the order is so high that weights are not finite.
    """
    dims = input.dim() - 2
    if not 1 <= dims <= 3:
        raise ValueError(f"input must be (B, C, *size) with 1 to 3 spatial axes, got {tuple(input.shape)}")
    if not (input.is_floating_point() or input.is_complex()):
        raise ValueError(f"input must be floating-point or complex, got {input.dtype}: convert it first")
    widths, orders = normalise_sides(pad, dims, "pad"), normalise_order(order, dims)
    check_order(input.shape[2:], widths, orders, input.dtype)
    extrapolate = forward if want_ops(input) else extrapolate_pad_ref
    padded: Tensor = extrapolate(
        input, [side for pair in widths for side in pair], [d for pair in orders for d in pair]
    )
    return padded
