"""What the targets have in common whose kernels are generated from a guide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from ..conv_classes import Conv
from ..costs import generated_numbers
from ..factories import check_name
from ..formatting import count, sizes
from ..guide_nodes import check_guide
from ..layers import HypernetConv2d
from ..sites import ConvSite
from .base import Fidelity, Target, axes_reason
from .own_net import OwnNet

_HYPERNET = OwnNet("hypernet", "guide_channels", "a guide", 2, "(B, {hidden}) or (B, {hidden}, h, w)", axes=(2, 4))


@dataclass(frozen=True)
class GuidedOptions:
    """Options of ``to="guided"`` and the other targets whose kernels a hypernet generates from a guide.

    Attributes:
        guide: where the guide comes from. None: it is the convolution's own input; ``"input"``: the model's first
            input; ``"input:<name>"``: a further input of that name, which the model gets; ``"<name>:input"``: what the
            module of this name reads; else it is the output of the module or node of this name. A guide of another
            resolution is averaged or interpolated to the size needed.
        guide_channels: channels of the guide; by default as many as it is found to have.
        hidden: features that the hypernet makes of the guide, of which its last linear map makes the kernels.
        hypernet: what makes these features, instead of a 1×1 layer and a leaky ReLU: a function
            ``(guide_channels, hidden) -> nn.Module`` whose module maps the guide (B, guide_channels, H, W) to
            (B, hidden) or (B, hidden, h, w); or its name, ``"package.module:function"``, by which it is imported when
            layers are built, and which recipes and files have of a function too. It is called for plans as well, and
            must make a new module each time, of which a copy is used.
        generate_bias: generate a bias for each sample as well; it starts at zero, beside the convolution's own.
        max_kernel_bytes: convolutions for which kernels of more bytes would be generated for one sample are kept; None
            for no limit. With ``rank`` what the kernels give at each pixel, to be mixed, counts too.
    """

    guide: str | None = None
    guide_channels: int | None = None
    hidden: int = 8
    hypernet: Callable[[int, int], nn.Module] | str | None = None
    generate_bias: bool = False
    max_kernel_bytes: int | None = 2**28

    def __post_init__(self) -> None:
        if self.guide is not None:
            check_guide(self.guide)
        if isinstance(self.hypernet, str):
            check_name(self.hypernet, "hypernet")
        for name in ("guide_channels", "hidden", "max_kernel_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


class GuidedTarget(Target):
    """Base of the targets that put a `HypernetConv2d` in the place of a convolution.

    Attributes:
        layer: the guided layer's class.
        smaller: what to do about kernels that would be too large, besides raising the limit.
    """

    options = GuidedOptions
    layer: ClassVar[Any]
    smaller: ClassVar[str] = "choose convolutions of fewer channels"

    def resolve(self, site: ConvSite, options: GuidedOptions) -> GuidedOptions:
        return replace(options, guide_channels=site.module.in_channels) if options.guide is None else options

    def unsupported_reason(self, site: ConvSite, options: GuidedOptions) -> str | None:
        reason = axes_reason(site, "guided", (2,), "dynamic") or self.geometry_reason(site)
        if reason is None:
            reason = self.layer.unsupported_reason(site.plain, **self.layer_options(options))
        if reason is None and options.guide is None and options.guide_channels not in (None, site.module.in_channels):
            reason = (
                f"guide_channels is {options.guide_channels}, and its guide is its own input, which has "
                f"{site.module.in_channels} channels: leave guide_channels out, or name another guide"
            )
        return self._size_reason(site, options) if reason is None else reason

    def _size_reason(self, site: ConvSite, options: GuidedOptions) -> str | None:
        """The kernels of a sample are all there at once in each forward pass, and kept for the backward pass."""
        if options.max_kernel_bytes is None:
            return None
        alike = self.layer.from_conv(
            site.plain,  # on the meta device; how large the hypernet is does not matter here
            guide_channels=1,
            hidden=1,
            generate_bias=options.generate_bias,
            **self.layer_options(options),
        )
        numbers = generated_numbers(alike, site.calls, site.batch)
        if numbers is None:
            return (
                "it would have kernels for each pixel of its output, whose size is unknown: give example_inputs that "
                "reach it, or max_kernel_bytes=None"
            )
        needed = max(numbers) * site.plain.weight.element_size()
        if needed <= options.max_kernel_bytes:
            return None
        taken, limit = sizes(needed, options.max_kernel_bytes)
        return (
            f"{self.held(options)} would take {taken} for each sample ({count(max(numbers))} numbers), and "
            f"max_kernel_bytes is {limit}: {self.smaller}, or raise max_kernel_bytes"
        )

    def held(self, options: GuidedOptions) -> str:
        """What it is that there may be too much of."""
        return "its kernels"

    def geometry_reason(self, site: ConvSite) -> str | None:
        """Why another target is for this convolution, or None."""
        return None

    def layer_options(self, options: GuidedOptions) -> dict[str, Any]:
        """The options that only this layer has."""
        return {}

    def fidelity(self, site: ConvSite, options: GuidedOptions) -> Fidelity:
        return "exact"

    def build(self, conv: Conv, options: GuidedOptions, generator: torch.Generator | None) -> nn.Module:
        if options.guide is not None and options.guide_channels is None:
            raise ValueError(f"it is unknown how many channels its guide {options.guide!r} has: give guide_channels")
        hypernet = options.hypernet
        pair: HypernetConv2d = self.layer.from_conv(
            conv,
            generator=generator,
            guide_channels=options.guide_channels,
            hidden=options.hidden,
            hypernet=None if hypernet is None else _HYPERNET.guarded(hypernet),
            generate_bias=options.generate_bias,
            **self.layer_options(options),
        )
        if hypernet is not None:
            made = pair.hypernet
            _HYPERNET.check_features(made.body, hypernet, made.guide_channels, made.expand.weight)
        pair.guide = options.guide
        return pair
