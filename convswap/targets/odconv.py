"""Omni-dimensional dynamic convolution as a target (Li et al. 2022, arXiv 2209.07947)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..conv_classes import Conv
from ..layers import ODConv2d
from ..sites import ConvSite
from .attended_base import AttendedTarget, Kernels, check_kernels, check_noise, first_reason, one_number


@dataclass(frozen=True)
class ODConvOptions:
    """Options of ``to="odconv"``.

    Attributes:
        kernels: K, kernels that are attended to besides channels, filters and taps: one number for all convolutions; a
            sequence with one for each that is converted, in the order of execution; or numbers by name,
            ``{"layer1.*": 1}``, the first pattern that matches a name counting, and 4 where none does.
        reduction: the attention has ``max(16, int(in_channels * reduction))`` hidden units.
        temperature: divisor of the attention's logits.
        noise: how much the kernels differ at the start, relative to the conv's root mean square, at most 1.
        convert_first: convert the network's first convolution too, which the paper leaves alone.
    """

    kernels: Kernels = 4
    reduction: float = 1 / 16
    temperature: float = 1.0
    noise: float = 0.1
    convert_first: bool = False

    def __post_init__(self) -> None:
        check_kernels(self.kernels, 1)
        for name in ("reduction", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        check_noise(self.noise)


class ODConv(AttendedTarget):
    """Attention to the input channels, filters, taps and kernels of each sample."""

    name = "odconv"
    summary = "attention along all axes of K kernels, for each sample"
    options = ODConvOptions
    layers: ClassVar[Mapping[int, Any]] = {2: ODConv2d}

    def unsupported_reason(self, site: ConvSite, options: ODConvOptions) -> str | None:
        return super().unsupported_reason(site, options) or first_reason(site, options.convert_first)

    def build(self, conv: Conv, options: ODConvOptions, generator: torch.Generator | None) -> nn.Module:
        return ODConv2d.from_conv(
            conv,
            generator=generator,
            kernels=one_number(options.kernels),
            reduction=options.reduction,
            temperature=options.temperature,
            noise=options.noise,
        )
