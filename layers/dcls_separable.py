"""DCLS elements of learned width, drawn as outer products of one vector for each axis (arXiv 2306.00817)."""

from __future__ import annotations

import torch
from torch import Tensor

from .dcls_scatter import NORMALISER_EPS


def separable_ref(
    weight: Tensor, P: Tensor, SIG: Tensor, size: list[int], axes: list[int], gaussian: bool, least_sigma: float
) -> Tensor:
    """Draw elements as normalised products of Gaussians or of triangles of learned width.

    Args:
        weight: (O, I, count), in single or double precision.
        P: (D, O, I, count), positions in pixels: ``P[d]`` moves along kernel axis ``axes[d]``, relative to the cell
            ``size[axes[d]] // 2``.
        SIG: shaped as P: the width s is ``|SIG| + least_sigma`` pixels, and the derivative of ``|SIG|`` at 0 is 1.
        size: D sizes.
        gaussian: ``exp(-((t - p) / s)^2 / 2)``, or else ``max(0, s - |t - p|)``, which at its kinks has the mean of
            both one-sided derivatives.

    Returns:
        (O, I, *size); each element's bump is divided by (its sum over the grid + 1e-7). Differentiable any number of
        times.
    """
    sigma = SIG * torch.where(SIG < 0, -1.0, 1.0) + least_sigma
    total = torch.ones((), dtype=weight.dtype, device=weight.device)
    bumps: list[Tensor] = [total] * len(size)
    for d, axis in enumerate(axes):
        grid = torch.arange(size[axis], dtype=P.dtype, device=P.device) - size[axis] // 2
        bumps[axis] = _bump(grid - P[d].unsqueeze(-1), sigma[d].unsqueeze(-1), gaussian).flatten(0, 1)
        total = total * bumps[axis].sum(-1)  # (O * I, count)
    # All axes but the last are multiplied out; the last is contracted with them over the elements.
    lead = (weight.flatten(0, 1) / (total + NORMALISER_EPS)).unsqueeze(-1)
    for bump in bumps[:-1]:
        lead = (lead.unsqueeze(-1) * bump.unsqueeze(-2)).flatten(2)
    kernel = lead.transpose(1, 2) @ bumps[-1]
    return kernel.view(*weight.shape[:2], *size)


def _bump(distance: Tensor, sigma: Tensor, gaussian: bool) -> Tensor:
    if gaussian:
        return torch.exp(-0.5 * (distance / sigma).square())
    height = sigma - distance.abs()  # the derivative of abs at 0 is 0, the mean of both sides
    return height * (0.5 * (height.detach().sign() + 1))  # 1 above 0, a half at it, 0 below
