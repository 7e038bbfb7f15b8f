"""Convolution with DCLS kernels that are never built (arXiv 2112.03740): from the cells alone that elements touch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._geometry import is_channels_last, memory_format, stored_as
from .large_depthwise import MAX_STRIDE
from .ops._autocast import autocast_like_conv
from .ops._load import use_kernels
from .ops.dcls_sparse_conv2d import dcls_sparse_depthwise_conv2d_ref
from .ops.dcls_sparse_conv2d import forward as dcls_sparse_depthwise_conv2d

_LANES = 8
_GATHERING = 70
"""What interpolating the image at one element costs, in multiply-adds of the convolution."""


def dcls_sparse_conv(
    input: Tensor,
    weight: Tensor,
    P: Tensor,
    bias: Tensor | None,
    size: Sequence[int],
    axes: Sequence[int],
    normalise: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    right_slope: bool = False,
) -> Tensor:
    """Convolve each channel with the taps of its elements alone, in one or two dimensions.

    Args:
        input: (B, C, *image). The result is channels_last where it is.
        weight: (O, 1, count), O a multiple of C: output o reads channel ``o // (O / C)``.
        P: (D, O, 1, count), positions in pixels: ``P[d]`` moves along axis ``axes[d]``, relative to ``size // 2``.
        bias: (O) or None.
        size, axes, normalise, right_slope: of the kernel, D sizes, as in `scatter_ref`.
        stride: D numbers.
        padding: pixels of zeros: before and after the first axis, then the second.

    Returns:
        (B, O, *out), in the dtype of the input, or in that of autocast. Elements are drawn in single precision at
        least.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check(input, weight, P, bias, size)
    if len(size) == 1:  # an image of one row, whose elements stay in it
        whole = dcls_sparse_conv(
            input.unsqueeze(-2),
            weight,
            torch.cat((torch.zeros_like(P), P)),
            bias,
            (1, *size),
            (0, 1),
            normalise,
            (1, *stride),
            (0, 0, *padding),
            right_slope,
        )
        return whole.squeeze(-2)
    y = _convolve(input, weight, P, size, axes, normalise, stride, padding, right_slope)
    return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)


def dcls_gather_conv2d(
    input: Tensor,
    weight: Tensor,
    P: Tensor,
    bias: Tensor | None,
    size: Sequence[int],
    axes: Sequence[int],
    normalise: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int = 1,
    right_slope: bool = False,
) -> Tensor:
    """Convolve with elements whose positions all output channels share, at a cost that the grid has no part in.

    Each input channel is interpolated once for each element, then one 1x1 convolution mixes channels and elements:
    ``O I count`` multiply-adds for a pixel instead of ``O I kh kw``. The interpolated channels take
    ``B C count Ho Wo`` numbers.

    Args:
        input: (B, C, H, W). The result is channels_last where it is.
        weight: (O, C / groups, count).
        P: (2, 1, C / groups, count), positions in pixels, as in `dcls_sparse_conv`.
        bias: (O) or None.
        size, axes, normalise, right_slope: of the kernel, two sizes, as in `scatter_ref`.
        stride: two numbers.
        padding: pixels of zeros: top, bottom, left, right.

    Returns:
        (B, O, Ho, Wo), in the dtype of the input, or in that of autocast.

    Raises:
        ValueError: if the shapes do not fit.
    """
    outputs, inputs, count = weight.shape
    channels = inputs * groups
    if input.dim() != 4 or input.shape[1] != channels:
        raise ValueError(f"input must be (B, {channels}, H, W) for this weight and groups, got {tuple(input.shape)}")
    if P.shape != (2, 1, inputs, count):
        raise ValueError(f"P must have shape {(2, 1, inputs, count)}, got {tuple(P.shape)}")
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"bias must have shape {(outputs,)}, got {tuple(bias.shape)}")
    places = P.expand(2, groups, inputs, count).reshape(2, channels * count, 1, 1)
    ones = torch.ones(channels * count, 1, 1, dtype=P.dtype, device=P.device)
    sampled = _convolve(input, ones, places, size, axes, normalise, stride, padding, right_slope)
    mixing = weight.reshape(outputs, inputs * count, 1, 1)
    y = F.conv2d(sampled, mixing.to(sampled.dtype), None if bias is None else bias.to(sampled.dtype), groups=groups)
    return stored_as(y, memory_format(input)) if is_channels_last(input) else y


