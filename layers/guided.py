"""Convolutions with a generated kernel for each sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._geometry import IntOrInts, Padding
from .guided_base import GuidedLayer
from .guided_conv import guided_conv2d, guided_depthwise_conv2d
from .hypernet.generator import Hypernet
from .hypernet.pooled import PooledHypernet

torch.fx.wrap("guided_conv2d")
torch.fx.wrap("guided_depthwise_conv2d")


class GuidedConv2d(GuidedLayer):
    """Convolution with a kernel for each sample, handed in (De Brabandere et al. 2016, arXiv 1605.09673).

    ``y[b, o] = sum_in w[b, i, n, o] x[b, i, . + n]``. See `guided_conv2d`.

    Shape: input (B, in_channels, H, W), ``w`` (B, in_channels / groups, kh * kw, out_channels) and a generated bias
    (B, out_channels) or None, to (B, out_channels, Ho, Wo); or all without B.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, padding_mode: as in ``nn.Conv2d``.
        padding: as in ``nn.Conv2d``; ``"same"``, the default, is allowed with any stride.
        bias: whether there is a bias of the layer's own, (out_channels), added to the generated one.

    Raises:
        ValueError: for arguments that fit no convolution.
    """

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

    def _hypernet(self, guide_channels: int, common: dict[str, Any]) -> Hypernet:
        return PooledHypernet(guide_channels, self.weight_shape, **common)

    def forward(self, input: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        return guided_conv2d(
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


class GuidedDepthWiseConv2d(GuidedLayer):
    """1x1 convolution with a matrix for each sample, handed in (Tang et al. 2019, arXiv 1908.01238, sec. 3.2).

    ``y[b, o] = sum_i w[b, i, o] x[b, i]``. See `guided_depthwise_conv2d`. The name is the published one: it mixes
    channels along the depth of each pixel.

    Shape: input (B, in_channels, H, W), ``w`` (B, in_channels / groups, out_channels) and a generated bias
    (B, out_channels) or None, to (B, out_channels, Ho, Wo); or all without B.

    Args:
        in_channels, out_channels, stride, padding, dilation, groups, bias, padding_mode: as in `GuidedConv2d`.

    Raises:
        ValueError: for arguments that fit no convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
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
        super().__init__(in_channels, out_channels, 1, *geometry, device, dtype)

    @property
    def weight_shape(self) -> tuple[int, int]:
        """(Ci / groups, Co)."""
        return self.in_channels // self.groups, self.out_channels

    @classmethod
    def unsupported_reason(cls, conv: nn.Module, **options: Any) -> str | None:
        size = getattr(conv, "kernel_size", None)
        if isinstance(conv, nn.Conv2d) and size != (1, 1):
            return f"it is for 1x1 kernels, got {conv.kernel_size[0]}x{conv.kernel_size[1]}: take GuidedConv2d"
        return super().unsupported_reason(conv, **options)

    @classmethod
    def _constructor_arguments(cls, conv: Any) -> tuple[Any, ...]:
        return conv.in_channels, conv.out_channels, conv.stride, conv.padding, conv.dilation, conv.groups

    def _hypernet(self, guide_channels: int, common: dict[str, Any]) -> Hypernet:
        return PooledHypernet(guide_channels, self.weight_shape, **common)

    def forward(self, input: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        return guided_depthwise_conv2d(
            input,
            w,
            self._whole_bias(bias),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.padding_mode,
        )
