"""Depthwise convolution with a generated kernel for each sample, channel and pixel."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._geometry import IntOrInts, Padding
from .guided_base import GuidedLayer
from .guided_pixelwise import guided_channelwise_conv2d
from .hypernet.generator import Hypernet
from .hypernet.spatial import SpatialHypernet

torch.fx.wrap("guided_channelwise_conv2d")


class GuidedChannelWiseConv2d(GuidedLayer):
    """Convolution of each channel with a kernel for each sample and pixel (Tang et al. 2019, arXiv 1908.01238).

    ``y[b, o, p] = sum_n w[b, o, n, p] x[b, o // (Co / Ci), p + n]``. See `guided_channelwise_conv2d`.

    Shape: input (B, in_channels, H, W), ``w`` (B, out_channels, kh * kw, Ho, Wo) and a generated bias
    (B, out_channels) or None, to (B, out_channels, Ho, Wo); or all without B.

    Args:
        in_channels, kernel_size, stride, padding, dilation, bias, padding_mode: as in `GuidedConv2d`. ``groups`` is
            always ``in_channels``.
        out_channels: a multiple of ``in_channels``, and by default as many.

    Raises:
        ValueError: for arguments that fit no convolution.
    """

    spatial: ClassVar[bool] = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: IntOrInts = 3,
        stride: IntOrInts = 1,
        padding: Padding = "same",
        dilation: IntOrInts = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        out = in_channels if out_channels is None else out_channels
        if out % max(in_channels, 1):
            raise ValueError(f"out_channels must be a multiple of in_channels={in_channels}, got {out}")
        geometry = stride, padding, dilation, in_channels, bias, padding_mode
        super().__init__(in_channels, out, kernel_size, *geometry, device, dtype)

    @property
    def weight_shape(self) -> tuple[int, int]:
        """(Co, taps)."""
        return self.out_channels, self.kernel_size[0] * self.kernel_size[1]

    @classmethod
    def unsupported_reason(cls, conv: nn.Module, **options: Any) -> str | None:
        if isinstance(conv, nn.Conv2d) and conv.groups != conv.in_channels:
            return (
                f"it is for depthwise convolutions, groups={conv.in_channels} here, got groups={conv.groups}: "
                "take GuidedConv2d, GuidedLocalConv2d or SeparableGuidedConv2d"
            )
        return super().unsupported_reason(conv, **options)

    @classmethod
    def _constructor_arguments(cls, conv: Any) -> tuple[Any, ...]:
        return conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation

    def _hypernet(self, guide_channels: int, common: dict[str, Any]) -> Hypernet:
        return SpatialHypernet(guide_channels, self.weight_shape, **common)

    def forward(self, input: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        return guided_channelwise_conv2d(
            input,
            w,
            self._whole_bias(bias),
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.padding_mode,
        )
