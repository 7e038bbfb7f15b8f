"""Convolution with kernels predicted for each patch as a target (Keep-up-sharma, Dynamic-Layers)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..conv_classes import Conv
from ..formatting import count, sizes
from ..layers import PatchDynamicConv2d
from ..layers.patch_dynamic_predictors import predictor_numbers
from ..sites import ConvSite
from .base import Fidelity, Target, axes_reason


@dataclass(frozen=True)
class HybridOptions:
    """Options of ``to="hybrid"``.

    Attributes:
        hidden: units of each of the two hidden layers of a predictor. Every output channel has a predictor of its own,
            so that there are about ``2 * hidden`` times as many parameters as the convolution has.
        max_parameter_bytes: convolutions whose predictors would have more bytes of parameters are kept; None for no
            limit.
    """

    hidden: int = 16
    max_parameter_bytes: int | None = 2**30

    def __post_init__(self) -> None:
        for name in ("hidden", "max_parameter_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


class Hybrid(Target):
    """The convolution itself, plus one whose kernels are predicted from each patch."""

    name = "hybrid"
    summary = "the convolution plus a kernel predicted for each patch"
    options = HybridOptions

    def unsupported_reason(self, site: ConvSite, options: HybridOptions) -> str | None:
        conv: Any = site.plain
        reason = axes_reason(site, self.name, (2,), "dynamic") or PatchDynamicConv2d.unsupported_reason(conv)
        if reason is not None:
            return reason
        if options.max_parameter_bytes is None:
            return None
        features = conv.weight[0].numel()
        needed = predictor_numbers(conv.out_channels, features, options.hidden) * conv.weight.element_size()
        if needed <= options.max_parameter_bytes:
            return None
        taken, limit = sizes(needed, options.max_parameter_bytes)
        return (
            f"its {conv.out_channels} predictors, for patches of {count(features)} numbers, would have {taken} of "
            f"parameters, and max_parameter_bytes is {limit}: choose a smaller hidden, or raise max_parameter_bytes"
        )

    def fidelity(self, site: ConvSite, options: HybridOptions) -> Fidelity:
        return "exact"

    def build(self, conv: Conv, options: HybridOptions, generator: torch.Generator | None) -> nn.Module:
        return PatchDynamicConv2d.from_conv(conv, generator=generator, hidden=options.hidden)
