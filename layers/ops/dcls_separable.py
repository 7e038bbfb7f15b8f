"""Construction of DCLS kernels from elements of learned width, as outer products of one vector for each axis."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..dcls_scatter import NORMALISER_EPS
from ..dcls_separable import separable_ref
from ._define import define


def dcls_separable_backward_ref(
    grad: Tensor, weight: Tensor, P: Tensor, SIG: Tensor, axes: list[int], gaussian: bool, least_sigma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients to weight, P and SIG of `separable_ref`, from that to the kernels, (O, I, *size)."""
    sign = torch.where(SIG < 0, -1.0, 1.0).to(SIG.dtype)
    sigma = SIG * sign + least_sigma
    bumps: list[tuple[Tensor, Tensor, Tensor]] = [(P, P, P)] * len(axes)
    for d, axis in enumerate(axes):
        size = grad.shape[2 + axis]
        cells = torch.arange(size, dtype=P.dtype, device=P.device) - size // 2
        bump = _bump(cells - P[d].unsqueeze(-1), sigma[d].unsqueeze(-1), gaussian)
        bumps[axis] = tuple(part.flatten(0, 1) for part in bump)  # type: ignore[assignment]  # (kernels, count, cells)
    kernels = grad.flatten(0, 1)
    values = [value for value, _, _ in bumps]
    sums = [value.sum(-1) for value in values]
    share = 1 / (math.prod(sums[1:], start=sums[0]) + NORMALISER_EPS)
    scale = weight.flatten(0, 1) * share
    lead = torch.zeros_like(share)
    along: list[tuple[Tensor, Tensor]] = [(share, share)] * len(axes)
    for axis, (value, for_position, for_sigma) in enumerate(bumps):
        seen = _contract(kernels, values, axis)
        lead = (seen * value).sum(-1) * share
        lost = lead * math.prod((*sums[:axis], *sums[axis + 1 :]), start=torch.ones_like(share))
        # A larger sum takes from the element.
        along[axis] = (
            scale * ((seen * for_position).sum(-1) - lost * for_position.sum(-1)),
            scale * ((seen * for_sigma).sum(-1) - lost * for_sigma.sum(-1)),
        )
    positions, sigmas = (torch.stack([along[axis][i] for axis in axes]).view(P.shape) for i in (0, 1))
    return lead.view(weight.shape), positions, sigmas * sign


def _bump(distance: Tensor, sigma: Tensor, gaussian: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What an element is at cells at these distances, and its derivatives along its position and sigma."""
    if gaussian:
        steps = distance / sigma
        value = torch.exp(-0.5 * steps.square())
        along = value * steps / sigma
        return value, along, along * steps
    height = sigma - distance.abs()
    slope = 0.5 * (height.detach().sign() + 1)  # 1 above 0, a half at it, 0 below
    return height * slope, slope * distance.detach().sign(), slope


def _contract(kernels: Tensor, bumps: list[Tensor], kept: int) -> Tensor:
    """Sum the kernels over all axes but one, times each element's bumps along these: (kernels, count, cells)."""
    seen = kernels.unsqueeze(1)
    for axis in reversed(range(len(bumps))):
        if axis == kept:
            continue
        # Axes after the kept one are summed up from the last, so that it is the last when its turn comes.
        place = -1 if axis > kept else -2
        bump = bumps[axis]
        shape = [*bump.shape[:2], *(1,) * (seen.dim() - 2)]
        shape[place] = bump.shape[2]
        seen = (seen * bump.view(shape)).sum(place)
    return seen.expand(*bumps[0].shape[:2], seen.shape[-1])


def _fake(weight: Tensor, P: Tensor, SIG: Tensor, size: list[int], *_: Any) -> Tensor:
    return weight.new_empty(*weight.shape[:2], *size)


def _fake_backward(grad: Tensor, weight: Tensor, P: Tensor, SIG: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return weight.new_empty(weight.shape), P.new_empty(P.shape), SIG.new_empty(SIG.shape)


def _flops(weight: Any, P: Any, SIG: Any, size: Any, *_: Any, **__: Any) -> int:
    return 2 * int(math.prod(weight) * math.prod(size))


def _flops_backward(grad: Any, weight: Any, P: Any, *_: Any, **__: Any) -> int:
    return 2 * int(math.prod(weight) * math.prod(grad[2:]) * P[0])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, P, SIG, _, *ctx.options = inputs
    ctx.save_for_backward(weight, P, SIG)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return (*backward(g, *ctx.saved_tensors, *ctx.options), None, None, None, None)


forward = define(
    "dcls_separable(Tensor weight, Tensor P, Tensor SIG, int[] size, int[] axes, bool gaussian, float least_sigma)"
    " -> Tensor",
    separable_ref,
    fake=_fake,
    flops=_flops,
    setup_context=_setup,
    backward=_backward,
)

backward = define(
    "dcls_separable_backward(Tensor grad, Tensor weight, Tensor P, Tensor SIG, int[] axes, bool gaussian, "
    "float least_sigma) -> (Tensor, Tensor, Tensor)",
    dcls_separable_backward_ref,
    fake=_fake_backward,
    flops=_flops_backward,
)
