"""Where the elements of a DCLS kernel start when it takes the place of an ordinary one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._geometry import effective_size
from .dcls_grid import position_axes, position_bounds
from .dcls_kernel import Version, construct_kernel
from .dcls_scatter import NORMALISER_EPS

POINT: dict[Version, float] = {"max": 0.0, "gauss": 1e-3}
"""SIG of an element that stands for one tap: a bump as narrow as the version allows."""


@dataclass(frozen=True)
class Start:
    """Weights (O, I, count), positions and, for ``max`` and ``gauss``, widths (D, O, I, count)."""

    weight: Tensor
    P: Tensor
    SIG: Tensor | None


def start_from_kernel(
    kernel: Tensor,
    dilation: tuple[int, ...],
    sizes: tuple[int, ...],
    count: int,
    version: Version,
    generator: torch.Generator | None,
    least_sigma: float | None = None,
    ranking: Tensor | None = None,
) -> Start:
    """Place ``count`` elements on a grid of ``sizes`` so that they draw ``kernel`` (O, I, *k), spread by ``dilation``.

    With as many elements as taps each stands on one; further ones start with weight 0 at random positions; of fewer,
    each kernel keeps the taps of largest magnitude, or of the largest in ``ranking``, which is shaped as ``kernel``.
    """
    dtype = torch.promote_types(kernel.dtype, torch.float32)
    axes = position_axes(version, len(sizes))
    values = kernel.detach().to(dtype, copy=True).flatten(2)
    positions = _tap_positions(kernel, dilation, sizes, axes).to(dtype)
    taps = values.shape[2]
    P = positions[:, None, None, :].expand(-1, *values.shape)
    if count < taps:
        ranks = values.abs() if ranking is None else ranking.flatten(2)
        kept = ranks.topk(count, dim=2).indices.sort(dim=2).values
        values = values.gather(2, kept)
        P = P.gather(3, kept.expand(P.shape[0], *kept.shape))
    if version == "gauss":
        SIG = torch.full_like(P, POINT[version])
        values = _least_squares_weights(values, P, SIG, sizes, least_sigma, shared=count >= taps)
    elif version != "v0":
        values = values * (1 + NORMALISER_EPS)
    if count > taps:
        further = _random_positions(values, count - taps, [sizes[axis] for axis in axes], generator)
        values = torch.cat((values, values.new_zeros(*values.shape[:2], count - taps)), 2)
        P = torch.cat((P, further), 3)
    return Start(values, P.contiguous(), torch.full_like(P, POINT[version]) if version in POINT else None)


def _tap_positions(kernel: Tensor, dilation: tuple[int, ...], sizes: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
    """(D, taps): positions of the kernel's taps, row-major; the d-th are those along kernel axis ``axes[d]``."""
    shape = tuple(kernel.shape[2:])
    places = []
    for taps, step, extent, size in zip(shape, dilation, effective_size(shape, dilation), sizes, strict=True):
        first = (size - extent) // 2 - size // 2
        places.append(torch.arange(taps, device=kernel.device) * step + first)
    grids = torch.meshgrid(*places, indexing="ij")
    return torch.stack([grids[axis].flatten() for axis in axes])


def _random_positions(values: Tensor, count: int, sizes: list[int], generator: torch.Generator | None) -> Tensor:
    """(D, O, I, count) positions, uniform over the grid; ``sizes[d]`` is that of the axis that the d-th are along."""
    shape = (*values.shape[:2], count)
    drawn = []
    for size in sizes:
        low, high = position_bounds(size)
        if values.is_meta:
            drawn.append(values.new_empty(shape))
        else:
            uniform = torch.rand(shape, generator=generator, dtype=values.dtype, device="cpu")
            drawn.append((low + (high - low) * uniform).to(values.device))
    return torch.stack(drawn)


def _least_squares_weights(
    values: Tensor, P: Tensor, SIG: Tensor, sizes: tuple[int, ...], least_sigma: float | None, shared: bool
) -> Tensor:
    """Weights whose Gaussians come closest, in the Frobenius norm, to points of weight ``values`` on pixels P.

    Args:
        shared: whether all kernels have the same positions, so that one system serves for all.
    """
    if values.is_meta:
        return values
    places = P[:, :1, :1] if shared else P
    widths = SIG[:, :1, :1] if shared else SIG
    rows, elements = places.shape[1] * places.shape[2], places.shape[3]
    # One kernel for each element alone: its unit bump on the grid.
    alone = construct_kernel(
        values.new_ones(rows * elements, 1, 1),
        places.reshape(len(sizes), -1, 1, 1),
        widths.reshape(len(sizes), -1, 1, 1),
        sizes,
        "gauss",
        least_sigma,
    ).view(rows, elements, -1)
    cells = _cells(places, sizes).view(rows, 1, elements)
    gram = alone @ alone.transpose(1, 2)
    at_points = alone.gather(2, cells.expand(-1, elements, -1))  # (rows, bump, point)
    target = values.reshape(-1, elements, 1) if not shared else values.reshape(1, -1, elements).transpose(1, 2)
    solved: Tensor = torch.linalg.solve(gram, at_points @ target)
    return (solved.transpose(1, 2) if shared else solved).reshape(values.shape)


def _cells(P: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Row-major index of the grid cell that each position, a whole number of pixels, stands on."""
    index = torch.zeros_like(P[0], dtype=torch.long)
    for axis, size in enumerate(sizes):
        index = index * size + (P[len(sizes) - 1 - axis].round().long() + size // 2)
    return index
