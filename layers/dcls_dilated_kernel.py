"""The kernel of a dilated convolution whose taps have left their places (arXiv 2112.03740)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._geometry import IntOrInts, effective_size, per_axis
from .dcls_grid import position_bounds
from .dcls_kernel import draw_triangles


def construct_dilated_kernel(weight: Tensor, P: Tensor, dilation: IntOrInts, gain: float = 1.0) -> Tensor:
    """Build the dense kernel of a dilated convolution whose taps have moved.

    Tap (r, c) is at ``(r, c) * dilation + P[:, ..., r, c] * gain * sqrt(n)`` pixels, n being the number of entries of
    ``P[0]``; it is clamped to the grid, of ``dilation * (k - 1) + 1`` pixels, and drawn on it by bilinear
    interpolation. With P = 0 that is the kernel of the dilated convolution.

    Args:
        weight: (O, I, *k), I input channels per group.
        P: (D, O, I, *k), or (D, I, *k) for all output channels alike. ``P[d]`` moves along kernel axis d.
        dilation: number of pixels between taps.

    Returns:
        (O, I, *grid), in the dtype of ``weight``. Computed in single precision at least. At integer positions the
        gradient is the mean of the one-sided derivatives, on the border the one into the grid, and 0 beyond.

    Raises:
        ValueError: if the shapes do not fit.
    """
    values, places, sizes = taps_on_grid(weight, P, dilation, gain)
    if places.dim() == 3:
        places = places.unsqueeze(1).expand(-1, weight.shape[0], -1, -1)
    kernel = draw_triangles(values, places, list(sizes), list(range(len(sizes))), normalise=False, right_slope=False)
    return kernel.to(weight.dtype)


def taps_on_grid(weight: Tensor, P: Tensor, dilation: IntOrInts, gain: float) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """What to draw by triangles whose slope on a pixel is the mean of both.

    Returns:
        Weights (O, I, taps) in single precision at least, positions ([D, O,] I, taps) relative to ``size // 2``, and
        the sizes of the grid.
    """
    taps = tuple(weight.shape[2:])
    dims = len(taps)
    steps = per_axis(dilation, dims, "dilation")
    shapes = (dims, *weight.shape), (dims, *weight.shape[1:])
    if P.shape not in shapes:
        raise ValueError(f"P must have shape {shapes[0]}, or {shapes[1]} if shared, got {tuple(P.shape)}")
    sizes = effective_size(taps, steps)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    moved = P.to(dtype) * position_scale(P, gain)
    values, places = weight.to(dtype), []
    for axis, (count, step, size) in enumerate(zip(taps, steps, sizes, strict=True)):
        at_rest = torch.arange(count, dtype=dtype, device=P.device) * step - size // 2
        place = moved[axis] + at_rest.view(-1, *(1,) * (dims - 1 - axis))
        share, place = _clamped(place, *position_bounds(size))
        values = values * share
        places.append(place.flatten(-dims))
    return values.flatten(2), torch.stack(places), sizes


def _clamped(place: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """A factor for the weights, which is 1, and the places in [low, high], with the derivatives into that range.

    Most taps start on a bound. A triangle there would have the mean of both slopes: half of that on the next cell
    inside, none on its own cell, and what is outside is dropped. So positions on a bound count double, and the share
    of the own cell is taken from the weight: for a shift by t into the grid, the own cell gets 1 - t and the next
    (1 - t) * t / (1 - t) = t.
    """
    fixed = place.detach()
    on_low, on_high = fixed == low, fixed == high
    shift = torch.where((fixed >= low) & (fixed <= high), place - fixed, 0)  # 0, of derivative 1, where it may move
    inward = on_low.to(place.dtype) - on_high.to(place.dtype)  # 0 as well where there is a single cell
    share = 1 - inward * shift
    return share, fixed.clamp(low, high) + (1 + inward.abs()) * shift / share


def position_scale(P: Tensor, gain: float) -> float:
    """Pixels that a tap moves per unit of P."""
    return gain * math.sqrt(math.prod(P.shape[1:]))
