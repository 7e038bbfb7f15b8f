"""The functional forms of padding-free convolution: beyond its border the image is continued by polynomials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ._geometry import IntOrInts, Padding, conv_nd, is_channels_last, memory_format, stored_as
from .border_bands import banded_conv
from .border_geometry import BorderConv, fitting_bias, fitting_kernel, resolve_border_conv
from .extrapolation import Order, check_order, extrapolate_pad, normalise_order
from .ops import padding_free_conv as op
from .ops._load import want_ops

torch.fx.wrap("padding_free_conv")
torch.fx.wrap("padding_free_conv1d")
torch.fx.wrap("padding_free_conv2d")
torch.fx.wrap("padding_free_conv3d")

ConvOrder: TypeAlias = Order | Literal["padding"]
"""Degrees as `extrapolate_pad` takes them, or ``"padding"``: that of each side is the number of pixels it is padded."""


def padding_free_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    order: ConvOrder | None = None,
    edge_weight: Tensor | None = None,
    keep_img_grad_at_invalid: bool = True,
    *,
    edge_bias: Tensor | None = None,
) -> Tensor:
    """Convolve an image that is continued beyond its border by polynomials, in one, two or three dimensions.

    With the default order this is the convolution of Leng and Thiyagalingam, "Padding-free Convolution based on
    Preservation of Differential Characteristics of Kernels", 2022: at the border it equals the nearest full window
    times a kernel transformed for the shift; any other order, stride, dilation and size goes beyond it. An image that
    is a polynomial of this degree along each axis is convolved exactly everywhere. See `extrapolate_pad` for the
    extrapolation and `noise_gain` for its price.

    An output is at the border (published: invalid) if its window, from its first tap to its last, crosses the border
    of the image.

    Args:
        input: (B, C, *size), or (C, *size). The result is channels_last where it is.
        weight: (O, C / groups, *kernel_size), cross-correlated as in ``F.conv2d``.
        bias: (O) or None.
        stride, dilation, groups: as in ``F.conv2d``.
        padding: pixels that the image is extended by on each side: one number, one for each axis, ``"valid"``, or
            ``"same"`` with any stride, then as TensorFlow does.
        order: degree of the polynomials: one number, one for each axis, or (before, after) for each; 0 repeats the
            border. ``"padding"``: as many as pixels are added on that side (Gupta and Ramani 1978). By default
            ``kernel_size - 1`` of each axis.
        edge_weight: a kernel of its own for the outputs at the border, of the shape of ``weight``, which is used there
            by default.
        keep_img_grad_at_invalid: whether outputs at the border pass gradients to the image. Those to the kernels and
            biases are the same either way.
        edge_bias: (O), the bias of the outputs at the border; ``bias`` by default.

    Returns:
        (B, O, *out), or (O, *out).

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, a number is out of range, the kernel is larger
            than the padded input, or an axis has fewer than ``order + 1`` pixels on a side that is padded.
    """
    conv = resolve_border_conv(input, weight, bias, stride, padding, dilation, groups)
    orders = resolved_order(order, conv.weight.shape[2:], conv.widths)
    check_order(conv.size, conv.widths, orders, conv.image.dtype)
    if edge_weight is None and edge_bias is None:
        y = _one_kernel(conv, orders, keep_img_grad_at_invalid)
    else:
        kernel, offset = conv.weight, conv.bias
        if edge_weight is not None:
            kernel = fitting_kernel("edge_weight", edge_weight, weight.shape, conv.image)
        if edge_bias is not None:
            offset = fitting_bias("edge_bias", edge_bias, weight, conv.image)
        y = banded_conv(conv, orders, kernel, offset, keep_img_grad_at_invalid)
    if is_channels_last(conv.image):
        y = stored_as(y, memory_format(conv.image))
    return y.squeeze(0) if input.dim() < weight.dim() else y


def padding_free_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    order: ConvOrder | None = None,
    edge_weight: Tensor | None = None,
    keep_img_grad_at_invalid: bool = True,
    *,
    edge_bias: Tensor | None = None,
) -> Tensor:
    """`padding_free_conv` of input (B, C, L) or (C, L) with weight (O, C / groups, k).

    Raises:
        ValueError: for a weight of other axes, and as there.
    """
    _check_axes(weight, 1)
    geometry = stride, padding, dilation, groups
    return padding_free_conv(
        input, weight, bias, *geometry, order, edge_weight, keep_img_grad_at_invalid, edge_bias=edge_bias
    )


def padding_free_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    order: ConvOrder | None = None,
    edge_weight: Tensor | None = None,
    keep_img_grad_at_invalid: bool = True,
    *,
    edge_bias: Tensor | None = None,
) -> Tensor:
    """`padding_free_conv` of input (B, C, H, W) or (C, H, W) with weight (O, C / groups, kh, kw).

    Raises:
        ValueError: for a weight of other axes, and as there.
    """
    _check_axes(weight, 2)
    geometry = stride, padding, dilation, groups
    return padding_free_conv(
        input, weight, bias, *geometry, order, edge_weight, keep_img_grad_at_invalid, edge_bias=edge_bias
    )


def padding_free_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    order: ConvOrder | None = None,
    edge_weight: Tensor | None = None,
    keep_img_grad_at_invalid: bool = True,
    *,
    edge_bias: Tensor | None = None,
) -> Tensor:
    """`padding_free_conv` of input (B, C, D, H, W) or (C, D, H, W) with weight (O, C / groups, kd, kh, kw).

    Raises:
        ValueError: for a weight of other axes, and as there.
    """
    _check_axes(weight, 3)
    geometry = stride, padding, dilation, groups
    return padding_free_conv(
        input, weight, bias, *geometry, order, edge_weight, keep_img_grad_at_invalid, edge_bias=edge_bias
    )


def _one_kernel(conv: BorderConv, orders: tuple[tuple[int, int], ...], keep_img_grad: bool) -> Tensor:
    image, weight, bias, stride, widths, dilation, groups, _ = conv
    if not any(before or after for before, after in widths):
        return conv_nd(image, weight, bias, stride, widths, dilation, groups)
    if want_ops(image):
        padding, degrees = ([side for pair in pairs for side in pair] for pairs in (widths, orders))
        y: Tensor = op.forward(
            image, weight, bias, list(stride), padding, list(dilation), groups, degrees, keep_img_grad
        )
        return y
    if not keep_img_grad:
        return banded_conv(conv, orders, weight, bias, keep_img_grad)
    padded = extrapolate_pad(image, widths, orders)
    return conv_nd(padded, weight, bias, stride, [(0, 0)] * len(widths), dilation, groups)


def resolved_order(
    order: ConvOrder | None, kernel_size: Sequence[int], widths: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """The degrees (before, after) of each axis for a kernel of this size and an image padded by ``widths``.

    Raises:
        ValueError: if there are not as many as axes, one is negative, or ``order`` is another word.
    """
    if order is None:
        order = [k - 1 for k in kernel_size]
    elif isinstance(order, str):
        if order != "padding":
            raise ValueError(f'order must be numbers or "padding", got {order!r}')
        return tuple(widths)
    return normalise_order(order, len(widths))


def _check_axes(weight: Tensor, dims: int) -> None:
    if weight.dim() != dims + 2:
        raise ValueError(f"weight must have {dims + 2} axes for {dims} dimensions, got {tuple(weight.shape)}")
