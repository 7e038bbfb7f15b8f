"""Plain convolutions that layers freeze to, and the only ones that ``nn.ConvNd`` cannot express."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._base import Conv
from ._geometry import conv_nd, effective_size, is_channels_last, memory_format, pad_widths, stored_as

torch.fx.wrap("grown_conv")


def grown_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: str | tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    padding_mode: str,
    window: tuple[int, ...],
) -> Tensor:
    """Convolve with a kernel that has grown out of one that spanned ``window`` pixels, and was padded for that.

    Args:
        x: (B, C, *size), or (C, *size). The result is channels_last where it is.
        weight: (O, I, *k).
        stride, dilation, groups, padding_mode: as in ``nn.Conv2d``, one number per axis.
        padding: ``"same"``, ``"valid"`` or one number per axis, for a kernel that spans ``window``; half of what the
            kernel is larger is added on each side.
    """
    widths = grown_widths(
        padding, window, effective_size(weight.shape[2:], dilation), stride, x.shape[2 - weight.dim() :]
    )
    y = conv_nd(x, weight, bias, stride, widths, dilation, groups, padding_mode)
    return stored_as(y, memory_format(x)) if is_channels_last(x) else y


def grown_widths(
    padding: str | tuple[int, ...],
    window: tuple[int, ...],
    extents: tuple[int, ...],
    stride: tuple[int, ...],
    input_size: Any,
) -> list[tuple[int, int]]:
    """Pixels to add before and after each axis for a kernel that spans ``extents`` and was ``window`` wide."""
    growth = [(extent - before) // 2 for extent, before in zip(extents, window, strict=True)]
    inner = pad_widths(padding, window, stride, input_size)
    return [(before + g, after + g) for (before, after), g in zip(inner, growth, strict=True)]


class _StridedSame:
    window: tuple[int, ...]

    def forward(self, input: Tensor) -> Tensor:
        conv: Any = self
        geometry = conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode, conv.window
        return grown_conv(input, conv.weight, conv.bias, *geometry)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window}"  # type: ignore[misc]


class StridedSameConv1d(_StridedSame, nn.Conv1d):
    """An ``nn.Conv1d`` with ``padding="same"`` and a stride: ``ceil(input / stride)`` outputs, as in TensorFlow.

    ``window`` is the number of pixels on each axis that the kernel which the padding is meant for spans.
    """


class StridedSameConv2d(_StridedSame, nn.Conv2d):
    """An ``nn.Conv2d`` with ``padding="same"`` and a stride: ``ceil(input / stride)`` outputs, as in TensorFlow.

    ``window`` is the number of pixels on each axis that the kernel which the padding is meant for spans.
    """


class StridedSameConv3d(_StridedSame, nn.Conv3d):
    """An ``nn.Conv3d`` with ``padding="same"`` and a stride: ``ceil(input / stride)`` outputs, as in TensorFlow.

    ``window`` is the number of pixels on each axis that the kernel which the padding is meant for spans.
    """


_PLAIN: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_STRIDED_SAME: tuple[Any, ...] = (StridedSameConv1d, StridedSameConv2d, StridedSameConv3d)


def frozen_conv(
    weight: nn.Parameter,
    bias: nn.Parameter | None,
    stride: tuple[int, ...],
    padding: str | tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    padding_mode: str,
    window: tuple[int, ...],
) -> Conv:
    """The module that computes `grown_conv`: an ``nn.ConvNd`` itself, but for ``"same"`` with a stride a subclass."""
    dims = weight.dim() - 2
    kernel_size = tuple(weight.shape[2:])
    strided_same = padding == "same" and max(stride) > 1
    amounts: Any = padding
    if strided_same:
        amounts = 0
    elif padding != "same":
        widths = grown_widths(padding, window, effective_size(kernel_size, dilation), stride, (0,) * dims)
        amounts = tuple(before for before, _ in widths)
    conv: Conv = (_STRIDED_SAME if strided_same else _PLAIN)[dims - 1](
        weight.shape[1] * groups,
        weight.shape[0],
        kernel_size,
        stride,
        amounts,
        dilation,
        groups,
        bias is not None,
        padding_mode,
        device="meta",
    )
    conv.weight, conv.bias = weight, bias
    if strided_same:
        conv.padding, conv.window = "same", window  # type: ignore[assignment]
    return conv
