"""Convolution with a generated kernel for each sample, by whichever of the equal formulas is cheapest."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ._exporting import is_exporting
from ._geometry import IntOrInts, Padding, is_channels_last, memory_format, pad, stored_as
from .guided_window import Window, batched, check_channels, check_taps, resolve_window
from .per_sample_conv import grouped, loop, matmul, tap_by_tap

Formula = Literal["grouped", "loop", "matmul", "taps"]


def guided_conv2d(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    kernel_size: IntOrInts = 3,
    stride: IntOrInts = 1,
    padding: Padding = "same",
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    formula: Formula | None = None,
) -> Tensor:
    """Convolve each sample with its own kernel (De Brabandere et al. 2016, arXiv 1605.09673).

    ``y[b, o] = bias[b, o] + sum_in w[b, i, n, o] x[b, i, . + n]``, the sum over the input channels i of o's group and
    the taps n, row by row.

    Args:
        x: (B, Ci, H, W), or (Ci, H, W). The result is channels_last where it is.
        w: (B, Ci / groups, kh * kw, Co); for an x without batch also without it. What is stored as
            (B, Co, Ci / groups, kh * kw) and permuted to this needs no copy.
        bias: (Co) or (B, Co) or None.
        kernel_size: kh, kw, or one number for both.
        stride, padding, dilation, groups, padding_mode: as in ``nn.Conv2d``; ``padding="same"`` with any stride.
        formula: which way to compute it. All give the same numbers: ``"grouped"`` is one convolution with a group for
            each sample, ``"loop"`` one convolution for each sample, ``"matmul"`` (1x1 kernels only) a batched matrix
            product, ``"taps"`` a sum over taps. By default the cheapest for the shapes at hand.

    Returns:
        (B, Co, Ho, Wo), or (Co, Ho, Wo).

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together.
    """
    if formula is not None and formula not in get_args(Formula):
        raise ValueError(f"formula must be one of {', '.join(get_args(Formula))}, got {formula!r}")
    if w.dim() not in (3, 4):
        raise ValueError(f"w must have 4 axes, (B, Ci / groups, taps, Co), got {tuple(w.shape)}")
    image, (weight,), own_bias = batched(x, [("w", w, 4)], bias, w.shape[-1], padding_mode)
    check_channels(image, weight.shape[1], weight.shape[3], groups, "w", weight, "(B, Ci / groups, taps, Co)")
    window = resolve_window(image.shape[2:], kernel_size, stride, padding, dilation)
    check_taps("w", weight, 2, window)
    kernels = weight.permute(0, 3, 1, 2).unflatten(3, window.kernel_size)
    if formula is None:
        formula = choose_formula(image, kernels, groups, window.size[0] * window.size[1])
    elif image.shape[0] == 0:
        formula = "taps"
    if formula == "matmul" and window.taps > 1:
        raise ValueError(f'formula "matmul" is for 1x1 kernels, got {window.kernel_size}')
    y = _convolve(image, kernels, own_bias, window, groups, padding_mode, formula)
    y = stored_as(y, memory_format(image))
    return y.squeeze(0) if x.dim() == 3 else y


def _convolve(
    x: Tensor,
    kernels: Tensor,
    bias: Tensor | None,
    window: Window,
    groups: int,
    padding_mode: str,
    formula: Formula,
) -> Tensor:
    if formula == "matmul":
        return matmul(pad(x, window.widths, padding_mode), kernels, bias, window.stride, groups)
    compute = {"grouped": grouped, "loop": loop, "taps": tap_by_tap}[formula]
    return compute(x, kernels, bias, window.stride, window.widths, window.dilation, groups, padding_mode)


def choose_formula(x: Tensor, kernels: Tensor, groups: int, pixels: int) -> Formula:
    """The cheapest formula for x (B, C, H, W), kernels (B, O, C / groups, kh, kw) and so many output pixels.

    Measured on the CPU; on GPUs a launch for each sample costs more than it can gain. A group or a turn for each sample
    cannot be exported with a dynamic batch; ``"taps"`` can. Turns are unrolled by a compiler, into a new graph for each
    size of the batch.
    """
    if is_exporting() or x.shape[0] == 0:
        return "taps"
    out, channels, rows, columns = kernels.shape[1:]
    if rows * columns == 1:
        return "matmul"
    if x.shape[0] == 1:
        return "loop"
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return "grouped"
    numbers = out * channels * rows * columns
    if is_channels_last(x):  # which one convolution with a group for each sample would leave, and come back to
        return "loop" if numbers * pixels >= _LEAST_WORK else "grouped"
    # On small images torch's grouped convolution is slow at bringing large kernels into the order that it computes in.
    return "loop" if groups == 1 and numbers > _LARGE_KERNEL and pixels <= _SMALL_IMAGE else "grouped"


_LEAST_WORK = 2_000_000
"""Multiply-adds of a sample that are worth a call for it alone."""

_LARGE_KERNEL = 2**20
_SMALL_IMAGE = 100


def guided_depthwise_conv2d(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: Padding = "same",
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """Mix the channels of each pixel with the sample's own matrix: a guided 1x1 convolution.

    ``y[b, o] = bias[b, o] + sum_i w[b, i, o] x[b, i]`` (Tang et al. 2019, arXiv 1908.01238, sec. 3.2).

    Args:
        x: (B, Ci, H, W), or (Ci, H, W). The result is channels_last where it is.
        w: (B, Ci / groups, Co); for an x without batch also without it.
        bias: (Co) or (B, Co) or None.
        stride, padding, dilation, groups, padding_mode: as in ``nn.Conv2d`` with ``kernel_size=1``.

    Returns:
        (B, Co, Ho, Wo), or (Co, Ho, Wo).

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together.
    """
    if w.dim() not in (2, 3):
        raise ValueError(f"w must be (B, Ci / groups, Co), got {tuple(w.shape)}")
    return guided_conv2d(x, w.unsqueeze(-2), bias, 1, stride, padding, dilation, groups, padding_mode)
