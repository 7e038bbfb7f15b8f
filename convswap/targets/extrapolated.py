"""Convolution of an image that is extrapolated as far as its border, as a target (Gupta and Ramani 1978)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..formatting import times
from ..layers import ExtrapolatedConv2d
from ..sites import ConvSite
from .bordered_base import BorderedTarget, greatest_gain, too_few_pixels, widest


@dataclass(frozen=True)
class ExtrapolatedOptions:
    """Options of ``to="extrapolated"``.

    Attributes:
        train_edge_kernel: give the outputs at the border a kernel and a bias of their own, which start as copies.
        keep_img_grad_at_invalid: whether the outputs at the border pass a gradient to the image.
    """

    train_edge_kernel: bool = False
    keep_img_grad_at_invalid: bool = True


class Extrapolated(BorderedTarget):
    """As ``padding_free``, each side with as high an order as it is padded by pixels."""

    name = "extrapolated"
    summary = "padding_free of the order of the padding's width"
    options = ExtrapolatedOptions
    layers: ClassVar[Mapping[int, Any]] = {2: ExtrapolatedConv2d}

    def unsupported_reason(self, site: ConvSite, options: ExtrapolatedOptions) -> str | None:
        reason = super().unsupported_reason(site, options)
        if reason is not None:
            return reason
        found = too_few_pixels(site, lambda widths: widths)
        if found is None:
            return None
        order, size, _ = found
        return (
            f"a padding of {order} is extrapolated from {order + 1} pixels of each axis, and its map is "
            f'{"×".join(map(str, size))}: give larger inputs, or take to="padding_free", whose order is an option'
        )

    def note(self, site: ConvSite, options: ExtrapolatedOptions) -> str | None:
        widths = widest(site.plain)
        order = max(map(max, widths))
        gain = times(greatest_gain(widths, widths))
        return (
            f"extrapolation of order {order}, the padding, magnifies noise up to {gain} along an axis; the order is an "
            "option of padding_free"
        )
