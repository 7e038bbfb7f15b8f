"""Dynamic convolution as a target (Chen et al. 2020, arXiv 1912.03458)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..conv_classes import Conv
from ..layers import DynamicConv1d, DynamicConv2d, DynamicConv3d
from ..sites import ConvSite
from .base import Fidelity, Target

_LAYERS: dict[int, Any] = {1: DynamicConv1d, 2: DynamicConv2d, 3: DynamicConv3d}


@dataclass(frozen=True)
class DynamicOptions:
    """Options of ``to="dynamic"``.

    Attributes:
        kernels: K, kernels that the attention chooses from, at least 2.
        reduction: the attention has ``max(4, in_channels // reduction)`` hidden units.
        temperature: divisor of the attention's logits.
        noise: how much the kernels differ at the start, relative to the conv's root mean square, at most 1.
        convert_first: convert the network's first convolution too, which the paper leaves alone.
    """

    kernels: int = 4
    reduction: int = 4
    temperature: float = 1.0
    noise: float = 0.1
    convert_first: bool = False

    def __post_init__(self) -> None:
        if self.kernels < 2:
            raise ValueError(f"kernels must be at least 2, got {self.kernels}")
        if self.reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {self.reduction}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if not 0 < self.noise <= 1:
            raise ValueError(f"noise must be above 0 and at most 1, got {self.noise}")


class Dynamic(Target):
    """Attention over K kernels, each sample convolved with its own mixture."""

    name = "dynamic"
    summary = "attention over K kernels, mixed for each sample"
    options = DynamicOptions

    def unsupported_reason(self, site: ConvSite, options: DynamicOptions) -> str | None:
        if site.index == 0 and not options.convert_first:
            return "the network's first convolution is left alone, as in the paper (convert_first=True converts it)"
        reason: str | None = _LAYERS[site.dims].unsupported_reason(site.plain)
        return reason

    def fidelity(self, site: ConvSite, options: DynamicOptions) -> Fidelity:
        return "exact"

    def build(self, conv: Conv, options: DynamicOptions, generator: torch.Generator | None) -> nn.Module:
        layer: nn.Module = _LAYERS[len(conv.kernel_size)].from_conv(
            conv,
            generator=generator,
            kernels=options.kernels,
            reduction=options.reduction,
            temperature=options.temperature,
            noise=options.noise,
        )
        return layer
