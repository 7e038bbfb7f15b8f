"""Dynamic convolution: attention over kernels (Chen et al. 2020, arXiv 1912.03458)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from ._geometry import IntOrInts, Padding
from .attended import AttendedConv
from .attention import KernelAttention, checked_count
from .dynamic_conv import dynamic_conv
from .own_net import NetFactory, make_net

torch.fx.wrap("dynamic_conv")


class _DynamicConvNd(AttendedConv):
    """Convolution whose kernel is, for each sample, an attention-weighted sum of ``kernels`` learned ones.

    ``y_b = (sum_k a_bk W_k) * x_b + sum_k a_bk b_k`` with ``a = softmax(fc2(relu(fc1(mean(x)))) / temperature)``
    (eq. 2 and 3 of the paper).

    Shape: (B, in_channels, *size) to (B, out_channels, *out), or both without B, as in ``nn.Conv2d``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            ``nn.Conv2d``; ``padding="same"`` is allowed with any stride.
        kernels: K, number of kernels, at least 2.
        reduction: the attention has ``max(4, in_channels // reduction)`` hidden units.
        temperature: divisor of the attention's logits. The paper starts training at 30 and ends at 1.
        attention: what makes the hidden units, instead of ``relu(fc1(mean(x)))``: a function
            ``(in_channels, hidden) -> nn.Module`` whose module maps (B, in_channels, *size) to (B, hidden) or
            (B, hidden, *any), of which the mean over space is taken; a copy of that module is used. ``fc2``, the
            temperature and the softmax stay.

    Parameters:
        weight (K * out_channels, in_channels / groups, *kernel_size): kernel k is ``weight[k * out : (k + 1) * out]``.
        bias (K * out_channels) or None: stacked likewise.
        attention: a `KernelAttention`.

    Raises:
        ValueError: for arguments that fit no convolution, or fewer than 2 kernels.
        TypeError: if ``attention`` makes no module.
    """

    least_kernels = 2

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
        reduction: int = 4,
        temperature: float = 1.0,
        attention: NetFactory | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry: Any = in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        super().__init__(*geometry, kernels=kernels, device=device, dtype=dtype)
        reduction = checked_count(reduction, "reduction", 1)
        self.attention = self._make_attention(reduction, temperature, attention, self.weight, None)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Module,
        *,
        generator: torch.Generator | None = None,
        kernels: int = 4,
        reduction: int = 4,
        temperature: float = 1.0,
        attention: NetFactory | None = None,
        noise: float = 0.1,
    ) -> Self:
        """Make a layer that computes what ``conv`` computes.

        The attention starts uniform and the kernels as ``W + d_k``, where the random ``d_k`` sum to zero: the mean is
        the conv's kernel, and because the kernels differ the attention has a gradient from the first step.

        Args:
            conv: the convolution; weights are copied.
            generator: a CPU generator for the ``d_k`` and the attention; the global one by default.
            kernels, reduction, temperature, attention: as in the constructor.
            noise: standard deviation of ``d_k`` relative to the root mean square of ``W``, at most 1.
        """
        options = {"kernels": kernels, "reduction": reduction, "temperature": temperature}
        layer = cls._start(conv, 1.0, noise, generator, **options)
        layer.attention = layer._make_attention(reduction, temperature, attention, layer.weight, generator)
        layer.attention.make_neutral()
        made: Self = layer.train(layer.training)
        return made

    def _make_attention(
        self,
        reduction: int,
        temperature: float,
        factory: NetFactory | None,
        like: Tensor,
        generator: torch.Generator | None,
    ) -> KernelAttention:
        hidden, place = max(4, self.in_channels // reduction), (like.device, like.dtype)
        body = None
        if factory is not None:
            body = make_net(factory, "attention", self.in_channels, hidden, *place, generator)
        return KernelAttention(self.in_channels, self.kernels, hidden, self.dims, temperature, *place, body, generator)

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


class DynamicConv1d(_DynamicConvNd):  # noqa: D101
    __doc__ = _DynamicConvNd.__doc__

    dims = 1


class DynamicConv2d(_DynamicConvNd):  # noqa: D101
    __doc__ = _DynamicConvNd.__doc__

    dims = 2


class DynamicConv3d(_DynamicConvNd):  # noqa: D101
    __doc__ = _DynamicConvNd.__doc__

    dims = 3
