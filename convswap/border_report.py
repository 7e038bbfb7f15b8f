"""Errors at the border for the report of a conversion that was verified on photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from .border_errors import LEAST_SIZE, MARGIN, ORDERS, BorderErrors, border_errors
from .border_methods import LARGEST
from .inputs import as_call
from .plan import Step
from .targets.bordered_base import widest
from .verify import ReadInputs

MOST_PHOTOS = 4
"""Of a batch, that are looked at."""

MOST_PIXELS = 256
"""Rows and columns in the middle of larger photos, that are looked at."""

_METHODS = {
    "extrapolated": "extrapolated",
    "partial": "partial",
    "random_pad": "random",
    "explicit_boundary": "zeros",  # which its kernels have beneath
}


def borders_of(steps: Sequence[Step], inputs: ReadInputs) -> BorderErrors | None:
    """Errors at the border of the photos that a conversion is verified on.

    Args:
        steps: of the conversion.
        inputs: what it is verified on.

    Returns:
        The errors; None if no step is to a target that is about borders, or the inputs are no photos: they were
        drawn, or are no tensor with 4 axes, 1 or 3 channels and at least 24×24 pixels.
    """
    methods = _methods([step for step in steps if step.action == "swap"])
    photos = _photos(inputs) if methods else None
    if photos is None:
        return None
    orders = {int(method.removeprefix("order ")) for method in methods if method.startswith("order ")}
    fitting = {order for order in orders if order < min(photos.shape[-2:]) - 2 * MARGIN}
    found = border_errors(photos, orders=sorted({*ORDERS, *fitting}))
    return replace(found, used=tuple(method for method in found.methods if method in methods))


def _methods(swaps: Sequence[Step]) -> set[str]:
    """What conversions do at borders, as `border_errors` calls it.

    That is of order k-1 where this is what kernels of several sizes have in common. One order for all of them is told
    as that order, as filters of another size have another k-1.
    """
    found = {_METHODS[step.target] for step in swaps if step.target in _METHODS}
    orders = [
        (order, taps)
        for step in swaps
        if step.target == "padding_free"
        for order, taps, pads in zip(
            step.options.order, step.site.module.kernel_size, widest(step.site.plain), strict=True
        )
        if any(pads)
    ]
    if len(set(orders)) > 1 and all(order == taps - 1 for order, taps in orders):
        return found | {"padding_free"}
    return found | {"replicate" if order == 0 else f"order {order}" for order, _ in orders}


def _photos(inputs: ReadInputs) -> Tensor | None:
    """The inputs, if they are photos, at most some and their middles."""
    args, kwargs = as_call(inputs.given)
    if inputs.random or len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
        return None
    photos = args[0]
    if photos.dim() != 4 or photos.shape[1] not in (1, 3) or not len(photos) or photos.is_meta:
        return None
    if not photos.is_floating_point() or min(photos.shape[-2:]) < LEAST_SIZE + 2 * MARGIN:
        return None
    photos = photos[:MOST_PHOTOS]
    for axis in (2, 3):
        surplus = max(0, photos.shape[axis] - MOST_PIXELS)
        photos = photos.narrow(axis, surplus // 2, photos.shape[axis] - surplus)
    return photos if photos.abs().max() <= LARGEST else None  # neither is NaN
