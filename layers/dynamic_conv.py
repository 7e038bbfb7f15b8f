"""Convolution with a kernel mixed for each sample, by whichever of the equal formulas is cheapest."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ._exporting import is_exporting
from ._geometry import (
    IntOrInts,
    Padding,
    conv_nd,
    effective_size,
    is_channels_last,
    memory_format,
    normalise_padding,
    output_size,
    pad,
    pad_widths,
    per_axis,
)
from .per_sample_conv import grouped, loop, matmul

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
    if formula is not None and formula not in get_args(Formula):
        raise ValueError(f"formula must be one of {', '.join(get_args(Formula))}, got {formula!r}")
    if x.dim() == dims + 1:
        if attention.dim() != 1:
            raise ValueError(
                f"attention must be (kernels) for x without batch, got {tuple(attention.shape)} and x {tuple(x.shape)}"
            )
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
    elif x.shape[0] == 0:
        formula = "stacked"
    if formula == "matmul" and weight[0, 0].numel() != 1:
        raise ValueError(f'formula "matmul" is for 1x1 kernels, got {tuple(weight.shape[2:])}')

    if formula == "stacked":
        y = _stacked(x, weight, bias, attention, steps, widths, spacing, groups, padding_mode)
    else:
        mixed = mix_kernels(weight, attention)
        mixed_bias = None if bias is None else attention @ bias.reshape(attention.shape[1], -1)
        if formula == "matmul":
            y = matmul(pad(x, widths, padding_mode), mixed, mixed_bias, steps, groups)
        else:
            compute = loop if formula == "loop" else grouped
            y = compute(x, mixed, mixed_bias, steps, widths, spacing, groups, padding_mode)
    return y.contiguous(memory_format=_output_format(x, weight))


def choose_formula(x: Tensor, weight: Tensor, kernels: int, groups: int, pixels: int) -> Formula:
    """The cheapest formula for these shapes, calibrated on the CPU by ``benchmarks/dynamic_formulas.py``.

    Mixing kernels first moves each sample's kernel through memory, which costs as much as convolving some number of
    output pixels with it (`_mixing_cost_in_pixels`); convolving with all kernels costs ``kernels - 1`` further
    convolutions of every pixel. Depthwise kernels are too small for mixing to cost anything.

    A group or a turn for each sample cannot be exported with a dynamic batch; ``"stacked"`` can. Turns are unrolled by
    a compiler, into a new graph for each size of the batch.
    """
    batch = x.shape[0]
    if is_exporting() or batch == 0:
        return "stacked"
    if batch == 1:
        return "loop"
    on_cpu = x.device.type == "cpu"
    depthwise = weight.shape[1] == 1
    point = weight[0, 0].numel() == 1
    if not point and not depthwise and (kernels - 1) * pixels < _mixing_cost_in_pixels(batch, on_cpu):
        return "stacked"
    turns = on_cpu and not torch.compiler.is_compiling()
    if turns and _output_format(x, weight) != torch.contiguous_format:
        return "loop"  # the others would have to leave channels_last and come back
    if point and not depthwise:
        return "matmul"
    return "loop" if turns and groups == 1 else "grouped"


def _mixing_cost_in_pixels(batch: int, on_cpu: bool) -> int:
    """Output pixels whose convolution takes as long as mixing the kernel: on the CPU rather more in large batches.

    Elsewhere not measured; a higher value, since there arithmetic is cheaper next to moving memory.
    """
    return 128 + 2 * min(batch, 32) if on_cpu else 512


def _output_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """The memory format that a plain convolution of these tensors gives its result."""
    own = memory_format(x)
    return own if own != torch.contiguous_format else memory_format(weight)


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
    if (weight.shape[0] // attention.shape[1]) % groups:
        raise ValueError(
            f"groups must divide the outputs of each kernel, got groups={groups}, "
            f"weight of shape {tuple(weight.shape)} and {attention.shape[1]} kernels"
        )
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
            bias = bias.reshape(blocks).transpose(0, 1).flatten()
    y = conv_nd(x, weight, bias, stride, widths, dilation, groups, padding_mode)
    # Term by term and not as one product, which would not keep channels_last.
    terms = y.reshape(-1, groups, kernels, out // groups, *y.shape[2:]).unbind(2)
    shares = attention.to(y.dtype).reshape(-1, kernels, *(1 for _ in terms[0].shape[1:])).unbind(1)
    mixed = terms[0] * shares[0]
    for term, share in zip(terms[1:], shares[1:], strict=True):
        mixed = mixed + term * share
    return mixed.reshape(-1, out, *y.shape[2:])
