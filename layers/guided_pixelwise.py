"""Convolution with generated kernels for each sample and pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from ._geometry import IntOrInts, Padding, conv_nd, memory_format, pad, stored_as
from .guided_window import (
    Window,
    batched,
    check_channels,
    check_pixels,
    check_taps,
    checked_dtype,
    resolve_window,
)
from .ops._autocast import autocast_like_conv
from .ops._load import use_ops
from .ops.guided_channelwise_conv2d import forward as channelwise
from .ops.guided_channelwise_conv2d import guided_channelwise_conv2d_ref
from .ops.guided_local_conv2d import forward as local
from .ops.guided_local_conv2d import guided_local_conv2d_ref

LowRank = tuple[Tensor, Tensor]
"""Basis (R, Ci / groups, taps, Co) and coefficients (B, R, Ho, Wo)."""


def guided_local_conv2d(
    x: Tensor,
    w: Tensor | LowRank,
    bias: Tensor | None = None,
    kernel_size: IntOrInts = 3,
    stride: IntOrInts = 1,
    padding: Padding = "same",
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """Convolve with a kernel for each sample and output pixel (De Brabandere et al. 2016, arXiv 1605.09673, sec. 3.2).

    ``y[b, o, p] = bias[b, o] + sum_in w[b, i, n, o, p] x[b, i, p + n]``, the sum over the input channels i of o's group
    and the taps n, row by row.

    Args:
        x: (B, Ci, H, W), or (Ci, H, W). The result is channels_last where it is.
        w: (B, Ci / groups, kh * kw, Co, Ho, Wo); for an x without batch also without it. Or the pair basis
            (R, Ci / groups, kh * kw, Co) and coefficients (B, R, Ho, Wo), which means their products' sum over R and is
            never multiplied out: one convolution with R * Co outputs takes as many multiply-adds, and less memory
            unless R is larger than (Ci / groups) * kh * kw.
        bias: (Co) or (B, Co) or None.
        kernel_size: kh, kw, or one number for both.
        stride, padding, dilation, groups, padding_mode: as in ``nn.Conv2d``; ``padding="same"`` with any stride.

    Returns:
        (B, Co, Ho, Wo), or (Co, Ho, Wo).

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together.
    """
    if isinstance(w, tuple | list):
        if len(w) != 2:
            raise ValueError(f"w must be one tensor or the two of basis and coefficients, got {len(w)}")
        return _low_rank(x, w[0], w[1], bias, kernel_size, stride, padding, dilation, groups, padding_mode)
    if w.dim() not in (5, 6):
        raise ValueError(f"w must be (B, Ci / groups, taps, Co, Ho, Wo), got {tuple(w.shape)}")
    image, (weight,), own_bias = batched(x, [("w", w, 6)], bias, w.shape[-3], padding_mode)
    check_channels(image, weight.shape[1], weight.shape[3], groups, "w", weight, "(B, Ci / groups, taps, Co, Ho, Wo)")
    window = resolve_window(image.shape[2:], kernel_size, stride, padding, dilation)
    check_taps("w", weight, 2, window)
    check_pixels("w", weight, window)
    convolve = local if use_ops(image) else guided_local_conv2d_ref
    image, padding_left = _zero_padded(image, window, padding_mode)
    y: Tensor = convolve(image, weight, own_bias, *_geometry(window, padding_left), groups)
    return y.squeeze(0) if x.dim() == 3 else y


def guided_channelwise_conv2d(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    kernel_size: IntOrInts = 3,
    stride: IntOrInts = 1,
    padding: Padding = "same",
    dilation: IntOrInts = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """Convolve each channel with a kernel for each sample and output pixel (Tang et al. 2019, arXiv 1908.01238, eq. 4).

    ``y[b, o, p] = bias[b, o] + sum_n w[b, o, n, p] x[b, o // (Co / Ci), p + n]``, the sum over the taps n, row by row.

    Args:
        x: (B, Ci, H, W), or (Ci, H, W). The result is channels_last where it is.
        w: (B, Co, kh * kw, Ho, Wo), Co a multiple of Ci; for an x without batch also without it.
        bias: (Co) or (B, Co) or None.
        kernel_size: kh, kw, or one number for both.
        stride, padding, dilation, padding_mode: as in ``nn.Conv2d``; ``padding="same"`` with any stride.

    Returns:
        (B, Co, Ho, Wo), or (Co, Ho, Wo).

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together.
    """
    if w.dim() not in (4, 5):
        raise ValueError(f"w must be (B, Co, taps, Ho, Wo), got {tuple(w.shape)}")
    image, (weight,), own_bias = batched(x, [("w", w, 5)], bias, w.shape[-4], padding_mode)
    if weight.shape[1] % image.shape[1]:
        raise ValueError(
            f"w must have a multiple of the input's {image.shape[1]} channels, "
            f"got {weight.shape[1]}: {tuple(weight.shape)}"
        )
    window = resolve_window(image.shape[2:], kernel_size, stride, padding, dilation)
    check_taps("w", weight, 2, window)
    check_pixels("w", weight, window)
    convolve = channelwise if use_ops(image) else guided_channelwise_conv2d_ref
    image, padding_left = _zero_padded(image, window, padding_mode)
    y: Tensor = convolve(image, weight, own_bias, *_geometry(window, padding_left))
    return y.squeeze(0) if x.dim() == 3 else y


def _zero_padded(x: Tensor, window: Window, padding_mode: str) -> tuple[Tensor, list[tuple[int, int]]]:
    """The image, padded here unless by zeros, and the zeros that are left for the op to add."""
    if padding_mode == "zeros":
        return x, window.widths
    padded = pad(x, window.widths, padding_mode)
    return stored_as(padded, memory_format(x)), [(0, 0)] * 2  # circular padding loses the format


def _geometry(window: Window, widths: list[tuple[int, int]]) -> tuple[list[int], list[int], list[int], list[int]]:
    return list(window.kernel_size), list(window.stride), [*widths[0], *widths[1]], list(window.dilation)


def _low_rank(
    x: Tensor,
    basis: Tensor,
    coefficients: Tensor,
    bias: Tensor | None,
    kernel_size: IntOrInts,
    stride: IntOrInts,
    padding: Padding,
    dilation: IntOrInts,
    groups: int,
    padding_mode: str,
) -> Tensor:
    if basis.dim() != 4:
        raise ValueError(f"the basis must be (R, Ci / groups, taps, Co), got {tuple(basis.shape)}")
    rank, channels, _, out = basis.shape
    image, (shares,), own_bias = batched(x, [("the coefficients", coefficients, 4)], bias, out, padding_mode)
    check_channels(image, channels, out, groups, "the basis", basis, "(R, Ci / groups, taps, Co)")
    window = resolve_window(image.shape[2:], kernel_size, stride, padding, dilation)
    check_taps("the basis", basis, 2, window)
    check_pixels("the coefficients", shares, window)
    if shares.shape[1] != rank or rank < 1:
        raise ValueError(
            f"there must be a coefficient for each kernel of the basis, got {shares.shape[1]} and {rank}: "
            f"{tuple(coefficients.shape)} and {tuple(basis.shape)}"
        )
    basis = checked_dtype("the basis", autocast_like_conv(basis), image)
    # A group's outputs must lie side by side: (groups, R, Co / groups).
    kernels = basis.permute(0, 3, 1, 2).unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 2)
    kernels = kernels.unflatten(2, window.kernel_size)
    y = conv_nd(image, kernels, None, window.stride, window.widths, window.dilation, groups, padding_mode)
    total = _weighted_sum(y.unflatten(1, (groups, rank, -1)), shares)
    if own_bias is not None:
        total = total + own_bias[..., None, None]
    total = stored_as(total.to(image.dtype), memory_format(image))
    return total.squeeze(0) if x.dim() == 3 else total


def _weighted_sum(y: Tensor, shares: Tensor) -> Tensor:
    """(B, groups, R, O, H, W) and (B, R, H, W) to the sum over R, (B, groups * O, H, W)."""
    # Term by term and not as one product, which would not keep channels_last. Half precision would round every sum.
    shares = shares.to(torch.promote_types(shares.dtype, torch.float32))
    total = None
    for term, share in zip(y.unbind(2), shares.unbind(1), strict=True):
        share = share[:, None, None]
        total = term * share if total is None else total + term * share
    assert total is not None
    return total.flatten(1, 2)
