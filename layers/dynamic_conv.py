"""Convolution with a kernel mixed for each sample, by whichever of the equal formulas is cheapest."""

from __future__ import annotations

from typing import get_args

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
    stored_as,
)
from .dynamic_choice import Formula, check_formula, choose_formula, output_format
from .large_depthwise import MAX_STRIDE
from .ops import dynamic_conv2d
from .ops._autocast import autocast_like_conv
from .ops._load import use_kernels
from .per_sample_conv import grouped, loop, matmul
from .per_sample_depthwise import depthwise


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
            outputs. ``"fused"`` (not in three dimensions) mixes block by block while it multiplies, so that no
            sample's kernel is ever held; ``"depthwise"`` (groups = C, zeros around, dilation 1, not in three
            dimensions) runs the op behind `large_depthwise_conv2d`. By default the cheapest for the shapes at hand.

    Returns:
        (B, O, *out), or (O, *out).

    Raises:
        ValueError: if the shapes or dtypes do not fit together, or the formula is not for them.
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
    for name, values in (("stride", steps), ("dilation", spacing)):
        if min(values) < 1:
            raise ValueError(f"{name} must be at least 1, got {values}")
    window = effective_size(weight.shape[2:], spacing)
    widths = pad_widths(normalise_padding(padding, dims), window, steps, x.shape[2:])
    attention = attention.to(weight.dtype)
    if formula is None:
        pixels = 1
        for size in output_size(x.shape[2:], widths, window, steps):
            pixels *= size
        plain = padding_mode == "zeros" and max(spacing) == 1 and max(steps) <= MAX_STRIDE
        formula = choose_formula(x, weight, attention.shape[1], groups, pixels, plain)
    else:
        check_formula(formula, weight, groups, steps, spacing, padding_mode)
        if x.shape[0] == 0:
            formula = "stacked"

    if formula == "stacked":
        y = _stacked(x, weight, bias, attention, steps, widths, spacing, groups, padding_mode)
    elif formula == "fused":
        y = _fused(x, weight, bias, attention, steps, widths, spacing, groups, padding_mode)
    else:
        mixed = mix_kernels(weight, attention)
        mixed_bias = None if bias is None else attention @ bias.reshape(attention.shape[1], -1)
        if formula == "matmul":
            y = matmul(pad(x, widths, padding_mode), mixed, mixed_bias, steps, groups)
        elif formula == "depthwise":
            y = depthwise(x, mixed, mixed_bias, steps, widths)
        else:
            compute = loop if formula == "loop" else grouped
            y = compute(x, mixed, mixed_bias, steps, widths, spacing, groups, padding_mode)
    return stored_as(y, output_format(x, weight))


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
    if attention.dim() != 2 or attention.shape[0] != x.shape[0] or not attention.shape[1]:
        raise ValueError(
            f"attention must be (batch {x.shape[0]}, kernels) with a kernel or more, got {tuple(attention.shape)}"
        )
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
    given = {"x": x, "weight": weight, **({} if bias is None else {"bias": bias})}
    if len({autocast_like_conv(value).dtype for value in given.values()}) > 1:
        raise ValueError(
            "all must have one dtype, got " + ", ".join(f"{name} {value.dtype}" for name, value in given.items())
        )


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
    # Term by term and not as one product, which would not keep channels_last; added up in single precision at least.
    terms = y.reshape(-1, groups, kernels, out // groups, *y.shape[2:]).unbind(2)
    precise = attention.to(torch.promote_types(y.dtype, torch.float32))
    shares = precise.reshape(-1, kernels, *(1 for _ in terms[0].shape[1:])).unbind(1)
    mixed = terms[0] * shares[0]
    for term, share in zip(terms[1:], shares[1:], strict=True):
        mixed = mixed + term * share
    return mixed.reshape(-1, out, *y.shape[2:]).to(y.dtype)


def _fused(
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
    if weight.dim() == 3:  # an image of one row
        one_row = _fused(
            x.unsqueeze(2),
            weight.unsqueeze(2),
            bias,
            attention,
            (1, *stride),
            [(0, 0), *widths],
            (1, *dilation),
            groups,
            padding_mode,
        )
        return one_row.squeeze(2)
    if padding_mode != "zeros":
        x, widths = pad(x, widths, padding_mode), [(0, 0), (0, 0)]
    x, weight, attention = (autocast_like_conv(value) for value in (x, weight, attention))
    mixed_bias = None
    if bias is not None:
        mixed_bias = attention @ autocast_like_conv(bias).reshape(attention.shape[1], -1)
    convolve = dynamic_conv2d.forward if use_kernels(x) else dynamic_conv2d.dynamic_conv2d_ref
    around = [width for pair in widths for width in pair]
    y: Tensor = convolve(x, weight, mixed_bias, attention, list(stride), around, list(dilation), groups)
    return y
