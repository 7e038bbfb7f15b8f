"""Weights of Gaussian elements that come closest to a kernel: linear least squares, from the axes' own products."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .dcls_scatter import NORMALISER_EPS

_CHUNK = 2**22
"""Numbers of the Gram matrices that are solved with at a time."""


def fitted_weights(
    kernel: Tensor, kept: Tensor | None, places: list[Tensor], sizes: tuple[int, ...], sigma: float
) -> Tensor:
    """Weights of Gaussians on the taps of a kernel, or some of them, that draw it best in the Frobenius norm.

    Args:
        kernel: (O, I, taps), the taps row-major.
        kept: (O, I, count), indices of the taps that have an element; None if all have.
        places: for each kernel axis the positions of its taps, relative to ``size // 2``.
        sizes: of the grid, one for each axis.
        sigma: width of the Gaussians, in pixels.

    Returns:
        (O, I, count), in the dtype of ``kernel``.
    """
    # A product of sums is the sum of products: of two bumps on the grid, or of a bump and a tap, only what each axis
    # has is needed. Neighbouring wide bumps are nearly dependent: double precision, where there is one.
    dtype = torch.float32 if kernel.device.type == "mps" else torch.float64
    total = gram = at_taps = torch.ones((), dtype=dtype, device=kernel.device)
    for place, size in zip(places, sizes, strict=True):
        grid = torch.arange(size, device=kernel.device) - size // 2
        along = place.to(kernel.device).unsqueeze(1)
        bumps = torch.exp(-0.5 * ((grid - along).to(dtype) / sigma).square())  # (taps of the axis, size)
        total = torch.kron(total, bumps.sum(1))
        gram = torch.kron(gram, bumps @ bumps.T)
        at_taps = torch.kron(at_taps, torch.exp(-0.5 * ((along - along.T).to(dtype) / sigma).square()))
    norm = 1 / (total + NORMALISER_EPS)
    gram = gram * norm * norm.unsqueeze(1)  # (taps, taps): of each two elements
    at_taps = at_taps * norm.unsqueeze(1)  # (element, tap)
    if kept is None:
        solution: Tensor = torch.linalg.solve(gram, at_taps)
        return kernel @ solution.to(kernel.dtype).T
    kernels, chosen = kernel.flatten(0, 1), kept.flatten(0, 1)
    weights = torch.empty(chosen.shape, dtype=kernel.dtype, device=kernel.device)
    rows = max(1, _CHUNK // max(len(total), math.prod(chosen.shape[1:]) ** 2))
    for start in range(0, len(chosen), rows):
        some, taps = kernels[start : start + rows].to(dtype), chosen[start : start + rows]
        target = (some @ at_taps.T).gather(1, taps).unsqueeze(2)
        weights[start : start + rows] = torch.linalg.solve(gram[taps.unsqueeze(2), taps.unsqueeze(1)], target).squeeze(
            2
        )
    return weights.view(kept.shape)
