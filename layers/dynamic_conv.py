"""Convolution with a kernel mixed for each sample, by whichever of the equal formulas is cheapest."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ._geometry import (
    IntOrInts,
    Padding,
    conv_nd,
    effective_size,
    is_channels_last,
    normalise_padding,
    output_size,
    pad,
    pad_widths,
    per_axis,
)

Formula = Literal["grouped", "loop", "matmul", "stacked"]


def dynamic_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    attention: Tensor,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    formula: Formula | None = None,
) -> Tensor:
    """Convolve each sample with its own weighted sum of K kernels (Chen et al. 2020, arXiv 1912.03458, eq. 2).

    ``y_b = (sum_k attention_bk W_k) * x_b + sum_k attention_bk bias_k``, in one, two or three dimensions.

    Args:
        x: (B, C, *size), or (C, *size).
        weight: (K * O, C / groups, *kernel_size), kernel k at ``[k * O : (k + 1) * O]``.
        bias: (K * O) or None.
        attention: (B, K), or (K) with an x that has no B.
        stride, padding, dilation, groups, padding_mode: as in ``nn.Conv2d``; ``padding="same"`` with any stride.
        formula: which way to compute it. All give the same numbers: ``"grouped"`` mixes the kernels and runs one
            convolution with a group for each sample, ``"loop"`` one convolution for each sample, ``"matmul"`` (1x1
            kernels only) a batched matrix product; ``"stacked"`` convolves once with all kernels and mixes the
            outputs. By default the cheapest for the shapes at hand.

    Returns:
        (B, O, *out), or (O, *out).

    Raises:
        ValueError: if the shapes do not fit together.
    """
    dims = weight.dim() - 2
    if x.dim() == dims + 1:
        whole = dynamic_conv(
            x[None], weight, bias, attention[None], stride, padding, dilation, groups, padding_mode, formula
        )
        return whole[0]
    _check_shapes(x, weight, bias, attention, groups)
    steps = per_axis(stride, dims, "stride")
    spacing = per_axis(dilation, dims, "dilation")
    window = effective_size(weight.shape[2:], spacing)
    widths = pad_widths(normalise_padding(padding, dims), window, steps, x.shape[2:])
    attention = attention.to(weight.dtype)
    if formula is None:
        pixels = 1
        for size in output_size(x.shape[2:], widths, window, steps):
            pixels *= size
        formula = choose_formula(x, weight, attention.shape[1], groups, pixels)

    if formula == "stacked":
        return _stacked(x, weight, bias, attention, steps, widths, spacing, groups, padding_mode)
    mixed = mix_kernels(weight, attention)
    mixed_bias = None if bias is None else attention @ bias.view(attention.shape[1], -1)
    if formula == "matmul":
        return _matmul(pad(x, widths, padding_mode), mixed, mixed_bias, steps, groups)
    if formula == "loop":
        return _loop(x, mixed, mixed_bias, steps, widths, spacing, groups, padding_mode)
    return _grouped(x, mixed, mixed_bias, steps, widths, spacing, groups, padding_mode)


def choose_formula(x: Tensor, weight: Tensor, kernels: int, groups: int, pixels: int) -> Formula:
    """The cheapest formula for these shapes.

    Mixing kernels first moves each sample's kernel through memory, which costs as much as convolving some number of
    output pixels with it; convolving with all kernels costs ``kernels - 1`` further convolutions of every pixel. A
    graph with a group for each sample cannot be exported with a dynamic batch; ``"stacked"`` can.
    """
    batch = x.shape[0]
    if torch.compiler.is_exporting() or batch == 0:
        return "stacked"
    if batch == 1:
        return "loop"
    taps = weight[0, 0].numel()
    depthwise = weight.shape[1] == 1
    if taps == 1 and not depthwise:
        return "matmul"
    if depthwise:
        return "grouped"
    if (kernels - 1) * pixels < _MIXING_COST_IN_PIXELS[x.device.type != "cpu"]:
        return "stacked"
    return "grouped" if x.device.type != "cpu" else "loop"


# On the CPU, see benchmarks/dynamic.py; elsewhere the convolution of a pixel is cheaper next to moving the kernel.
_MIXING_COST_IN_PIXELS = {False: 256, True: 512}


def mix_kernels(weight: Tensor, attention: Tensor) -> Tensor:
    """``sum_k attention_bk W_k``: weight (K * O, I, *kernel_size) and attention (B, K) to (B, O, I, *kernel_size)."""
    batch, kernels = attention.shape
    channels_last = is_channels_last(weight)
    stored = weight.movedim(1, -1) if channels_last else weight
    shape = (batch, stored.shape[0] // kernels, *stored.shape[1:])
    mixed = (attention @ stored.reshape(kernels, -1)).view(shape)
    return mixed.movedim(-1, 2) if channels_last else mixed


def _check_shapes(x: Tensor, weight: Tensor, bias: Tensor | None, attention: Tensor, groups: int) -> None:
    if x.dim() != weight.dim():
        raise ValueError(f"x must have {weight.dim()} axes (or one less, without batch), got shape {tuple(x.shape)}")
    if attention.dim() != 2 or attention.shape[0] != x.shape[0]:
        raise ValueError(f"attention must be (batch {x.shape[0]}, kernels), got {tuple(attention.shape)}")
    if weight.shape[0] % attention.shape[1]:
        raise ValueError(f"weight has {weight.shape[0]} rows, no multiple of the {attention.shape[1]} kernels")
    if x.shape[1] != weight.shape[1] * groups:
        raise ValueError(f"x must have {weight.shape[1] * groups} channels, got shape {tuple(x.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")


def _stacked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    attention: Tensor,
    stride: tuple[int, ...],
    widths: list[tuple[int, int]],
    dilation: tuple[int, ...],
    groups: int,
    padding_mode: str,
) -> Tensor:
    kernels = attention.shape[1]
    out = weight.shape[0] // kernels
    if groups > 1:  # a group's outputs must lie side by side: (K, groups, O / groups) to (groups, K, O / groups)
        blocks = (kernels, groups, out // groups)
        weight = weight.reshape(*blocks, *weight.shape[1:]).transpose(0, 1).flatten(0, 2)
        if bias is not None:
            bias = bias.view(blocks).transpose(0, 1).flatten()
    y = conv_nd(x, weight, bias, stride, widths, dilation, groups, padding_mode)
    size = y.shape[2:]
    y = y.reshape(-1, groups, kernels, out // groups, *size)
    mixed = torch.einsum("bk,bgk...->bg...", attention, y)
    return mixed.reshape(-1, out, *size)


def _grouped(
    x: Tensor,
    mixed: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    widths: list[tuple[int, int]],
    dilation: tuple[int, ...],
    groups: int,
    padding_mode: str,
) -> Tensor:
    batch, out = mixed.shape[:2]
    y = conv_nd(
        x.reshape(1, -1, *x.shape[2:]),
        mixed.flatten(0, 1),
        None if bias is None else bias.flatten(),
        stride,
        widths,
        dilation,
        batch * groups,
        padding_mode,
    )
    return y.reshape(batch, out, *y.shape[2:])


def _loop(
    x: Tensor,
    mixed: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    widths: list[tuple[int, int]],
    dilation: tuple[int, ...],
    groups: int,
    padding_mode: str,
) -> Tensor:
    samples = [
        conv_nd(
            x[b : b + 1],
            mixed[b],
            None if bias is None else bias[b],
            stride,
            widths,
            dilation,
            groups,
            padding_mode,
        )
        for b in range(x.shape[0])
    ]
    return samples[0] if len(samples) == 1 else torch.cat(samples)


def _matmul(x: Tensor, mixed: Tensor, bias: Tensor | None, stride: tuple[int, ...], groups: int) -> Tensor:
    if mixed[0, 0, 0].numel() != 1:
        raise ValueError(f'formula "matmul" is for 1x1 kernels, got {tuple(mixed.shape[3:])}')
    for axis, step in enumerate(stride, start=2):
        if step > 1:
            x = x.movedim(axis, 0)[::step].movedim(0, axis)
    batch, out = mixed.shape[:2]
    size = x.shape[2:]
    rows = mixed.reshape(batch * groups, out // groups, -1)
    y = torch.bmm(rows, x.reshape(batch * groups, rows.shape[2], -1)).view(batch, out, *size)
    return y if bias is None else y + bias.view(batch, out, *(1 for _ in size))
