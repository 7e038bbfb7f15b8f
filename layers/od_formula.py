"""Convolution with attentions along all axes of the kernel, by whichever of the equal formulas is cheapest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from ._exporting import is_exporting
from ._geometry import (
    IntOrInts,
    Padding,
    check_fits,
    conv_nd,
    effective_size,
    is_channels_last,
    normalise_padding,
    output_size,
    pad,
    pad_widths,
    per_axis,
    stored_as,
    windows,
)
from .dynamic_choice import check_formula, output_format
from .dynamic_conv import dynamic_conv, mix_kernels
from .large_depthwise import MAX_STRIDE
from .per_sample_conv import grouped, loop, matmul
from .per_sample_depthwise import depthwise, depthwise_pays

ODFormula = Literal["grouped", "loop", "matmul", "depthwise", "columns"]


def od_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    attentions: Mapping[str, Tensor],
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    formula: ODFormula | None = None,
) -> Tensor:
    """Convolve each sample as its attentions say (Li et al. 2022, arXiv 2209.07947, eq. 3).

    ``y_b = filter_b ((sum_k kernel_bk position_b W_k) * (channel_b x_b)) + sum_k kernel_bk bias_k``; an attention that
    is not given is 1.

    Args:
        x: (B, C, H, W), or (C, H, W).
        weight: (K * O, C / groups, kh, kw), kernel k at ``[k * O : (k + 1) * O]``.
        bias: (K * O) or None.
        attentions: any of ``"channel"`` (B, C), ``"filter"`` (B, O), ``"position"`` (B, kh * kw) and ``"kernel"``
            (B, K), without which K is 1; all without B if x has none.
        stride, padding, dilation, groups, padding_mode: as in ``nn.Conv2d``; ``padding="same"`` with any stride.
        formula: which way to compute it. All give the same numbers: ``"grouped"`` makes each sample's kernel and runs
            one convolution with a group for each sample, ``"loop"`` one convolution for each sample, ``"matmul"`` (1x1
            kernels only) a batched matrix product, ``"depthwise"`` (groups = C, zeros around, dilation 1) the op behind
            `large_depthwise_conv2d`; ``"columns"`` weighs what each tap sees, side by side as channels, and leaves a
            1x1 convolution to `dynamic_conv`. By default the cheapest for the shapes at hand.

    Returns:
        (B, O, Ho, Wo), or (O, Ho, Wo).

    Raises:
        ValueError: if the shapes do not fit together, the formula is not for them, or the kernel is larger than the
            padded input.
    """
    if formula is not None and formula not in get_args(ODFormula):
        raise ValueError(f"formula must be one of {', '.join(get_args(ODFormula))}, got {formula!r}")
    if x.dim() == 3:
        rows = {name: value[None] for name, value in attentions.items()}
        return od_conv2d(x[None], weight, bias, rows, stride, padding, dilation, groups, padding_mode, formula)[0]
    _check_shapes(x, weight, bias, attentions, groups)
    steps, spacing = per_axis(stride, 2, "stride"), per_axis(dilation, 2, "dilation")
    window = effective_size(weight.shape[2:], spacing)
    widths = pad_widths(normalise_padding(padding, 2), window, steps, x.shape[2:])
    check_fits(x.shape[2:], widths, window)
    height, width = output_size(x.shape[2:], widths, window, steps)
    kernels = attentions["kernel"].shape[1] if "kernel" in attentions else 1
    if formula is None:
        plain = padding_mode == "zeros" and max(spacing) == 1 and max(steps) <= MAX_STRIDE
        formula = choose_formula(x, weight, kernels, groups, height * width, plain)
    else:
        if formula != "columns":
            check_formula(formula, weight, groups, steps, spacing, padding_mode)
        if x.shape[0] == 0:
            formula = "columns"

    own_bias = None if bias is None else _mixed_bias(x, bias, attentions.get("kernel"))
    filters = attentions.get("filter")
    if formula == "columns":
        y = _columns(x, weight, attentions, steps, widths, spacing, groups, padding_mode)
        y = _finished(y, filters, own_bias)
    else:
        late = None if _fewer_weights(weight, height * width) else filters
        each = _kernels(x, weight, attentions, groups, filters if late is None else None)
        early_bias = own_bias if late is None else None
        if formula == "matmul":
            y = matmul(pad(x, widths, padding_mode), each, early_bias, steps, groups)
        elif formula == "depthwise":
            y = depthwise(x, each, early_bias, steps, widths)
        else:
            compute = loop if formula == "loop" else grouped
            y = compute(x, each, early_bias, steps, widths, spacing, groups, padding_mode)
        if late is not None:
            y = _finished(y, late, own_bias)
    return stored_as(y, output_format(x, weight))


def choose_formula(x: Tensor, weight: Tensor, kernels: int, groups: int, pixels: int, plain: bool = True) -> ODFormula:
    """The cheapest formula for these shapes, calibrated on the CPU by ``benchmarks/od_formulas.py``.

    A sample's kernel moves through memory as it is mixed and again as it is weighed; what its taps see moves as it is
    put together, which is less where there are few pixels for the outputs of a group.

    A group or a turn for each sample cannot be exported with a dynamic batch; ``"columns"`` can. Turns are unrolled by
    a compiler, into a new graph for each size of the batch.

    Args:
        x, weight: as for `od_conv2d`.
        kernels, groups: K, and the groups of each kernel.
        pixels: of an output.
        plain: whether the formula ``"depthwise"`` may be taken, if the kernels are depthwise.
    """
    if is_exporting() or x.shape[0] == 0:
        return "columns"
    by_channel = weight.shape[1] == 1
    if by_channel and plain and depthwise_pays(x, weight[: weight.shape[0] // kernels], pixels):
        return "depthwise"
    if weight[0, 0].numel() == 1:
        return "grouped" if by_channel else "matmul" if _fewer_weights(weight, pixels) else "columns"
    if 2 * pixels <= weight.shape[0] // (kernels * groups):
        return "columns"
    turns = x.device.type == "cpu" and not torch.compiler.is_compiling()
    large = groups == 1 and weight.numel() > kernels * _LARGE_KERNEL
    if x.shape[0] == 1 or (turns and (large or output_format(x, weight) != torch.contiguous_format)):
        return "loop"
    return "grouped"


_LARGE_KERNEL = 2**20
"""Numbers that torch's grouped convolution is slow at bringing into the order that it computes in."""


