"""Construction of DCLS kernels: elements of weight at learned real positions, each drawn as a bump on the grid.

Khalfaoui-Hassani et al. 2023, arXiv 2112.03740 (``v1``: the triangle of bilinear interpolation) and arXiv 2306.00817
(``gauss``). A bump is a product of one bump per axis; it is divided by (its sum over the grid + 1e-7). No element is
ever compared with every grid cell: triangles are scattered to the cells they touch, Gaussians summed as outer products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

Version = Literal["v1", "gauss"]
VERSIONS: tuple[Version, ...] = ("v1", "gauss")

NORMALISER_EPS = 1e-7
GAUSS_MIN_SIGMA = 0.27


def construct_kernel(
    weight: Tensor, P: Tensor, SIG: Tensor | None, dilated_kernel_size: Sequence[int], version: Version = "v1"
) -> Tensor:
    """Build the dense kernel of a dilated convolution with learnable spacings.

    Args:
        weight: (O, I, count), I input channels per group.
        P: positions in pixels relative to ``size // 2``, (D, O, I, count); ``P[d]`` moves along kernel axis D - 1 - d,
            so in two dimensions ``P[0]`` is x and ``P[1]`` is y.
        SIG: for ``gauss``, (D, O, I, count): the standard deviation is ``|SIG| + 0.27`` pixels. None for ``v1``.
        dilated_kernel_size: D sizes.
        version: ``"v1"`` (triangle ``max(0, 1 - |t - p|)``) or ``"gauss"`` (``exp(-((t - p) / sigma)^2 / 2)``).

    Returns:
        (O, I, *dilated_kernel_size), in the dtype of ``weight``. Computed in single precision at least.

    The triangle has a kink where a position is an integer, and ``|SIG|`` one at 0. There the gradient is the mean of
    the one-sided derivatives of the triangle, and +1 for ``|SIG|``: of an element that sits on a pixel the position
    learns all the same.
    """
    if version not in VERSIONS:
        raise ValueError(f"version must be one of {', '.join(VERSIONS)}, got {version!r}")
    if (SIG is None) == (version == "gauss"):
        raise ValueError(f"version {version!r} {'needs' if version == 'gauss' else 'has no'} SIG")
    sizes = tuple(dilated_kernel_size)
    if weight.dim() != 3:
        raise ValueError(f"weight must be (outputs, inputs per group, elements), got {tuple(weight.shape)}")
    for name, value in (("P", P), ("SIG", SIG)):
        if value is not None and value.shape != (len(sizes), *weight.shape):
            raise ValueError(f"{name} must have shape {(len(sizes), *weight.shape)}, got {tuple(value.shape)}")
    dtype = torch.promote_types(weight.dtype, torch.float32)
    with _no_autocast(weight):
        values, positions = weight.to(dtype), P.to(dtype)
        if SIG is None:
            kernel = _scatter_triangles(values, positions, sizes)
        else:
            kernel = _sum_gaussians(values, positions, SIG.to(dtype), sizes)
    return kernel.to(weight.dtype)


def _no_autocast(value: Tensor) -> AbstractContextManager[object]:
    return nullcontext() if value.is_meta else torch.autocast(value.device.type, enabled=False)


def _scatter_triangles(weight: Tensor, P: Tensor, sizes: tuple[int, ...]) -> Tensor:
    # Cells come first and elements last in all that follows: sums over few cells are then vectorised over elements.
    dims, elements = len(sizes), weight.shape[2]
    axes = [_triangle(P[dims - 1 - axis].reshape(-1, elements), size) for axis, size in enumerate(sizes)]
    total = torch.ones((), dtype=weight.dtype, device=weight.device)
    for _, bump in axes:
        total = total * bump.sum(0)  # the sum of a product over the grid is the product of the axes' sums
    shares = (weight.reshape(-1, elements) / (total + NORMALISER_EPS)).unsqueeze(0)
    cells = torch.arange(shares.shape[1], device=weight.device).view(1, -1, 1)  # the kernel, then the cell in it
    for size, (index, bump) in zip(sizes, axes, strict=True):
        cells = (cells.unsqueeze(1) * size + index).flatten(0, 1)
        shares = (shares.unsqueeze(1) * bump).flatten(0, 1)
    kernel = shares.new_zeros(shares.shape[1] * math.prod(sizes)).scatter_add(0, cells.flatten(), shares.flatten())
    return kernel.view(*weight.shape[:2], *sizes)


def _triangle(P: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cells that triangles at P (kernels, elements) may touch on one axis, and their values there, 0 off the grid.

    Both are (3, kernels, elements). The cell before the position always has value 0; it is there for its derivative at
    integer positions.
    """
    position = P.detach() + size // 2
    base = position.floor()
    fraction = position - base
    zero = torch.zeros_like(fraction)
    value = torch.stack((zero, 1 - fraction, fraction))
    on_pixel = fraction == 0
    half, one = torch.full_like(zero, 0.5), torch.ones_like(zero)
    slope = torch.stack(
        (torch.where(on_pixel, -half, zero), torch.where(on_pixel, zero, -one), torch.where(on_pixel, half, one))
    )
    cell = base + torch.arange(-1, 2, device=P.device, dtype=base.dtype).view(3, 1, 1)
    inside = (cell >= 0) & (cell < size)
    bump = value + slope * (P - P.detach())  # exactly `value`, with `slope` as its derivative
    return cell.clamp(0, size - 1).long(), torch.where(inside, bump, zero)


def _sum_gaussians(weight: Tensor, P: Tensor, SIG: Tensor, sizes: tuple[int, ...]) -> Tensor:
    dims = len(sizes)
    sigma = SIG * torch.where(SIG < 0, -1.0, 1.0) + GAUSS_MIN_SIGMA
    bumps = []
    total = torch.ones((), dtype=weight.dtype, device=weight.device)
    for axis, size in enumerate(sizes):
        grid = torch.arange(size, dtype=P.dtype, device=P.device) - size // 2
        distance = (grid - P[dims - 1 - axis].unsqueeze(-1)) / sigma[dims - 1 - axis].unsqueeze(-1)
        bumps.append(torch.exp(-0.5 * distance.square()).flatten(0, 1))  # (O * I, count, size)
        total = total * bumps[-1].sum(-1)
    scaled = weight.flatten(0, 1) / (total + NORMALISER_EPS)
    # All axes but the last are multiplied out; the last is contracted with them over the elements.
    lead = scaled.unsqueeze(-1)
    for bump in bumps[:-1]:
        lead = (lead.unsqueeze(-1) * bump.unsqueeze(-2)).flatten(2)
    kernel = lead.transpose(1, 2) @ bumps[-1]
    return kernel.view(*weight.shape[:2], *sizes)


def position_bounds(size: int) -> tuple[int, int]:
    """Least and greatest position, relative to ``size // 2``, of an element whose centre is on a grid of ``size``."""
    return -(size // 2), size - 1 - size // 2
