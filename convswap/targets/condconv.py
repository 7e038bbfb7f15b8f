"""Conditionally parametrised convolution as a target (Yang et al. 2019, arXiv 1904.04971)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..conv_classes import Conv
from ..layers import CondConv2d
from .attended_base import AttendedTarget, Kernels, check_kernels, check_noise, one_number


@dataclass(frozen=True)
class CondConvOptions:
    """Options of ``to="condconv"``.

    Attributes:
        kernels: K, kernels that are weighed by sigmoids: one number for all convolutions; a sequence with one for each
            that is converted, in the order of execution; or numbers by name, ``{"layer1.*": 2}``, the first pattern
            that matches a name counting, and 4 where none does.
        noise: how much the kernels differ at the start, relative to their root mean square, at most 1.
    """

    kernels: Kernels = 4
    noise: float = 0.1

    def __post_init__(self) -> None:
        check_kernels(self.kernels, 1)
        check_noise(self.noise)


class CondConv(AttendedTarget):
    """Sigmoid routing over K kernels, each sample convolved with its own mixture."""

    name = "condconv"
    summary = "K kernels, each weighed by a sigmoid for each sample"
    options = CondConvOptions
    layers: ClassVar[Mapping[int, Any]] = {2: CondConv2d}

    def build(self, conv: Conv, options: CondConvOptions, generator: torch.Generator | None) -> nn.Module:
        kernels = one_number(options.kernels)
        return CondConv2d.from_conv(conv, generator=generator, kernels=kernels, noise=options.noise)
