"""Convolution with a kernel predicted for each patch, as the ordinary convolutions that it amounts to.

With a kernel ``W3 h + b3`` for the patch p the mean of their product is ``(h . (W3^T p) + b3 . p) / D``: no patch is
cut out, and no predicted kernel is ever held.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._geometry import conv_nd, effective_size, memory_format, output_size, pad, pad_widths, stored_as
from .ops._load import want_ops
from .patch_dynamic_chunks import Window, in_chunks, predicted
from .patch_dynamic_hidden import maps_of, statistics_of
from .patch_dynamic_memory import SavingMemory
from .patch_dynamic_predictors import PatchPredictors
from .patch_dynamic_published import published_order

torch.fx.wrap("patch_dynamic_conv2d")


def patch_dynamic_conv2d(
    input: Tensor,
    predictors: PatchPredictors,
    similar_conv: Any,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: str | tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    padding_mode: str,
    patch_order: str,
) -> Tensor:
    """What a `PatchDynamicConv2d` computes; in training the running statistics of ``predictors`` change.

    Without gradients and in eager training memory is saved: a few outputs, or rows of pixels, are computed at a time.

    Args:
        input: (B, C, H, W), or (C, H, W). The result is channels_last where it is.
        predictors: as `PatchDynamicConv2d` has them; in training mode their norms are over the rows at hand.
        similar_conv: what has the weight (O, C / groups, kh, kw) and the bias that are used as well, or None.
        kernel_size, stride, padding, dilation, groups, padding_mode, patch_order: as in `PatchDynamicConv2d`.

    Returns:
        (B, O, Ho, Wo), or (O, Ho, Wo).

    Raises:
        ValueError: if the input has another number of axes or of channels.
    """
    channels = predictors.features // (kernel_size[0] * kernel_size[1]) * groups
    if input.dim() not in (3, 4) or input.shape[-3] != channels:
        raise ValueError(f"input must be (B, {channels}, H, W) or ({channels}, H, W), got {tuple(input.shape)}")
    x = input.unsqueeze(0) if input.dim() == 3 else input
    span = effective_size(kernel_size, dilation)
    widths = pad_widths(padding, span, stride, x.shape[2:])
    size = output_size(x.shape[2:], widths, span, stride)
    training = False
    if predictors.training and x.shape[0] * size[0] * size[1] > 1:
        training = True  # a bool, as the norms want it, where sizes are symbols too
        predictors.norm1_num_batches_tracked.add_(1)
        predictors.norm2_num_batches_tracked.add_(1)
    kernel, bias = (None, None) if similar_conv is None else (similar_conv.weight, similar_conv.bias)
    if patch_order == "published":
        ahead = [(after, before) for before, after in widths] if padding == "same" else widths
        y = published_order(x, predictors, kernel_size, stride, ahead, dilation, groups, padding_mode, training)
        if kernel is not None:
            y = y + conv_nd(x, kernel, bias, stride, widths, dilation, groups, padding_mode)
    else:
        mean = predictors.last_bias.view(-1, channels // groups, *kernel_size) / predictors.features
        if padding_mode != "zeros":
            x, widths = pad(x, widths, padding_mode), [(0, 0), (0, 0)]
        y = conv_nd(x, mean if kernel is None else kernel + mean, bias, stride, widths, dilation, groups)
        y = _with_predicted(y, x, predictors, Window(kernel_size, stride, widths, dilation), groups, training)
    y = stored_as(y, memory_format(x))
    return y.squeeze(0) if input.dim() == 3 else y


def _with_predicted(
    y: Tensor, x: Tensor, predictors: PatchPredictors, window: Window, groups: int, training: bool
) -> Tensor:
    """``y`` and the part of the predicted kernels that depends on the patch."""
    maps, statistics = maps_of(predictors), statistics_of(predictors)
    if torch.compiler.is_compiling() or not want_ops(x):
        return y + predicted(x, maps, statistics, window, groups, training)
    if torch.is_grad_enabled() and any(value.requires_grad for value in (x, *maps)):
        added: Tensor = SavingMemory.apply(x, statistics, window, groups, training, *maps)
        return y + added
    return in_chunks(y, x, maps, statistics, window, groups, training)
