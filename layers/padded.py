"""Convolutions with an explicit polynomial pad in front, which padding-free layers freeze to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._geometry import IntOrInts, Padding, conv_nd, is_channels_last, memory_format, normalise_padding, stored_as
from .border_geometry import resolve_border_conv
from .ops.extrapolate_pad import extrapolate_pad_ref
from .padding_free_conv import ConvOrder, resolved_order

torch.fx.wrap("padded_conv")


def padded_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrInts,
    padding: Padding,
    dilation: IntOrInts,
    groups: int,
    order: ConvOrder | None,
) -> Tensor:
    """`padding_free_conv` of one kernel, always as a pad and a convolution of torch's own operations."""
    conv = resolve_border_conv(input, weight, bias, stride, padding, dilation, groups)
    orders = resolved_order(order, conv.weight.shape[2:], conv.widths)
    padded = extrapolate_pad_ref(
        conv.image, *([side for pair in pairs for side in pair] for pairs in (conv.widths, orders))
    )
    y = conv_nd(padded, conv.weight, conv.bias, conv.stride, [(0, 0)] * len(orders), conv.dilation, groups)
    if is_channels_last(conv.image):
        y = stored_as(y, memory_format(conv.image))
    return y.squeeze(0) if input.dim() < weight.dim() else y


class _Padded:
    order: ConvOrder | None

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
        *,
        order: ConvOrder | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry: Any = in_channels, out_channels, kernel_size, stride, 0, dilation, groups, bias
        super().__init__(*geometry, device=device, dtype=dtype)  # type: ignore[call-arg]
        conv: Any = self
        conv.padding = normalise_padding(padding, len(conv.kernel_size))
        conv.padding_mode = "extrapolate"
        resolved_order(order, conv.kernel_size, [(0, 0)] * len(conv.kernel_size))  # raises where it is none
        conv.order = order

    def forward(self, input: Tensor) -> Tensor:
        conv: Any = self
        geometry = conv.stride, conv.padding, conv.dilation, conv.groups
        return padded_conv(input, conv.weight, conv.bias, *geometry, conv.order)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, order={self.order!r}"  # type: ignore[misc]


class PaddedConv1d(_Padded, nn.Conv1d):
    """An ``nn.Conv1d`` without padding of an image that is first extended by polynomials, as by `extrapolate_pad`.

    All of it are torch's own operations, whatever traces or exports it. ``padding`` may be ``"same"`` with any stride,
    and ``order`` is that of `padding_free_conv`; the parameters are those of ``nn.Conv1d``.
    """


class PaddedConv2d(_Padded, nn.Conv2d):
    """An ``nn.Conv2d`` without padding of an image that is first extended by polynomials, as by `extrapolate_pad`.

    All of it are torch's own operations, whatever traces or exports it. ``padding`` may be ``"same"`` with any stride,
    and ``order`` is that of `padding_free_conv`; the parameters are those of ``nn.Conv2d``.
    """


class PaddedConv3d(_Padded, nn.Conv3d):
    """An ``nn.Conv3d`` without padding of an image that is first extended by polynomials, as by `extrapolate_pad`.

    All of it are torch's own operations, whatever traces or exports it. ``padding`` may be ``"same"`` with any stride,
    and ``order`` is that of `padding_free_conv`; the parameters are those of ``nn.Conv3d``.
    """


PaddedConv = PaddedConv1d | PaddedConv2d | PaddedConv3d