def sparse_wins(
    input: Tensor, count: int, size: Sequence[int], stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0,) * 4
) -> bool:
    """Whether `dcls_sparse_conv` is faster than building kernels and convolving with them by `large_depthwise_conv2d`.

    As measured by ``python -m benchmarks.dcls_sparse --all``, in both passes. Drawn at random, ``count`` elements leave
    ``taps`` cells of a kernel that are not zero; the dense kernel has ``met`` that meet the image, on average over the
    outputs. False where the kernels are not in use, and on other devices than the CPU.

    Args:
        input: (B, C, *image).
        count: elements of each kernel.
        size, stride, padding: as in `dcls_sparse_conv`.
    """
    if input.device.type != "cpu" or not use_kernels(input):
        return False
    cells, met, pixels, width = math.prod(size), 1.0, 1, 1
    for axis, (extent, step) in enumerate(zip(size, stride, strict=True)):
        before, after = padding[2 * axis], padding[2 * axis + 1]
        width = (input.shape[2 + axis] + before + after - extent) // step + 1
        met *= max(extent - (_missed(before, step, width) + _missed(after, step, width)) / max(width, 1), 0.0)
        pixels *= width
    flat = len(size) == 1 or min(size) == 1
    touched = 2 if flat else 4  # cells of an element
    taps = cells * -math.expm1(-touched * count / cells)
    taps *= -(-width // _LANES) * _LANES / max(width, 1)  # rows of outputs are computed in whole vectors
    strides = math.prod(stride)
    overhead = (5 if flat else 20) * (2 * strides if strides > 1 else 1) + 500 / max(pixels, 1)
    return 1.1 * (taps + overhead) < met


def gather_wins(input: Tensor, count: int, size: Sequence[int], outputs: int) -> bool:
    """Whether `dcls_gather_conv2d` is faster than building kernels and convolving with them by ``F.conv2d``.

    As measured by ``python -m benchmarks.dcls_sparse --all``, in both passes. False where the kernels are not in use,
    and on other devices than the CPU.

    Args:
        input: (B, C, H, W).
        count: elements of each kernel.
        size: of the kernel.
        outputs: output channels of a group.
    """
    return (
        input.device.type == "cpu" and use_kernels(input) and count * (outputs + _GATHERING) < math.prod(size) * outputs
    )


def _missed(padding: int, stride: int, outputs: int) -> int:
    """Of the outputs on one axis together, kernel cells on the padding of one side."""
    reaching = min(-(-padding // stride), outputs)
    return reaching * padding - stride * reaching * (reaching - 1) // 2


def _convolve(
    input: Tensor,
    weight: Tensor,
    P: Tensor,
    size: Sequence[int],
    axes: Sequence[int],
    normalise: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    right_slope: bool,
) -> Tensor:
    input = autocast_like_conv(input)
    dtype = torch.promote_types(input.dtype, torch.float32)
    kernels = max(stride) <= MAX_STRIDE and use_kernels(input)
    convolve = dcls_sparse_depthwise_conv2d if kernels else dcls_sparse_depthwise_conv2d_ref
    options = list(size), list(axes), normalise, right_slope, list(stride), list(padding)
    y: Tensor = convolve(input, weight.to(dtype), P.to(dtype), *options)
    return y


def _check(input: Tensor, weight: Tensor, P: Tensor, bias: Tensor | None, size: Sequence[int]) -> None:
    dims = len(size)
    if dims not in (1, 2) or input.dim() != dims + 2:
        raise ValueError(f"input must be (B, C, *image) for a kernel {tuple(size)}, got {tuple(input.shape)}")
    channels, outputs = input.shape[1], weight.shape[0]
    if weight.dim() != 3 or weight.shape[1] != 1 or outputs % max(channels, 1):
        raise ValueError(f"weight must be (a multiple of {channels}, 1, elements), got {tuple(weight.shape)}")
    if P.shape != (dims, *weight.shape):
        raise ValueError(f"P must have shape {(dims, *weight.shape)}, got {tuple(P.shape)}")
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"bias must have shape {(outputs,)}, got {tuple(bias.shape)}")
