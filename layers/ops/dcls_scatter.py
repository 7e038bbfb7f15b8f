"""Construction of DCLS kernels from triangular elements, which are scattered to the few cells they touch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..dcls_scatter import NORMALISER_EPS, scatter_ref
from ._define import define


def dcls_scatter_backward_ref(
    grad: Tensor, weight: Tensor, P: Tensor, axes: list[int], normalise: bool, right_slope: bool
) -> tuple[Tensor, Tensor]:
    """The gradients to weight and P of `scatter_ref`, from that to the kernels, (O, I, *size)."""
    values, slopes = [P] * len(axes), [P] * len(axes)
    cells = torch.zeros(math.prod(weight.shape[:2]), weight.shape[2], dtype=torch.long, device=grad.device)
    indices = [cells] * len(axes)
    for d, axis in enumerate(axes):
        indices[axis], values[axis], slopes[axis] = _touched(P[d].flatten(0, 1), grad.shape[2 + axis], right_slope)
    # Kernels and their elements come first, then an axis of three cells for each axis of the kernel.
    for size, index in zip(grad.shape[2:], indices, strict=True):
        cells = cells.unsqueeze(-1) * size + _last_axis(index, cells.dim() + 1)
    gathered = grad.flatten(2).flatten(0, 1).gather(1, cells.flatten(1)).view(cells.shape)
    drawn = _over_cells(gathered, values)
    moved = [_over_cells(gathered, [*values[:i], slope, *values[i + 1 :]]) for i, slope in enumerate(slopes)]
    share = torch.ones_like(drawn)
    if normalise:
        sums = [value.sum(-1) for value in values]
        share = 1 / (math.prod(sums[1:], start=sums[0]) + NORMALISER_EPS)
        drawn = drawn * share
        for i, slope in enumerate(slopes):  # what a larger sum takes from the element
            moved[i] = moved[i] - drawn * math.prod((*sums[:i], *sums[i + 1 :]), start=slope.sum(-1))
    scale = weight.flatten(0, 1) * share
    return drawn.view(weight.shape), torch.stack([scale * moved[axis] for axis in axes]).view(P.shape)


def _touched(P: Tensor, size: int, right_slope: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Cells that triangles at P may touch on one axis, their values and slopes there, 0 off the grid: (*P.shape, 3).

    The values have the slopes as their derivatives, which are constant between the kinks.
    """
    place = (P.detach() + size // 2).unsqueeze(-1)
    base = place.floor()
    fraction = place - base
    half = torch.where(fraction == 0, 0.0 if right_slope else 0.5, 0.0).to(P.dtype)
    slope = torch.cat((-half, 2 * half - 1, 1 - half), -1)
    value = torch.cat((torch.zeros_like(fraction), 1 - fraction, fraction), -1) + slope * (P - P.detach()).unsqueeze(-1)
    cell = base + torch.arange(-1, 2, device=P.device)
    inside, outside = (cell >= 0) & (cell < size), (cell < 0) | (cell >= size)
    return torch.where(inside, cell, 0).long(), torch.where(outside, 0, value), torch.where(outside, 0, slope)


def _last_axis(vectors: Tensor, dims: int) -> Tensor:
    """(kernels, elements, 3), to be combined with a tensor of ``dims`` axes on its last one."""
    return vectors.view(*vectors.shape[:2], *(1,) * (dims - 3), 3)


def _over_cells(cells: Tensor, vectors: list[Tensor]) -> Tensor:
    for vector in reversed(vectors):
        cells = (cells * _last_axis(vector, cells.dim())).sum(-1)
    return cells


def _fake(weight: Tensor, P: Tensor, size: list[int], axes: list[int], normalise: bool, right_slope: bool) -> Tensor:
    return weight.new_empty(*weight.shape[:2], *size)


def _fake_backward(
    grad: Tensor, weight: Tensor, P: Tensor, axes: list[int], normalise: bool, right_slope: bool
) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), P.new_empty(P.shape)


def _flops(*_: Any, **__: Any) -> int:
    return 0  # torch counts matrix products and convolutions, of which there are none


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, P, _, *ctx.options = inputs
    ctx.save_for_backward(weight, P)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return (*backward(g, *ctx.saved_tensors, *ctx.options), None, None, None, None)


forward = define(
    "dcls_scatter(Tensor weight, Tensor P, int[] size, int[] axes, bool normalise, bool right_slope) -> Tensor",
    scatter_ref,
    fake=_fake,
    flops=_flops,
    setup_context=_setup,
    backward=_backward,
)

backward = define(
    "dcls_scatter_backward"
    "(Tensor grad, Tensor weight, Tensor P, int[] axes, bool normalise, bool right_slope) -> (Tensor, Tensor)",
    dcls_scatter_backward_ref,
    fake=_fake_backward,
    flops=_flops,
)
