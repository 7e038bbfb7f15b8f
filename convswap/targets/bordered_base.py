"""What the targets have in common whose layers differ from the convolution at the border of the image alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import nn

from ..conv_classes import Conv, padding_widths
from ..layers.extrapolation import noise_gain
from ..sites import ConvSite
from .base import Fidelity, Target, axes_reason

Sides: TypeAlias = Sequence[tuple[int, int]]
"""A number before and one after each axis, first axis first."""

NO_BORDER = "it pads nothing, so there is no border to treat in another way"


class BorderedTarget(Target):
    """Base of the targets that replace a convolution's padding, whatever it is filled with, and keep its widths.

    Options are the keyword arguments of the layer's constructor.

    Attributes:
        layers: the layer's class for each number of axes.
    """

    layers: ClassVar[Mapping[int, Any]]

    def unsupported_reason(self, site: ConvSite, options: Any) -> str | None:
        reason = axes_reason(site, self.name, self.layers, "padding_free")
        return reason or self.layers[site.dims].unsupported_reason(site.plain) or _unpadded_reason(site)

    def fidelity(self, site: ConvSite, options: Any) -> Fidelity:
        return "interior"

    def build(self, conv: Conv, options: Any, generator: torch.Generator | None) -> nn.Module:
        given = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        layer: nn.Module = self.layers[len(conv.kernel_size)].from_conv(conv, generator=generator, **given)
        return layer


def widest(conv: Conv) -> list[tuple[int, int]]:
    """The pixels that are added before and after each axis: the most, where that depends on the size of the image."""
    return padding_widths(conv, (1,) * len(conv.kernel_size))


def too_few_pixels(site: ConvSite, orders: Callable[[Sides], Sides]) -> tuple[int, tuple[int, ...], int] | None:
    """An order of extrapolation that takes more pixels than there are; None if there is none.

    With it, the size of that map, and the highest order that there are enough pixels for, in every call.

    Args:
        site: as far as the sizes of its inputs are known.
        orders: those of each side for the widths of its padding.
    """
    maps = {size: padding_widths(site.plain, size) for size in (call.input_shape[-site.dims :] for call in site.calls)}
    fewest = min(
        (n for size, widths in maps.items() for n, pads in zip(size, widths, strict=True) if any(pads)), default=0
    )
    for size, widths in maps.items():
        for pixels, pads, degrees in zip(size, widths, orders(widths), strict=True):
            for pad, order in zip(pads, degrees, strict=True):
                if pad and pixels <= order:
                    return order, size, fewest - 1
    return None


def greatest_gain(widths: Sides, orders: Sides) -> float:
    """How many times greater errors of the pixels can be in the padding along the axis where that is most."""
    sides = zip(widths, orders, strict=True)
    return max(noise_gain(pad, order) for pads, degrees in sides for pad, order in zip(pads, degrees, strict=True))


def listed(values: Sequence[int]) -> str:
    """One number for all axes if they are the same, otherwise one for each."""
    return str(values[0]) if len(set(values)) == 1 else f"({', '.join(map(str, values))})"


def _unpadded_reason(site: ConvSite) -> str | None:
    """Why there is no border, or None. TensorFlow's SAME pads images of some sizes only."""
    if not any(map(any, widest(site.plain))):
        return NO_BORDER
    sizes = {call.input_shape[-site.dims :]: None for call in site.calls}
    if not sizes or any(any(pair) for size in sizes for pair in padding_widths(site.plain, size)):
        return None
    shown = " and ".join("×".join(map(str, size)) for size in sizes)
    return f"at {shown} pixels {NO_BORDER}: give example_inputs of another size if it is for others too"
