"""Dynamic convolution as a target (Chen et al. 2020, arXiv 1912.03458)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..conv_classes import Conv
from ..factories import check_name
from ..layers import DynamicConv1d, DynamicConv2d, DynamicConv3d
from ..sites import ConvSite
from .attended_base import AttendedTarget, Kernels, check_kernels, check_noise, first_reason, one_number
from .own_net import OwnNet


@dataclass(frozen=True)
class DynamicOptions:
    """Options of ``to="dynamic"``.

    Attributes:
        kernels: K, kernels that the attention chooses from, at least 2: one number for all convolutions; a sequence
            with one for each that is converted, in the order of execution; or numbers by name, ``{"layer1.*": 2}``,
            the first pattern that matches a name counting, and 4 where none does.
        reduction: the attention has ``max(4, in_channels // reduction)`` hidden units.
        temperature: divisor of the attention's logits.
        attention: what makes the hidden units, instead of a linear map of the mean over space and a ReLU: a function
            ``(in_channels, hidden) -> nn.Module`` whose module maps (B, in_channels, *size) to (B, hidden) or
            (B, hidden, *any); or its name, ``"package.module:function"``, by which it is imported when layers are
            built, and which recipes and files have of a function too. It is called for plans as well, and must make a
            new module each time, of which a copy is used.
        noise: how much the kernels differ at the start, relative to the conv's root mean square, at most 1.
        convert_first: convert the network's first convolution too, which the paper leaves alone.
    """

    kernels: Kernels = 4
    reduction: int = 4
    temperature: float = 1.0
    attention: Callable[[int, int], nn.Module] | str | None = None
    noise: float = 0.1
    convert_first: bool = False

    def __post_init__(self) -> None:
        check_kernels(self.kernels, 2)
        if self.reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {self.reduction}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if isinstance(self.attention, str):
            check_name(self.attention, "attention")
        check_noise(self.noise)


_SHAPES = "(B, {hidden}) or (B, {hidden}, *any)"


class Dynamic(AttendedTarget):
    """Attention over K kernels, each sample convolved with its own mixture."""

    name = "dynamic"
    summary = "attention over K kernels, mixed for each sample"
    options = DynamicOptions
    layers: ClassVar[Mapping[int, Any]] = {1: DynamicConv1d, 2: DynamicConv2d, 3: DynamicConv3d}

    def unsupported_reason(self, site: ConvSite, options: DynamicOptions) -> str | None:
        return super().unsupported_reason(site, options) or first_reason(site, options.convert_first)

    def build(self, conv: Conv, options: DynamicOptions, generator: torch.Generator | None) -> nn.Module:
        dims = len(conv.kernel_size)
        factory, net = options.attention, OwnNet("attention", "in_channels", "an input", dims, _SHAPES)
        layer: Any = self.layers[dims].from_conv(
            conv,
            generator=generator,
            kernels=one_number(options.kernels),
            reduction=options.reduction,
            temperature=options.temperature,
            attention=None if factory is None else net.guarded(factory),
            noise=options.noise,
        )
        if factory is not None:
            net.check_features(layer.attention.body, factory, layer.in_channels, layer.attention.fc2.weight)
        made: nn.Module = layer
        return made
