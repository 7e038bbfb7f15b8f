"""Kernels for each pixel that are sums of few kernels common to all."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .._base import normal_like
from .generator import mean_over_space, over_channels
from .spatial import SpatialHypernet

torch.fx.wrap("mean_over_space")
torch.fx.wrap("over_channels")


class LowRankHypernet(SpatialHypernet):
    """Kernels for each pixel of rank r: ``kernel + sum_r c_r basis_r``, where the guide decides only the ``c_r``.

    Shape: (B, G, H, W) to the pair basis (1 + r, Ci / groups, taps, Co) and coefficients (B, 1 + r, H, W), the first
    kernel with coefficient one; with ``bias_channels`` also (B, bias_channels).

    Args:
        guide_channels: G.
        kernel_shape: of ``kernel``, (Co, Ci / groups, kh, kw).
        rank: r, at least 1.
        hidden, bias_channels, bias_start, body, generator, device, dtype: as in `Hypernet`.

    Parameters:
        kernel (Co, Ci / groups, kh, kw): the kernel at zero guide contribution.
        basis (r, Co, Ci / groups * kh * kw): random, as large as `draw_basis` is told.

    Raises:
        ValueError: if a number is less than 1.
    """

    spatial: ClassVar[bool] = True

    def __init__(
        self,
        guide_channels: int,
        kernel_shape: tuple[int, int, int, int],
        rank: int,
        hidden: int = 8,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        super().__init__(guide_channels, (rank,), hidden, generator=generator, device=device, dtype=dtype, **options)
        self.rank = rank
        out, channels, rows, columns = kernel_shape
        self.kernel = nn.Parameter(torch.zeros(kernel_shape, device=device, dtype=dtype))
        self.basis = nn.Parameter(torch.zeros(rank, out, channels * rows * columns, device=device, dtype=dtype))
        self.draw_basis(self.basis.shape[2] ** -0.5, generator)

    def draw_basis(self, std: Tensor | float, generator: torch.Generator | None = None) -> None:
        """Draw the basis anew, normal with this standard deviation."""
        with torch.no_grad():
            self.basis.copy_(normal_like(tuple(self.basis.shape), self.basis, generator) * std)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all but ``kernel``, which is zeroed: the basis with one over the root of the fan-in."""
        super().reset_parameters(generator)
        nn.init.zeros_(self.kernel)
        self.draw_basis(self.basis.shape[2] ** -0.5, generator)

    def carried(self) -> tuple[tuple[nn.Module, str], ...]:
        return ((self, "kernel"),)

    def generated_numbers(self, pixels: int) -> int:
        """For each pixel the coefficients of all kernels, and what each of them gives there, to be mixed."""
        return pixels * (1 + self.rank) * (1 + self.kernel.shape[0]) + (self.bias_channels or 0)

    def hyperfan(
        self, init: str, fan_in: int, fan_out: int, relu: bool, generator: torch.Generator | None = None
    ) -> None:
        """As of `Hypernet`, for the sum of the basis, each kernel of which gets variance one over the rank."""
        super().hyperfan(init, fan_in, fan_out, relu, generator)
        self.draw_basis(self.rank**-0.5, generator)

    def forward(self, guide: Tensor) -> Any:
        features = self._pixel_features(guide)
        shares = over_channels(features, self.expand.weight, self.expand.bias)
        kernels = torch.cat((self.kernel.flatten(1).unsqueeze(0), self.basis))
        kernels = kernels.unflatten(2, (self.kernel.shape[1], -1)).permute(0, 2, 3, 1)
        pair = kernels, torch.cat((torch.ones_like(shares[:, :1]), shares), 1)
        return pair if self.expand_bias is None else (pair, self.expand_bias(mean_over_space(features)))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}"
