"""Random elements of DCLS kernels, and the plain way to draw them: each on every cell of the grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True)
class Elements:
    """All about the arguments of a construction op but the numbers in them."""

    shape: tuple[int, ...]
    size: tuple[int, ...]
    axes: tuple[int, ...]
    seed: int = 0
    spread: float = 1.0
    between: bool = False  # positions stay away from whole numbers

    @property
    def dims(self) -> int:
        return len(self.size)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def weight(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(self.shape, generator=self.generator(), dtype=torch.float64).to(dtype)

    def positions(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """With a spread of 1 a third of the elements are partly or wholly off the grid."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        half = torch.tensor([self.size[axis] / 2 for axis in self.axes], dtype=torch.float64).view(-1, 1, 1, 1)
        positions = torch.randn((self.dims, *self.shape), generator=generator, dtype=torch.float64) * half * self.spread
        if self.between:
            positions = (
                positions.floor() + 0.2 + 0.6 * torch.rand(positions.shape, generator=generator, dtype=torch.float64)
            )
        return positions.to(dtype)

    def widths(self, dtype: torch.dtype = torch.float64) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 2)
        return torch.randn((self.dims, *self.shape), generator=generator, dtype=torch.float64).to(dtype)

    def grad(self, dtype: torch.dtype = torch.float64) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 3)
        return torch.randn((*self.shape[:2], *self.size), generator=generator, dtype=torch.float64).to(dtype)

    @property
    def grid(self) -> tuple[list[int], list[int]]:
        return list(self.size), list(self.axes)


@st.composite
def elements(draw: Any, most_count: int = 40, most_size: int = 9, between: bool = False) -> Elements:
    dims = draw(st.integers(1, 3))
    return Elements(
        shape=(draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, most_count))),
        size=tuple(draw(st.integers(1, most_size if dims < 3 else 5)) for _ in range(dims)),
        axes=tuple(draw(st.permutations(range(dims)))),
        seed=draw(st.integers(0, 2**31 - 8)),
        spread=draw(st.sampled_from((0.3, 1.0, 2.0))),
        between=between,
    )


def on_every_cell(weight: Tensor, size: Any, axes: Any, bumps: Any, normalise: bool = True) -> Tensor:
    """Sum of the elements, ``bumps(d, distances)`` being what they are on the axis of P[d], (O, I, count, cells)."""
    dims = len(size)
    whole = torch.ones((), dtype=weight.dtype)
    for d, axis in enumerate(axes):
        cells = torch.arange(size[axis], dtype=weight.dtype) - size[axis] // 2
        bump = bumps(d, cells)
        whole = whole * bump.view(*bump.shape[:3], *(-1 if other == axis else 1 for other in range(dims)))
    if normalise:
        whole = whole / (whole.sum(tuple(range(-dims, 0)), keepdim=True) + 1e-7)
    return (weight.view(*weight.shape, *(1,) * dims) * whole).sum(2)


def wanting_gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.clone().requires_grad_() for tensor in tensors)
