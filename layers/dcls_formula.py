"""The ways to compute a convolution with a kernel of elements: the same function, far apart in time."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ._geometry import pad
from .dcls_grid import position_axes
from .dcls_kernel import Version
from .dcls_sparse import dcls_sparse_conv, sparse_wins
from .large_depthwise import large_depthwise_conv2d, large_depthwise_pays
from .ops._autocast import autocast_like_conv

Formula = Literal["auto", "dense", "depthwise", "sparse"]
"""``"dense"`` builds the kernel and runs torch's convolution; ``"depthwise"`` builds it and runs
`large_depthwise_conv2d`; ``"sparse"`` convolves with the taps alone and never builds it; ``"auto"`` takes what is
fastest for the shapes at hand."""

FORMULAS: tuple[Formula, ...] = get_args(Formula)


def is_depthwise(x: Tensor, taps: tuple[int, ...], dilation: tuple[int, ...], groups: int) -> bool:
    """Whether a convolution in one or two dimensions has a kernel for each channel, without gaps."""
    channels = x.shape[-len(taps) - 1]
    return len(taps) <= 2 and groups == channels and max(dilation) == 1


def depthwise_conv(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    widths: list[tuple[int, int]],
    padding_mode: str,
) -> Tensor:
    """`conv_nd` with a group for each channel, in one or two dimensions, by `large_depthwise_conv2d`."""
    if padding_mode != "zeros" or any(before != after for before, after in widths):
        x, widths = pad(x, widths, padding_mode), [(0, 0)] * len(widths)
    amounts = [before for before, _ in widths]
    if kernel.dim() == 4:
        return large_depthwise_conv2d(x, kernel, bias, stride, amounts)
    y = large_depthwise_conv2d(x.unsqueeze(-2), kernel.unsqueeze(-2), bias, (1, *stride), (0, *amounts))
    return y.squeeze(-2)


def depthwise_pays(x: Tensor, weight: Tensor, taps: tuple[int, ...]) -> bool:
    """Whether `depthwise_conv` is faster than torch's convolution with a kernel of this size.

    Args:
        x: (B, C, *size), or (C, *size).
        weight: the elements, (O, I, *dense, count).
    """
    kernel = weight.flatten()[:1].expand(weight.shape[0], 1, *(1,) * (2 - len(taps)), *taps)
    return large_depthwise_pays(x if len(taps) == 2 else x.unsqueeze(-2), kernel)


def sparse_conv(
    x: Tensor,
    weight: Tensor,
    P: Tensor,
    bias: Tensor | None,
    taps: tuple[int, ...],
    version: Version,
    stride: tuple[int, ...],
    widths: list[tuple[int, int]],
    padding_mode: str,
) -> Tensor:
    """Convolve each channel with the taps of its elements alone, in one or two dimensions.

    Args:
        x: (B, C, *size), or (C, *size).
        weight, P, version: as in `construct_kernel`, without dense axes; P along one axis of a kernel of two as well.
        bias: (O) or None.
        taps: size of the kernel that is not built.
        stride, widths, padding_mode: as in `conv_nd`.
    """
    x = autocast_like_conv(x)
    dtype = autocast_like_conv(weight).dtype
    if x.dtype != dtype:
        raise ValueError(f"the input must have the dtype of the weight, {dtype}, got {x.dtype}")
    if padding_mode != "zeros":
        x, widths = pad(x, widths, padding_mode), [(0, 0)] * len(widths)
    axes = list(position_axes(version, P.shape[0]))
    if P.shape[0] < len(taps):  # the elements stay in the middle of the other axis, which has but one cell
        axes = [0, 1] if taps[0] > 1 else [1, 0]
        P = torch.cat((P, torch.zeros_like(P)))
    batched = x if x.dim() == len(taps) + 2 else x.unsqueeze(0)
    padding = [width for pair in widths for width in pair]
    y = dcls_sparse_conv(batched, weight, P, bias, taps, axes, version != "v0", stride, padding, version == "v0")
    return y if x is batched else y.squeeze(0)


def sparse_pays(
    x: Tensor, weight: Tensor, taps: tuple[int, ...], stride: tuple[int, ...], widths: list[tuple[int, int]]
) -> bool:
    """Whether `sparse_conv` is faster than `depthwise_conv`; arguments as there."""
    batched = x if x.dim() == len(taps) + 2 else x.unsqueeze(0)
    return sparse_wins(batched, weight.shape[-1], taps, stride, [width for pair in widths for width in pair])
