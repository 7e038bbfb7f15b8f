"""Convolution with a generated kernel for each sample and pixel."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._base import root_mean_square
from ._geometry import IntOrInts, Padding
from .guided_base import GuidedLayer
from .guided_pixelwise import LowRank, guided_local_conv2d
from .hypernet.generator import Hypernet, HypernetFactory
from .hypernet.low_rank import LowRankHypernet
from .hypernet.spatial import SpatialHypernet
from .hypernet_conv import HypernetConv2d

torch.fx.wrap("guided_local_conv2d")


class GuidedLocalConv2d(GuidedLayer):
    """Convolution with a kernel for each sample and pixel, handed in (De Brabandere et al. 2016, arXiv 1605.09673).

    ``y[b, o, p] = sum_in w[b, i, n, o, p] x[b, i, p + n]``. See `guided_local_conv2d`.

    Shape: input (B, in_channels, H, W), ``w`` (B, in_channels / groups, kh * kw, out_channels, Ho, Wo) or a pair of
    low rank, and a generated bias (B, out_channels) or None, to (B, out_channels, Ho, Wo); or all without B. ``w`` is
    large: 64 channels to 64 with 3x3 kernels at 56x56 pixels take 462 MB for each sample in single precision. With
    ``rank=`` the hypernets below generate the coefficients of few kernels instead.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            `GuidedConv2d`.

    Raises:
        ValueError: for arguments that fit no convolution.
    """

    spatial: ClassVar[bool] = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: Padding = "same",
        dilation: IntOrInts = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry = stride, padding, dilation, groups, bias, padding_mode
        super().__init__(in_channels, out_channels, kernel_size, *geometry, device, dtype)

    @property
    def weight_shape(self) -> tuple[int, int, int]:
        """(Ci / groups, taps, Co)."""
        return self.in_channels // self.groups, self.kernel_size[0] * self.kernel_size[1], self.out_channels

    @classmethod
    def unsupported_reason(cls, conv: nn.Module, **options: Any) -> str | None:
        rank = options.get("rank")
        if rank is not None and rank < 1:
            return f"rank must be at least 1, got {rank}"
        return super().unsupported_reason(conv, **options)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Module,
        *,
        generator: torch.Generator | None = None,
        guide_channels: int | None = None,
        hidden: int = 8,
        hypernet: HypernetFactory | None = None,
        generate_bias: bool = False,
        rank: int | None = None,
    ) -> HypernetConv2d:
        """As of `GuidedLayer`, with one argument more.

        Args:
            conv, generator, guide_channels, hidden, hypernet, generate_bias: as there.
            rank: generate the coefficients of so many kernels, to be added to the convolution's own, in place of all
                numbers of the kernels.
        """
        return cls._from_conv(conv, generator, guide_channels, hidden, hypernet, generate_bias, rank=rank)

    def with_hypernet(
        self,
        guide_channels: int | None = None,
        *,
        hidden: int = 8,
        hypernet: HypernetFactory | None = None,
        generate_bias: bool = False,
        init: str = "fan_in",
        relu: bool = True,
        generator: torch.Generator | None = None,
        rank: int | None = None,
    ) -> HypernetConv2d:
        """As of `GuidedLayer`, and with ``rank`` as in `from_conv`."""
        return self._with_hypernet(guide_channels, hidden, hypernet, generate_bias, init, relu, generator, rank=rank)

    def forward(self, input: Tensor, w: Tensor | LowRank, bias: Tensor | None = None) -> Tensor:
        return guided_local_conv2d(
            input,
            w,
            self._whole_bias(bias),
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.padding_mode,
        )

    def _hypernet(self, guide_channels: int, common: dict[str, Any], rank: int | None = None) -> Hypernet:
        if rank is None:
            return SpatialHypernet(guide_channels, self.weight_shape, **common)
        kernel = self.out_channels, self.in_channels // self.groups, self.kernel_size[0], self.kernel_size[1]
        return LowRankHypernet(guide_channels, kernel, rank, **common)

    def _load_kernel(self, hypernet: Any, kernel: Tensor, generator: torch.Generator | None) -> None:
        if not isinstance(hypernet, LowRankHypernet):
            super()._load_kernel(hypernet, kernel, generator)
            return
        with torch.no_grad():
            hypernet.kernel.copy_(kernel)
        # Of the kernel's own size, so that a step of the coefficients is a step relative to it.
        scale = root_mean_square(kernel)
        hypernet.draw_basis(torch.where(scale > 0, scale, torch.full_like(scale, self.fan_in**-0.5)), generator)

    def _kernel(self, hypernet: Any) -> Tensor:
        return hypernet.kernel if isinstance(hypernet, LowRankHypernet) else super()._kernel(hypernet)

    def _constant_kernel(self, hypernet: Any) -> Tensor:
        kernel: Tensor = self._kernel(hypernet)
        if not isinstance(hypernet, LowRankHypernet):
            return kernel
        added: Tensor = torch.tensordot(hypernet.expand.bias, hypernet.basis, 1)
        return kernel + added.view_as(kernel)

    def _to_rows(self, kernel: Tensor) -> Tensor:
        return kernel.permute(1, 2, 3, 0)

    def _from_rows(self, rows: Tensor) -> Tensor:
        channels = self.in_channels // self.groups
        return rows.view(channels, *self.kernel_size, self.out_channels).permute(3, 0, 1, 2)