def _fewer_weights(weight: Tensor, pixels: int) -> bool:
    """Whether one filter has fewer numbers than its output, and is the cheaper one to be multiplied."""
    return weight[0].numel() < pixels


def _mixed_bias(x: Tensor, bias: Tensor, kernel: Tensor | None) -> Tensor:
    """Of each sample, (B, O)."""
    if kernel is None:
        return bias.expand(x.shape[0], -1)
    return kernel.to(bias.dtype) @ bias.view(kernel.shape[1], -1)


def _kernels(
    x: Tensor, weight: Tensor, attentions: Mapping[str, Tensor], groups: int, filters: Tensor | None
) -> Tensor:
    """The kernel of each sample, (B, O, C / groups, kh, kw), with all attentions in it; the filters' if given."""
    kernel, scale = attentions.get("kernel"), _scale(x, weight, attentions)
    mixed = weight[None] if kernel is None else mix_kernels(weight, kernel.to(weight.dtype))
    mixed = mixed.unflatten(1, (groups, -1))
    if scale is not None:
        mixed = mixed * scale.to(weight.dtype).unflatten(1, (groups if scale.shape[1] > 1 else 1, 1, -1))
    if filters is not None:
        mixed = mixed * filters.to(weight.dtype).unflatten(1, (groups, -1))[..., None, None, None]
    each: Tensor = mixed.flatten(1, 2).expand(x.shape[0], -1, -1, -1, -1)
    return each


