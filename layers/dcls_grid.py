"""The grid that the elements of a DCLS kernel lie on: its size, and which positions are on it."""

from __future__ import annotations

from collections.abc import Sequence

from ._geometry import effective_size


def default_dilated_kernel_size(kernel_size: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """Grid for a conv's kernel: per axis the smallest size of its parity that is at least 7 and twice what it spans.

    An axis with a single tap has nothing to space and keeps size 1.
    """
    sizes = []
    for taps, extent in zip(kernel_size, effective_size(kernel_size, dilation), strict=True):
        size = max(7, 2 * extent)
        sizes.append(1 if taps == 1 else size + (size - extent) % 2)
    return tuple(sizes)


def unfit_sizes(sizes: Sequence[int], window: Sequence[int]) -> str | None:
    """Why a grid of these sizes cannot extend a window evenly, or None if it can."""
    for size, extent in zip(sizes, window, strict=True):
        if size < extent:
            return f"dilated_kernel_size {size} is smaller than the {extent} pixels that the kernel spans"
        if (size - extent) % 2:
            return (
                f"dilated_kernel_size {size} has not the parity of the {extent} pixels that the kernel spans, so "
                f"its centre would move: use {size - 1} or {size + 1}"
            )
    return None


def position_axes(version: str, dims: int) -> tuple[int, ...]:
    """Kernel axis that ``P[d]`` moves along, for each d.

    In ``v0`` they are (y, x) and (z, x, y), elsewhere last axis first: (x, y) and (x, y, z). The ``DCLS`` package has
    it so, and with it the state dicts.
    """
    if version == "v0":
        return {1: (0,), 2: (0, 1), 3: (0, 2, 1)}[dims]
    return tuple(reversed(range(dims)))


def position_bounds(size: int) -> tuple[int, int]:
    """Least and greatest position, relative to ``size // 2``, of an element whose centre is on a grid of ``size``."""
    return -(size // 2), size - 1 - size // 2
