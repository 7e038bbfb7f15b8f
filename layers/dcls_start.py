"""Where the elements of a DCLS kernel start when it takes the place of an ordinary one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._geometry import effective_size
from .dcls_gauss_fit import fitted_weights
from .dcls_grid import position_axes, position_bounds
from .dcls_kernel import LEAST_SIGMA, Version
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
    Gaussians have the weights that draw the whole of ``kernel`` best with them.
    """
    dtype = torch.promote_types(kernel.dtype, torch.float32)
    axes = position_axes(version, len(sizes))
    whole = kernel.detach().flatten(2).to(dtype)
    places = _tap_places(kernel, dilation, sizes)
    grids = torch.meshgrid(*places, indexing="ij")
    positions = torch.stack([grids[axis].flatten() for axis in axes]).to(dtype)  # (D, taps), row-major
    taps, kept = whole.shape[2], None
    P = positions[:, None, None, :].expand(-1, *whole.shape)
    if count < taps:
        ranks = whole.abs() if ranking is None else ranking.flatten(2)
        kept = ranks.topk(count, dim=2).indices.sort(dim=2).values
        P = torch.stack([along[kept] for along in positions])
    if version == "gauss" and not kernel.is_meta:
        least = LEAST_SIGMA[version] if least_sigma is None else least_sigma
        values = fitted_weights(whole, kept, places, sizes, POINT[version] + least)
    else:
        normaliser = 1 if version == "v0" else 1 + NORMALISER_EPS
        values = (whole if kept is None else whole.gather(2, kept)) * normaliser
    if count > taps:
        further = _random_positions(values, count - taps, [sizes[axis] for axis in axes], generator)
        values = torch.cat((values, values.new_zeros(*values.shape[:2], count - taps)), 2)
        P = torch.cat((P, further), 3)
    return Start(values, P.contiguous(), torch.full_like(P, POINT[version]) if version in POINT else None)


def _tap_places(kernel: Tensor, dilation: tuple[int, ...], sizes: tuple[int, ...]) -> list[Tensor]:
    """For each kernel axis the positions of its taps, relative to ``size // 2``."""
    shape = tuple(kernel.shape[2:])
    places = []
    for taps, step, extent, size in zip(shape, dilation, effective_size(shape, dilation), sizes, strict=True):
        first = (size - extent) // 2 - size // 2
        places.append(torch.arange(taps, device=kernel.device) * step + first)
    return places


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
