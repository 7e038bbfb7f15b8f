"""Guided convolutions as targets (De Brabandere et al. 2016, arXiv 1605.09673; Tang et al. 2019, arXiv 1908.01238)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..conv_classes import Conv
from ..layers import (
    GuidedChannelWiseConv2d,
    GuidedConv2d,
    GuidedDepthWiseConv2d,
    GuidedLocalConv2d,
    HypernetConv2d,
    SeparableGuidedConv2d,
)
from ..sites import ConvSite
from .base import Fidelity
from .guided_base import GuidedOptions, GuidedTarget


class Guided(GuidedTarget):
    """One kernel for each sample."""

    name = "guided"
    summary = "a kernel for each sample, generated from a guide"
    layer = GuidedConv2d


@dataclass(frozen=True)
class GuidedLocalOptions(GuidedOptions):
    """Options of ``to="guided_local"``: those of `GuidedOptions` and one more.

    Attributes:
        rank: number of learned kernels that each pixel has its own mixture of, added to the convolution's; None: each
            pixel has a kernel of its own.
    """

    rank: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")


class GuidedLocal(GuidedTarget):
    """One kernel for each pixel of each sample."""

    name = "guided_local"
    summary = "a kernel for each pixel, generated from a guide"
    options = GuidedLocalOptions
    layer = GuidedLocalConv2d
    smaller = "choose a (smaller) rank, or convolutions of fewer channels"

    def held(self, options: GuidedOptions) -> str:
        assert isinstance(options, GuidedLocalOptions)
        if options.rank is None:
            return super().held(options)
        return f"what its {1 + options.rank} kernels give at each pixel, to be mixed there,"

    def layer_options(self, options: GuidedOptions) -> dict[str, Any]:
        assert isinstance(options, GuidedLocalOptions)
        return {"rank": options.rank}


class GuidedChannelWise(GuidedTarget):
    """One kernel for each pixel and channel of each sample, for convolutions that do not mix channels."""

    name = "guided_channelwise"
    summary = "a depthwise kernel for each pixel, generated from a guide"
    layer = GuidedChannelWiseConv2d

    def geometry_reason(self, site: ConvSite) -> str | None:
        if site.module.groups != site.module.in_channels:
            other = "guided_pointwise" if max(site.module.kernel_size) == 1 else "guided_separable"
            return (
                f"it mixes channels (groups={site.module.groups}), which a kernel for each channel does not: use "
                f'to="guided", "guided_local" or "{other}"'
            )
        return None


class GuidedPointwise(GuidedTarget):
    """One matrix for each sample, for 1×1 convolutions."""

    name = "guided_pointwise"
    summary = "a 1×1 kernel for each sample, generated from a guide"
    layer = GuidedDepthWiseConv2d

    def geometry_reason(self, site: ConvSite) -> str | None:
        if math.prod(site.module.kernel_size) != 1:
            return f'it is {_taps(site.module)}, not 1×1: use to="guided"'
        return None


class GuidedSeparable(GuidedTarget):
    """A kernel for each pixel and channel, then a matrix for each sample.

    Exact where the kernel of every input channel is a product of taps and outputs by its shape alone.
    """

    name = "guided_separable"
    summary = "a depthwise kernel per pixel, then a 1×1 one per sample"
    layer = SeparableGuidedConv2d

    def geometry_reason(self, site: ConvSite) -> str | None:
        if math.prod(site.module.kernel_size) == 1:
            return 'it is 1×1, so there are no taps to separate from the channels: use to="guided_pointwise"'
        return None

    def fidelity(self, site: ConvSite, options: GuidedOptions) -> Fidelity:
        return "exact" if site.module.out_channels == site.module.groups else "approximate"

    def compared_kernels(self, conv: Conv, layer: nn.Module) -> tuple[Tensor, Tensor]:
        assert isinstance(layer, HypernetConv2d)
        return conv.weight, layer.weight


def _taps(conv: Conv) -> str:
    return "×".join(map(str, conv.kernel_size))