def _columns(
    x: Tensor,
    weight: Tensor,
    attentions: Mapping[str, Tensor],
    stride: tuple[int, ...],
    widths: list[tuple[int, int]],
    dilation: tuple[int, ...],
    groups: int,
    padding_mode: str,
) -> Tensor:
    """All but the filters' attention and the bias."""
    kernel, scale = attentions.get("kernel"), _scale(x, weight, attentions)
    rows, columns = weight.shape[2:]
    size = output_size(x.shape[2:], widths, effective_size((rows, columns), dilation), stride)
    x = pad(x, widths, padding_mode)
    taps = list(windows(x, size, (rows, columns), stride, dilation))
    if scale is not None:
        # Before they are put together: what is kept for the gradient is then the image, and not what taps see.
        weights = scale.to(x.dtype).expand(-1, -1, rows, columns).flatten(2).split(1, 2)
        taps = [seen * own[..., None] for seen, own in zip(taps, weights, strict=True)]
    if len(taps) == 1:
        image = taps[0]
    elif is_channels_last(weight):  # in its order, with the channels of a tap side by side, it need not be copied
        weight = weight.movedim(1, -1)
        of_groups = [tap.unflatten(1, (groups, -1)) for tap in taps]
        image = torch.cat(taps, 1) if groups == 1 else torch.stack(of_groups, 2).flatten(1, 3)
    else:
        image = torch.stack(taps, 2).flatten(1, 2)
    points = weight.reshape(weight.shape[0], -1, 1, 1)
    if kernel is None:
        return conv_nd(image, points, None, (1, 1), [(0, 0)] * 2, (1, 1), groups)
    return dynamic_conv(image, points, None, kernel, groups=groups)


def _scale(x: Tensor, weight: Tensor, attentions: Mapping[str, Tensor]) -> Tensor | None:
    """The attentions of input channels and taps together, (B, C or 1, kh or 1, kw or 1)."""
    channel, position = attentions.get("channel"), attentions.get("position")
    if position is not None:
        position = position.unflatten(1, (1, *weight.shape[2:]))
    if channel is None:
        return position
    channel = channel[..., None, None]
    return channel if position is None else channel * position


def _finished(y: Tensor, filters: Tensor | None, bias: Tensor | None) -> Tensor:
    own_filters, own_bias = (None if v is None else v.to(y.dtype)[..., None, None] for v in (filters, bias))
    if own_filters is None:
        return y if own_bias is None else y + own_bias
    return y * own_filters if own_bias is None else torch.addcmul(own_bias, y, own_filters)


def _check_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, attentions: Mapping[str, Tensor], groups: int
) -> None:
    if x.dim() != 4 or weight.dim() != 4:
        raise ValueError(
            f"x must be (B, C, H, W) or (C, H, W) and weight (K * O, C / groups, kh, kw), got {tuple(x.shape)} and "
            f"{tuple(weight.shape)}"
        )
    kernels = attentions["kernel"].shape[-1] if "kernel" in attentions else 1
    if kernels < 1 or weight.shape[0] % kernels:
        raise ValueError(f"weight has {weight.shape[0]} rows, no multiple of the {kernels} kernels")
    out = weight.shape[0] // kernels
    sizes = {"channel": x.shape[1], "filter": out, "position": weight.shape[2] * weight.shape[3], "kernel": kernels}
    for name, value in attentions.items():
        if name not in sizes:
            raise ValueError(f"attentions are of {', '.join(sizes)}, got {name!r}")
        if value.dim() != 2 or value.shape[0] != x.shape[0] or value.shape[1] != sizes[name]:
            raise ValueError(
                f"the attention {name!r} must be of shape {(x.shape[0], sizes[name])}, got {tuple(value.shape)}"
            )
    if x.shape[1] != weight.shape[1] * groups:
        raise ValueError(f"x must have {weight.shape[1] * groups} channels, got shape {tuple(x.shape)}")
    if out % groups:
        raise ValueError(f"groups must divide the {out} outputs of each kernel, got groups={groups}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
