"""Construction of DCLS kernels: elements of weight at learned real positions, each drawn as a bump on the grid.

Khalfaoui-Hassani et al. 2023, arXiv 2112.03740 (``v0``, ``v1``: bilinear interpolation) and arXiv 2306.00817 (``max``
and ``gauss``: bumps of learned width). No element is ever compared with every grid cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from .dcls_grid import position_axes
from .dcls_scatter import scatter_ref
from .dcls_separable import separable_ref
from .ops import dcls_scatter, dcls_separable
from .ops._load import use_ops

Version = Literal["v0", "v1", "max", "gauss"]
VERSIONS: tuple[Version, ...] = ("v0", "v1", "max", "gauss")

LEAST_SIGMA: dict[Version, float] = {"max": 1.0, "gauss": 0.27}
"""Width of an element whose SIG is 0, for the versions that have one."""


def construct_kernel(
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    dilated_kernel_size: Sequence[int],
    version: Version = "v1",
    least_sigma: float | None = None,
) -> Tensor:
    """Build the dense kernel of a dilated convolution with learnable spacings.

    Args:
        weight: (O, I, *dense, count), I input channels per group; ``dense`` are the kernel axes that elements do not
            move along, if there are any.
        P: positions in pixels relative to ``size // 2``, (D, O, I, *dense, count). ``P[d]`` moves along the d-th axis
            of (x), (x, y) or (x, y, z), x being the last kernel axis; with ``v0`` of (x), (y, x) or (z, x, y).
        SIG: for ``max`` and ``gauss``, shaped as P: the width s of a bump is ``|SIG| + least_sigma`` pixels. None for
            ``v0`` and ``v1``.
        dilated_kernel_size: D sizes.
        version: what an element is on each axis: ``"v0"`` and ``"v1"`` are the triangle ``max(0, 1 - |t - p|)``,
            ``"max"`` is ``max(0, s - |t - p|)``, ``"gauss"`` is ``exp(-((t - p) / s)^2 / 2)``. The product over the
            axes is divided by (its sum over the grid + 1e-7), but not with ``v0``.
        least_sigma: 1 for ``max`` and 0.27 for ``gauss`` by default.

    Returns:
        (O, I, *dense, *dilated_kernel_size), in the dtype of ``weight``. Computed in single precision at least.

    Triangles have kinks, at integer positions for instance, and ``|SIG|`` has one at 0. There the gradient is the mean
    of the one-sided derivatives of the triangle, and +1 for ``|SIG|``: of an element that sits on a pixel the position
    learns all the same. With ``v0`` it is the derivative for growing positions.

    Raises:
        ValueError: for an unknown version, or tensors whose shapes do not fit.
    """
    sizes = list(dilated_kernel_size)
    _check(weight, P, SIG, len(sizes), version, least_sigma)
    # Dense axes are to the construction as so many more input channels.
    values, positions = weight.flatten(1, -2), P.flatten(2, -2)
    axes = list(position_axes(version, len(sizes)))
    if SIG is None:
        kernel = draw_triangles(values, positions, sizes, axes, version != "v0", version == "v0")
    else:
        least = LEAST_SIGMA[version] if least_sigma is None else least_sigma
        kernel = draw_wide(values, positions, SIG.flatten(2, -2), sizes, axes, version == "gauss", least)
    return kernel.reshape(*weight.shape[:-1], *sizes)


def draw_triangles(
    weight: Tensor, P: Tensor, sizes: list[int], axes: list[int], normalise: bool, right_slope: bool
) -> Tensor:
    """`scatter_ref` in single precision at least; the result is in the dtype of ``weight``."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    scatter = dcls_scatter.forward if use_ops(weight) else scatter_ref
    with _no_autocast(weight):
        kernel: Tensor = scatter(weight.to(dtype), P.to(dtype), sizes, axes, normalise, right_slope)
        return kernel.to(weight.dtype)


def draw_wide(
    weight: Tensor, P: Tensor, SIG: Tensor, sizes: list[int], axes: list[int], gaussian: bool, least_sigma: float
) -> Tensor:
    """`separable_ref` in single precision at least; the result is in the dtype of ``weight``."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    separable = dcls_separable.forward if use_ops(weight) else separable_ref
    with _no_autocast(weight):
        kernel: Tensor = separable(weight.to(dtype), P.to(dtype), SIG.to(dtype), sizes, axes, gaussian, least_sigma)
        return kernel.to(weight.dtype)


def _check(
    weight: Tensor, P: Tensor, SIG: Tensor | None, dims: int, version: Version, least_sigma: float | None
) -> None:
    if version not in VERSIONS:
        raise ValueError(f"version must be one of {', '.join(VERSIONS)}, got {version!r}")
    wide = version in LEAST_SIGMA
    if (SIG is not None) != wide:
        raise ValueError(f"version {version!r} {'needs' if wide else 'has no'} SIG")
    if least_sigma is not None and not (wide and least_sigma > 0):
        raise ValueError(
            f"least_sigma must be positive and for version max or gauss, got {least_sigma} for {version!r}"
        )
    if weight.dim() < 3:
        raise ValueError(f"weight must be (outputs, inputs per group, *dense, elements), got {tuple(weight.shape)}")
    for name, value in (("P", P), ("SIG", SIG)):
        if value is not None and value.shape != (dims, *weight.shape):
            raise ValueError(f"{name} must have shape {(dims, *weight.shape)}, got {tuple(value.shape)}")


def _no_autocast(value: Tensor) -> AbstractContextManager[object]:
    return nullcontext() if value.is_meta else torch.autocast(value.device.type, enabled=False)
