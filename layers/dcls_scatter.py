"""Triangular DCLS elements, drawn by scattering each to the few cells it touches (arXiv 2112.03740)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NORMALISER_EPS = 1e-7


def scatter_ref(
    weight: Tensor, P: Tensor, size: list[int], axes: list[int], normalise: bool, right_slope: bool
) -> Tensor:
    """Draw elements as products of the triangles of linear interpolation, ``max(0, 1 - |t - p|)``.

    Args:
        weight: (O, I, count), in single or double precision.
        P: (D, O, I, count), positions in pixels: ``P[d]`` moves along kernel axis ``axes[d]``, relative to the cell
            ``size[axes[d]] // 2``. What lies off the grid is dropped.
        size: D sizes.
        normalise: divide each element by (the sum of its bump over the grid + 1e-7).
        right_slope: which derivative an integer position has, where the triangle has kinks: that of growing positions,
            or the mean of both one-sided ones.

    Returns:
        (O, I, *size). Differentiable any number of times.
    """
    # Cells come first and elements last in all that follows: sums over few cells are then vectorised over elements.
    touched = {axis: triangle(P[d].flatten(0, 1), size[axis], right_slope) for d, axis in enumerate(axes)}
    shares = weight.flatten(0, 1)
    if normalise:
        total = torch.ones((), dtype=weight.dtype, device=weight.device)
        for _, bump in touched.values():
            total = total * bump.sum(0)  # the sum of a product over the grid is the product of the axes' sums
        shares = shares / (total + NORMALISER_EPS)
    shares = shares.unsqueeze(0)
    cells = torch.arange(shares.shape[1], device=weight.device).view(1, -1, 1)  # the kernel, then the cell in it
    for axis in range(len(size)):
        index, bump = touched[axis]
        cells = (cells.unsqueeze(1) * size[axis] + index).flatten(0, 1)
        shares = (shares.unsqueeze(1) * bump).flatten(0, 1)
    kernel = shares.new_zeros(shares.shape[1] * math.prod(size)).scatter_add(0, cells.flatten(), shares.flatten())
    return kernel.view(*weight.shape[:2], *size)


def triangle(P: Tensor, size: int, right_slope: bool) -> tuple[Tensor, Tensor]:
    """Cells that triangles at P (kernels, elements) touch on one axis, and their values there, 0 off the grid.

    Both are (2 or 3, kernels, elements). Where the slope is the mean of both, the cell before the position is among
    them: its value is always 0, but at integer positions not its derivative.
    """
    position = P.detach() + size // 2
    base = position.floor()
    fraction = position - base
    zero, one = torch.zeros_like(fraction), torch.ones_like(fraction)
    value, slope = [1 - fraction, fraction], [-one, one]
    if not right_slope:  # whether or not gradients are recorded: forward-mode derivatives are in any case
        half, on_pixel = 0.5 * one, fraction == 0
        value = [zero, *value]
        slope = [
            torch.where(on_pixel, -half, zero),
            torch.where(on_pixel, zero, -one),
            torch.where(on_pixel, half, one),
        ]
    steps = torch.arange(2 - len(value), 2, device=P.device, dtype=base.dtype).view(-1, 1, 1)
    cell = base + steps
    # A position that is not a number is on no cell and off none: it stays in the kernel, to be seen.
    inside, outside = (cell >= 0) & (cell < size), (cell < 0) | (cell >= size)
    bump = torch.stack(value) + torch.stack(slope) * (P - P.detach())  # exactly `value`, with `slope` as derivative
    return torch.where(inside, cell, 0).long(), torch.where(outside, 0, bump)
