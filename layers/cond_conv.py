"""Conditionally parametrised convolution: kernels mixed by sigmoid routing (Yang et al. 2019, arXiv 1904.04971)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from ._geometry import IntOrInts, Padding
from .attended import AttendedConv
from .attention import RoutingAttention, checked_count
from .dynamic_conv import dynamic_conv

torch.fx.wrap("dynamic_conv")


class CondConv2d(AttendedConv):
    """Convolution whose kernel is, for each sample, a sum of ``kernels`` learned ones, each weighed by a sigmoid.

    ``y_b = (sum_k a_bk W_k) * x_b + sum_k a_bk b_k`` with ``a = sigmoid(fc(mean(x)))`` (eq. 1 and 2 of the paper).

    Shape: (B, in_channels, H, W) to (B, out_channels, Ho, Wo), or both without B, as in ``nn.Conv2d``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            ``nn.Conv2d``; ``padding="same"`` is allowed with any stride.
        kernels: K, number of kernels ("experts").

    Parameters:
        weight (K * out_channels, in_channels / groups, kh, kw): kernel k is ``weight[k * out : (k + 1) * out]``.
        bias (K * out_channels) or None: stacked likewise.
        attention: a `RoutingAttention`.

    Raises:
        ValueError: for arguments that fit no convolution, or less than 1 kernel.
    """

    dims = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: Padding = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        kernels: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry: Any = in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        super().__init__(*geometry, kernels=kernels, device=device, dtype=dtype)
        self.attention = RoutingAttention(in_channels, kernels, self.dims, self.weight.device, self.weight.dtype)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Module,
        *,
        generator: torch.Generator | None = None,
        kernels: int = 4,
        noise: float = 0.1,
    ) -> Self:
        """Make a layer that computes what ``conv`` computes.

        The routing starts at 1/2 for every kernel and sample, and the kernels as ``2 / K (W + d_k)``, where the random
        ``d_k`` sum to zero. Because the kernels differ they are routed differently from the first step on.

        Args:
            conv: the convolution; weights are copied.
            generator: a CPU generator for the ``d_k``; the global one by default.
            kernels: as in the constructor.
            noise: standard deviation of ``d_k`` relative to the root mean square of ``W``, at most 1.
        """
        part = 2 / checked_count(kernels, "kernels", cls.least_kernels)
        layer = cls._start(conv, part, noise, generator, kernels=kernels)
        layer.attention.to_empty(device=layer.weight.device)
        layer.attention.make_neutral()
        made: Self = layer
        return made

    def forward(self, input: Tensor) -> Tensor:
        return dynamic_conv(
            input,
            self.weight,
            self.bias,
            self.attention(input),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.padding_mode,
        )
