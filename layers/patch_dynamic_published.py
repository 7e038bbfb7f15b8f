"""The order in which published `PatchDynamicConv2d` checkpoints take the numbers of patches, with explicit patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._geometry import pad
from .patch_dynamic_hidden import first_units, maps_of, second_map, second_units, statistics_of
from .patch_dynamic_predictors import PatchPredictors


def published_order(
    input: Tensor,
    predictors: PatchPredictors,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    widths: list[tuple[int, int]],
    dilation: tuple[int, ...],
    groups: int,
    padding_mode: str,
    training: bool,
) -> Tensor:
    """The mean product of patches with predicted kernels, (B, O, Ho, Wo), for patches that are flattened wrongly.

    The tensor of all patches, (B, C / groups, Ho, Wo, kw, kh), is cut into rows of D numbers as it lies in memory, so
    that a row has numbers of several patches, and so are the predictions put back.
    """
    patches = _patches(pad(input, widths, padding_mode), kernel_size, stride, dilation)
    batch, channels, height, width = patches.shape[:4]
    own = channels // groups
    # (B, D, rows) for each group, side by side: rows are the pixels of an image that has D channels.
    rows = patches.reshape(batch, groups, height * width, predictors.features).mT
    z = F.conv1d(
        rows.reshape(batch, groups * predictors.features, height * width),
        predictors.first_weight.reshape(-1, predictors.features, 1),
        predictors.first_bias.flatten(),
        groups=groups,
    )
    maps, statistics = maps_of(predictors), statistics_of(predictors)
    z = second_map(first_units(z, maps, statistics, training), maps)
    h = second_units(z, maps, statistics, training)
    outputs: list[Tensor] = []
    each = predictors.outputs // groups
    h = h.reshape(batch, predictors.outputs, predictors.hidden, height * width)
    for o in range(predictors.outputs):
        kernels = predictors.last_weight[o] @ h[:, o] + (predictors.last_bias[o] / predictors.features)[:, None]
        products = (kernels * rows[:, o // each]).mT.reshape(
            patches.shape[0], own, height, width, kernel_size[0] * kernel_size[1]
        )
        outputs.append(products.sum((1, 4)).to(h.dtype))  # under autocast it would be single precision
    return torch.stack(outputs, 1)


def _patches(image: Tensor, kernel_size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """(B, C, Ho, Wo, kw, kh): what each output sees, transposed."""
    (kh, kw), (dy, dx) = kernel_size, dilation
    seen = image.unfold(2, dy * (kh - 1) + 1, stride[0]).unfold(3, dx * (kw - 1) + 1, stride[1])
    return seen[..., ::dy, ::dx].mT
