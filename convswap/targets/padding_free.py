"""Padding-free convolution as a target (Leng and Thiyagalingam 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..formatting import times
from ..layers import PaddingFreeConv1d, PaddingFreeConv2d, PaddingFreeConv3d
from ..sites import ConvSite
from .bordered_base import BorderedTarget, greatest_gain, listed, too_few_pixels, widest

DEFAULT_ORDER = 2
"""Highest order that is taken unasked: those above magnify noise too much where one layer follows another."""

HIGHEST_ORDER = 50
"""Beyond it, the rounding of the pixels alone is magnified to as much as they are, in double precision too."""


@dataclass(frozen=True)
class PaddingFreeOptions:
    """Options of ``to="padding_free"``.

    Attributes:
        order: degree of the polynomial that continues the image beyond its border: one for all axes or one for each. 0
            repeats the border's pixels, 1 goes on in a straight line; k - 1 for a kernel of k taps is the method's own.
            By default the lesser of k - 1 and 2, as higher orders magnify noise.
        train_edge_kernel: give the outputs at the border a kernel and a bias of their own, which start as copies.
        keep_img_grad_at_invalid: whether the outputs at the border pass a gradient to the image.
    """

    order: int | tuple[int, ...] | None = None
    train_edge_kernel: bool = False
    keep_img_grad_at_invalid: bool = True

    def __post_init__(self) -> None:
        orders = (self.order,) if isinstance(self.order, int) else self.order
        if orders is not None and not all(0 <= order <= HIGHEST_ORDER for order in orders):
            raise ValueError(f"order must be from 0 to {HIGHEST_ORDER}, got {self.order}")


class PaddingFree(BorderedTarget):
    """The image is continued by polynomials through the pixels at its border, instead of padding."""

    name = "padding_free"
    summary = "no padding: the image goes on as a polynomial"
    options = PaddingFreeOptions
    layers: ClassVar[Mapping[int, Any]] = {1: PaddingFreeConv1d, 2: PaddingFreeConv2d, 3: PaddingFreeConv3d}

    def resolve(self, site: ConvSite, options: PaddingFreeOptions) -> PaddingFreeOptions:
        return replace(options, order=_orders(site, options))

    def unsupported_reason(self, site: ConvSite, options: PaddingFreeOptions) -> str | None:
        if isinstance(options.order, tuple) and len(options.order) != site.dims:
            return (
                f"order {options.order} has {len(options.order)} numbers for a convolution of {site.dims} axes: give "
                "one for each axis, or one for all"
            )
        reason = super().unsupported_reason(site, options)
        if reason is not None:
            return reason
        found = too_few_pixels(site, lambda _: [(order, order) for order in _orders(site, options)])
        if found is None:
            return None
        order, size, fitting = found
        return (
            f"order {order} extrapolates from {order + 1} pixels of each axis, and its map is "
            f"{'×'.join(map(str, size))}: choose a lower order (order={fitting}) or larger inputs"
        )

    def note(self, site: ConvSite, options: PaddingFreeOptions) -> str | None:
        padded = [axis for axis, pair in enumerate(widest(site.plain)) if any(pair)]
        widths = [widest(site.plain)[axis] for axis in padded]
        orders, own = ([of[axis] for axis in padded] for of in (_orders(site, options), _own_orders(site)))
        gain, own_gain = (greatest_gain(widths, [(order, order) for order in of]) for of in (orders, own))
        kernel = "×".join(map(str, site.module.kernel_size))
        text = f"extrapolation of order {listed(orders)} for kernels of {kernel}, padded by {max(map(max, widths))}, "
        text += "magnifies no noise" if gain == 1 else f"magnifies noise up to {times(gain)} along an axis"
        if orders == own:
            return f"{text}; it is the method's own order"
        wanted = own if len(set(own)) == 1 else _own_orders(site)
        return f"{text}; the method's own, up to {times(own_gain)}, is order={listed(wanted)}"


def _orders(site: ConvSite, options: PaddingFreeOptions) -> tuple[int, ...]:
    """The order of each axis."""
    if options.order is None:
        return tuple(min(own, DEFAULT_ORDER) for own in _own_orders(site))
    return (options.order,) * site.dims if isinstance(options.order, int) else options.order


def _own_orders(site: ConvSite) -> tuple[int, ...]:
    return tuple(k - 1 for k in site.module.kernel_size)
