"""Omni-dimensional dynamic convolution: four attentions for each sample (Li et al. 2022, arXiv 2209.07947)."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor, nn

from ._geometry import IntOrInts, Padding
from .attended import AttendedConv
from .attention import OmniAttention
from .od_formula import od_conv2d

torch.fx.wrap("od_conv2d")

LEAST_HIDDEN = 16
"""Hidden units that the attention has at least, as published."""


class ODConv2d(AttendedConv):
    """Convolution whose kernel each sample attends to along all of its axes: input channels, filters, taps, kernels.

    ``y_b = f_b ((sum_k a_bk p_b W_k) * (c_b x_b)) + sum_k a_bk b_k`` (eq. 3 of the paper, which has no bias) with the
    attentions of input channels c, filters f, taps p and kernels a of an `OmniAttention`. The published version has a
    batch norm in the attention too, which batches of one sample could not be trained with.

    There is no attention of filters where each is of one input channel and that of no other filter (depthwise), none of
    taps if there is one (1x1), and none of kernels if there is one.

    Shape: (B, in_channels, H, W) to (B, out_channels, Ho, Wo), or both without B, as in ``nn.Conv2d``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            ``nn.Conv2d``; ``padding="same"`` is allowed with any stride.
        kernels: K, number of kernels.
        reduction: the attention has ``max(16, int(in_channels * reduction))`` hidden units.
        temperature: divisor of the attention's logits.

    Parameters:
        weight (K * out_channels, in_channels / groups, kh, kw): kernel k is ``weight[k * out : (k + 1) * out]``.
        bias (K * out_channels) or None: stacked likewise.
        attention: an `OmniAttention`.

    Raises:
        ValueError: for arguments that fit no convolution, or are out of range.
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
        reduction: float = 1 / 16,
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry: Any = in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        super().__init__(*geometry, kernels=kernels, device=device, dtype=dtype)
        if isinstance(reduction, bool) or not isinstance(reduction, Real):
            raise TypeError(f"reduction must be a number, got {reduction!r}")
        if not 0 < reduction < math.inf:
            raise ValueError(f"reduction must be positive and finite, got {reduction}")
        self.attention = self._make_attention(reduction, temperature, None)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Module,
        *,
        generator: torch.Generator | None = None,
        kernels: int = 4,
        reduction: float = 1 / 16,
        temperature: float = 1.0,
        noise: float = 0.1,
    ) -> Self:
        """Make a layer that computes what ``conv`` computes.

        The attentions start at 1, those of kernels at 1 / K, and the kernels as ``W + d_k``, where the random ``d_k``
        sum to zero: all attentions have a gradient from the first step.

        Args:
            conv: the convolution; weights are copied.
            generator: a CPU generator for the ``d_k`` and the attention; the global one by default.
            kernels, reduction, temperature: as in the constructor.
            noise: standard deviation of ``d_k`` relative to the root mean square of ``W``, at most 1. A single kernel
                has none.
        """
        options = {"kernels": kernels, "reduction": reduction, "temperature": temperature}
        layer = cls._start(conv, 1.0, noise, generator, **options)
        layer.attention = layer._make_attention(reduction, temperature, generator)
        layer.attention.make_neutral()
        made: Self = layer.train(layer.training)
        return made

    def _make_attention(self, reduction: float, temperature: float, generator: torch.Generator | None) -> OmniAttention:
        depthwise = self.groups == self.in_channels == self.out_channels
        return OmniAttention(
            self.in_channels,
            0 if depthwise else self.out_channels,
            math.prod(self.kernel_size),
            self.kernels,
            max(LEAST_HIDDEN, int(self.in_channels * reduction)),
            self.dims,
            temperature,
            self.weight.device,
            self.weight.dtype,
            generator,
        )

    def forward(self, input: Tensor) -> Tensor:
        return od_conv2d(
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

    def _at(self, attentions: dict[str, Tensor], weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        mixed, own_bias = super()._at(attentions, weight, bias)
        channel = attentions["channel"].view(self.groups, 1, -1).expand(-1, self.out_channels // self.groups, -1)
        mixed = mixed * channel.reshape(self.out_channels, -1, 1, 1)
        if "filter" in attentions:
            mixed = mixed * attentions["filter"].view(-1, 1, 1, 1)
        if "position" in attentions:
            mixed = mixed * attentions["position"].view(self.kernel_size)
        return mixed, own_bias
