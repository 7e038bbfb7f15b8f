"""The hidden layers of the predictors of a `PatchDynamicConv2d`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .hybrid_activation import hybrid_activation
from .ops._load import want_ops
from .patch_dynamic_predictors import EPS, MOMENTUM, PatchPredictors


class Maps(NamedTuple):
    """What the predictors of some outputs learn, but for their last bias: views of a `PatchPredictors`' tensors.

    The last weight is transposed, (outputs, hidden, D), as the first one lies.
    """

    first_weight: Tensor
    first_bias: Tensor
    first_muls: Tensor
    first_powers: Tensor
    norm1_weight: Tensor
    norm1_bias: Tensor
    second_weight: Tensor
    second_bias: Tensor
    second_muls: Tensor
    second_powers: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    last_weight: Tensor

    @property
    def hidden(self) -> int:
        return self.second_weight.shape[1]

    @property
    def features(self) -> int:
        return self.last_weight.shape[2]


class Statistics(NamedTuple):
    """Running statistics of the two norms of some outputs, or None for each where those of the batch alone matter."""

    mean1: Tensor | None
    var1: Tensor | None
    mean2: Tensor | None
    var2: Tensor | None


def maps_of(predictors: PatchPredictors) -> Maps:
    """Those of all outputs."""
    maps = Maps(*(getattr(predictors, name) for name in Maps._fields))
    return maps._replace(last_weight=maps.last_weight.mT)


def statistics_of(predictors: PatchPredictors) -> Statistics:
    """Those of all outputs."""
    p = predictors
    return Statistics(p.norm1_running_mean, p.norm1_running_var, p.norm2_running_mean, p.norm2_running_var)


def first_units(z: Tensor, maps: Maps, statistics: Statistics, training: bool) -> Tensor:
    """The first hidden units from what their linear maps give, both (B, outputs * hidden, *any)."""
    y = hybrid_activation(z, maps.first_muls.flatten(), maps.first_powers.flatten())
    return _normed(y, maps.norm1_weight, maps.norm1_bias, statistics.mean1, statistics.var1, training)


def second_map(y: Tensor, maps: Maps) -> Tensor:
    """What the linear maps of the second hidden units give for the first ones."""
    convolve = F.conv1d if y.dim() == 3 else F.conv2d
    return convolve(y, second_kernel(y, maps), maps.second_bias.flatten(), groups=maps.second_weight.shape[0])


def second_kernel(y: Tensor, maps: Maps) -> Tensor:
    """The weight of `second_map` as that of a grouped convolution with a kernel of one pixel."""
    return maps.second_weight.reshape(-1, maps.hidden, *(1,) * (y.dim() - 2))


def second_units(z: Tensor, maps: Maps, statistics: Statistics, training: bool) -> Tensor:
    """The second hidden units, divided by D."""
    y = hybrid_activation(z, maps.second_muls.flatten(), maps.second_powers.flatten())
    weight, bias = maps.norm2_weight / maps.features, maps.norm2_bias / maps.features
    return _normed(y, weight, bias, statistics.mean2, statistics.var2, training)


def _normed(y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, var: Tensor | None, training: bool) -> Tensor:
    """Batch norm over all rows; the running statistics follow in training. Without gradients y may be overwritten.

    Not so under the transforms of ``torch.func``, where what is written may have an axis more than y.
    """
    mean, var = (None if value is None else value.view(-1) for value in (mean, var))
    weight, bias = weight.flatten(), bias.flatten()
    apart = training or torch.is_grad_enabled() or not want_ops(y)
    if apart or mean is None or var is None or y.dtype != mean.dtype:
        return F.batch_norm(y, mean, var, weight, bias, training, MOMENTUM, EPS)
    scale = weight * (var + EPS).rsqrt()
    shape = (-1, *(1,) * (y.dim() - 2))
    return y.mul_(scale.view(shape)).add_((bias - mean * scale).view(shape))
