"""Guided convolution in two factors: a kernel for each pixel and channel, then a matrix over channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._geometry import IntOrInts, Padding
from .guided_base import GuidedLayer
from .guided_conv import guided_depthwise_conv2d
from .guided_pixelwise import guided_channelwise_conv2d
from .hypernet.generator import Hypernet
from .hypernet.separable import SeparableHypernet

torch.fx.wrap("as_batch")
torch.fx.wrap("guided_channelwise_conv2d")
torch.fx.wrap("guided_depthwise_conv2d")
torch.fx.wrap("without_batch")


def separable_guided_conv2d(
    x: Tensor,
    w_channel: Tensor,
    w_depth: Tensor,
    bias: Tensor | None = None,
    kernel_size: IntOrInts = 3,
    stride: IntOrInts = 1,
    padding: Padding = "same",
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    norm: Callable[[Tensor], Tensor] | None = None,
    relu: bool = False,
) -> Tensor:
    """`guided_channelwise_conv2d` and then `guided_depthwise_conv2d` (Tang et al. 2019, arXiv 1908.01238, eq. 4, 5).

    Args:
        x: (B, Ci, H, W), or (Ci, H, W). The result is channels_last where it is.
        w_channel: (B, Ci, kh * kw, Ho, Wo); for an x without batch also without it.
        w_depth: (B, Ci / groups, Co); likewise.
        bias: (Co) or (B, Co) or None, added last.
        kernel_size, stride, padding, dilation, padding_mode: of the channelwise convolution.
        groups: of the mixing of channels.
        norm: applied between the two to (B, Ci, Ho, Wo).
        relu: whether there is a ReLU between the two, after the norm.

    Returns:
        (B, Co, Ho, Wo), or (Co, Ho, Wo).

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together.
    """
    geometry = kernel_size, stride, padding, dilation, padding_mode
    y = guided_channelwise_conv2d(as_batch(x, 4), as_batch(w_channel, 5), None, *geometry)
    if norm is not None:
        y = norm(y)
    if relu:
        y = F.relu(y)
    return without_batch(guided_depthwise_conv2d(y, as_batch(w_depth, 3), bias, groups=groups), x)


def as_batch(value: Tensor, axes: int) -> Tensor:
    """What has one axis less than in a batch, as a batch of one."""
    return value.unsqueeze(0) if value.dim() == axes - 1 else value


def without_batch(y: Tensor, x: Tensor) -> Tensor:
    """``y`` without its batch axis if ``x`` has none."""
    return y.squeeze(0) if x.dim() == 3 else y


class SeparableGuidedConv2d(GuidedLayer):
    """Guided convolution in two factors, both handed in (Tang et al. 2019, arXiv 1908.01238, sec. 3.2).

    `guided_channelwise_conv2d`, then BatchNorm2d and ReLU (both can be left out), then `guided_depthwise_conv2d`. Far
    fewer numbers are generated than for a full kernel at each pixel.

    Shape: input (B, in_channels, H, W), ``w_channel`` (B, in_channels, kh * kw, Ho, Wo), ``w_depth``
    (B, in_channels / groups, out_channels) and a generated bias (B, out_channels) or None, to
    (B, out_channels, Ho, Wo); or all without B.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            `GuidedConv2d`; the geometry is the first factor's, groups and bias are the second's.
        norm: whether there is a ``BatchNorm2d`` between the two.
        relu: whether there is a ReLU between the two.

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
        norm: bool = True,
        relu: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry = stride, padding, dilation, groups, bias, padding_mode
        super().__init__(in_channels, out_channels, kernel_size, *geometry, device, dtype)
        self.norm = nn.BatchNorm2d(in_channels, device=device, dtype=dtype) if norm else None
        self.relu = relu

    @property
    def weight_shape(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(Ci, taps) and (Ci / groups, Co)."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        return (self.in_channels, taps), (self.in_channels // self.groups, self.out_channels)

    def forward(self, input: Tensor, w_channel: Tensor, w_depth: Tensor, bias: Tensor | None = None) -> Tensor:
        geometry = self.kernel_size, self.stride, self.padding, self.dilation, self.padding_mode
        y = guided_channelwise_conv2d(as_batch(input, 4), as_batch(w_channel, 5), None, *geometry)
        if self.norm is not None:
            y = self.norm(y)
        if self.relu:
            y = F.relu(y)
        y = guided_depthwise_conv2d(y, as_batch(w_depth, 3), self._whole_bias(bias), groups=self.groups)
        return without_batch(y, input)

    @classmethod
    def unsupported_reason(cls, conv: nn.Module, **options: Any) -> str | None:
        reason = super().unsupported_reason(conv, **options)
        weight: Any = getattr(conv, "weight", None)
        if reason is not None or weight.is_meta:
            return reason
        bad = int((~weight.isfinite()).sum())
        return f"its weight has {bad} numbers that are NaN or infinite, and so no factors" if bad else None

    @classmethod
    def _like(cls, conv: Any) -> Any:
        channels, weight = (conv.in_channels, conv.out_channels), conv.weight
        geometry = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, False, conv.padding_mode
        return cls(*channels, *geometry, norm=False, relu=False, device=weight.device, dtype=weight.dtype)

    def _hypernet(self, guide_channels: int, common: dict[str, Any]) -> Hypernet:
        return SeparableHypernet(guide_channels, *self.weight_shape, **common)

    def _load_kernel(self, hypernet: Any, kernel: Tensor, generator: torch.Generator | None) -> None:
        channel, depth = rank_one_factors(kernel, self.groups)
        with torch.no_grad():
            hypernet.expand.bias.copy_(channel.flatten())
            hypernet.expand_depth.bias.copy_(depth.flatten())

    def _kernel(self, hypernet: Any) -> Tensor:
        channel = hypernet.expand.bias.view(self.groups, 1, -1, *self.kernel_size)
        depth = hypernet.expand_depth.bias.view(self.groups, self.out_channels // self.groups, -1, 1, 1)
        kernel: Tensor = (channel * depth).flatten(0, 1)
        return kernel

    def _constant_kernel(self, hypernet: Any) -> Tensor:
        if self.norm is not None or self.relu:
            raise ValueError("there is a norm or a ReLU between its two factors, so together they are no convolution")
        return self._kernel(hypernet)

    def _hyperfan(self, hypernet: Any, init: str, relu: bool, generator: torch.Generator | None) -> None:
        hypernet.hyperfan(init, self.fan_in, self.fan_out, relu, generator, inner_relu=self.relu)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.relu else ", relu=False")


def rank_one_factors(kernel: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The best kernel of the form ``depth[o, i] channel[i, n]`` in the Frobenius norm: for each input channel the first
    singular vectors of its (Co / groups, taps) matrix, the singular value split evenly.

    What it misses is the root of the sum of squares of all other singular values. Computed in double precision.

    Args:
        kernel: a convolution's weight (Co, Ci / groups, kh, kw).
        groups: of the convolution.

    Returns:
        ``channel`` (Ci, taps) and ``depth`` (Co, Ci / groups), in double precision.
    """
    out, channels = kernel.shape[:2]
    matrices = kernel.double().flatten(2).unflatten(0, (groups, out // groups)).transpose(1, 2).flatten(0, 1)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    share = values[:, :1].sqrt()
    # A channel of zeros gets one factor of zeros: from two no gradient would ever come.
    channel = right[:, 0] * torch.where(share > 0, share, torch.ones_like(share))
    depth = left[..., 0] * share
    return channel, depth.view(groups, channels, -1).transpose(1, 2).reshape(out, channels)
