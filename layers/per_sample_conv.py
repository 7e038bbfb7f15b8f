"""Convolution of each sample with a kernel of its own: the formulas, all of the same function."""

from __future__ import annotations

import torch
from torch import Tensor

from ._geometry import conv_nd, effective_size, is_channels_last, output_size, pad, windows


def grouped(
    x: Tensor,
    kernels: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    widths: list[tuple[int, int]],
    dilation: tuple[int, ...],
    groups: int,
    padding_mode: str,
) -> Tensor:
    """One convolution with a group for each sample. It cannot be exported with a dynamic batch, nor be empty.

    Args:
        x: (B, C, *size).
        kernels: (B, O, C / groups, *kernel_size).
        bias: (B, O) or None.
        stride, widths, dilation, groups, padding_mode: as in `conv_nd`, for one sample.

    Returns:
        (B, O, *out).
    """
    batch, out = kernels.shape[:2]
    y = conv_nd(
        x.reshape(1, -1, *x.shape[2:]),
        kernels.flatten(0, 1),
        None if bias is None else bias.flatten(),
        stride,
        widths,
        dilation,
        batch * groups,
        padding_mode,
    )
    return y.reshape(batch, out, *y.shape[2:])


def loop(
    x: Tensor,
    kernels: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    widths: list[tuple[int, int]],
    dilation: tuple[int, ...],
    groups: int,
    padding_mode: str,
) -> Tensor:
    """One convolution after the other; arguments as in `grouped`. It cannot be exported with a dynamic batch."""
    # Split once, not indexed for each sample: the gradient of an index is as large as the whole.
    biases = [None] * x.shape[0] if bias is None else bias.unbind()
    samples = [
        conv_nd(sample, kernel, own_bias, stride, widths, dilation, groups, padding_mode)
        for sample, kernel, own_bias in zip(x.split(1), kernels.unbind(), biases, strict=True)
    ]
    return samples[0] if len(samples) == 1 else torch.cat(samples)


def matmul(x: Tensor, kernels: Tensor, bias: Tensor | None, stride: tuple[int, ...], groups: int) -> Tensor:
    """A batched matrix product, for kernels of one tap; ``x`` is padded already, other arguments as in `grouped`."""
    for axis, step in enumerate(stride, start=2):
        if step > 1:
            x = x.movedim(axis, 0)[::step].movedim(0, axis)
    batch, out = kernels.shape[:2]
    size = x.shape[2:]
    if groups == 1 and is_channels_last(x):  # rows of pixels, so that the result is channels_last by itself
        rows, columns = x.flatten(2).transpose(1, 2), kernels.reshape(batch, out, -1).transpose(1, 2)
        product = torch.bmm(rows, columns) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, columns)
        y: Tensor = product.transpose(1, 2).unflatten(2, size)
        return y
    rows = kernels.reshape(batch * groups, out // groups, -1)
    columns = x.reshape(batch * groups, rows.shape[2], -1)
    if bias is None:
        return torch.bmm(rows, columns).view(batch, out, *size)
    return torch.baddbmm(bias.reshape(batch * groups, out // groups, 1), rows, columns).view(batch, out, *size)


def tap_by_tap(
    x: Tensor,
    kernels: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    widths: list[tuple[int, int]],
    dilation: tuple[int, ...],
    groups: int,
    padding_mode: str,
) -> Tensor:
    """A sum over taps of products with the shifted image, in two dimensions; arguments as in `grouped`.

    Any batch will do, an empty one and a dynamic one too.
    """
    height, width = output_size(x.shape[2:], widths, effective_size(kernels.shape[3:], dilation), stride)
    x = pad(x, widths, padding_mode)
    batch, out, channels, rows, columns = kernels.shape
    own = kernels.reshape(batch, groups, out // groups, channels, rows * columns)
    total = None
    for tap, seen in enumerate(windows(x, (height, width), (rows, columns), stride, dilation)):
        term = own[..., tap] @ seen.reshape(batch, groups, channels, height * width)
        term = term.to(torch.promote_types(x.dtype, torch.float32))  # half precision would round every sum
        total = term if total is None else total + term
    assert total is not None
    if bias is not None:
        total = total + bias.reshape(batch, groups, out // groups, 1)
    return total.reshape(batch, out, height, width).to(x.dtype)
