"""How far each way to treat the border of a photo is from what lies beyond it: numbers, and small maps of errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .border_methods import DRAWS, LARGEST, Border, Pad, border_of_padded, borders, filters
from .errors import ConvswapError
from .field_types import NO_FIT, checked, fit
from .position_pictures import LEVELS, MOST_CELLS, map_shape

MARGIN = 4
"""Pixels on each side that are cut off, to be known and not to be seen."""

LEAST_SIZE = 16
"""Rows and columns that must be left."""

ORDERS = (1, 2)
"""Orders of extrapolation that are shown besides those of the methods."""

NO_TRUTH = 1e-6
"""True values that are smaller, relative to the greatest that the filter could give of the photo, are its rounding."""


@dataclass(frozen=True)
class MethodError:
    """What one way to treat the border gives for one filter.

    Attributes:
        method: ``"zeros"``, ``"reflect"``, ``"replicate"``, ``"circular"``, ``"partial"``, ``"random"``,
            ``"extrapolated"`` (of order p), ``"padding_free"`` (of order k−1), ``"order <n>"`` (extrapolation of that
            order), or a name that was given to `border_errors`.
        error: root mean square, over the outputs whose windows cross the border, of the difference from the true
            output, divided by the root mean square of these true outputs. None if those are 0 but for rounding.
        map: the crop of the first photo in cells, row by row, a hexadecimal digit each: the greatest difference in the
            cell, over all channels and outputs, relative to `FilterErrors.scale`: ``"f"`` is that or more, ``"0"`` at
            most a thirtieth of it.
    """

    method: str
    error: float | None
    map: str


@dataclass(frozen=True)
class FilterErrors:
    """What a filter gives at the border.

    Attributes:
        filter: ``"gaussian"``, ``"sobel"`` or ``"laplacian"``, see `border_methods.filters`.
        kernel: rows and columns of its taps.
        scale: error of a map's darkest cells, relative as the errors are: the greatest that ``"replicate"`` makes, so
            that ways that are far off do not hide the others; where that is rounding alone, the greatest of all.
        methods: each way to treat the border.
    """

    filter: str
    kernel: int
    scale: float
    methods: tuple[MethodError, ...]

    def error(self, method: str) -> float | None:
        """The error of a method.

        Raises:
            KeyError: if it is not there.
        """
        return {each.method: each.error for each in self.methods}[method]


@dataclass(frozen=True)
class BorderErrors:
    """How far ways to treat the border are from the truth, which is to filter a larger photo and to crop then.

    Attributes:
        photos: how many photos errors are taken over.
        size: rows and columns of the photos without the margin.
        margin: pixels on each side that were cut off before.
        draws: how often random padding was drawn.
        shape: rows and columns of the maps.
        filters: what each filter gives.
        used: methods that a conversion whose report this belongs to uses.
    """

    photos: int
    size: tuple[int, ...]
    margin: int
    draws: int
    shape: tuple[int, ...]
    filters: tuple[FilterErrors, ...]
    used: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods."""
        return tuple(each.method for each in self.filters[0].methods)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BorderErrors:
        """The inverse of `to_dict`, for data of any origin.

        Raises:
            TypeError, ValueError, KeyError: if the data is none.
        """
        made = checked(cls(**{**data, "filters": tuple(map(_filter_from, data["filters"]))}))
        if not all(len(values) == 2 and min(values) > 0 for values in (made.size, made.shape)):
            raise ValueError(f"a photo cannot be of size {made.size}, with maps of {made.shape}")
        if max(made.shape) > MOST_CELLS:
            raise ValueError(f"a map cannot be of shape {made.shape}")
        if not made.filters or any([m.method for m in each.methods] != [*made.methods] for each in made.filters):
            raise ValueError("each filter must have errors of the same methods")
        for method in (method for each in made.filters for method in each.methods):
            if len(method.map) != math.prod(made.shape) or not set(method.map) <= set("0123456789abcdef"):
                raise ValueError(f"a map of shape {made.shape} has other cells")
        return made

    def _repr_html_(self) -> str:
        from .report_html import border_fragment

        return border_fragment(self)

    def __rich__(self) -> Any:
        from .border_rich import to_rich

        return to_rich(self)

    def __str__(self) -> str:
        from .border_rich import to_text

        return to_text(self)


@torch.no_grad()
def border_errors(
    photo: Tensor,
    *,
    margin: int = MARGIN,
    seed: int = 0,
    orders: Sequence[int] = ORDERS,
    further: Mapping[str, Pad] | None = None,
) -> BorderErrors:
    """Filter photos that are treated at the border in each way, and compare with the truth.

    The photos are cropped by the margin; the crop is filtered by each method. The truth is the larger photo filtered
    and then cropped. Only outputs whose windows cross the border of the crop are compared: all others are the same.
    Everything is computed in double precision on the CPU.

    Args:
        photo: (B, C, H, W) or (C, H, W), floating-point, of any range: zeros are the photo's own zero.
        margin: at least 2 pixels, which is how far the largest filter looks.
        seed: of the random padding, which is drawn 8 times. The global generators are left alone.
        orders: of extrapolation, shown besides the methods' own.
        further: other ways to pad, by name: functions of (images, p) that return the padded images, for images
            (B, 1, H, W): each channel of each photo is one.

    Raises:
        ConvswapError: if the photo is of another form, too small, has numbers that are not finite or beyond 1e100, the
            margin is too narrow, an order does not fit, an argument is of another type, or ``further`` has a name that
            is taken or gives images of another form.
    """
    images = _images(photo)
    margin = _fitting("margin", margin, int, "a whole number of pixels")
    orders = _fitting("orders", orders, tuple[int, ...], "several whole numbers")
    seed = _fitting("seed", seed, int, "a whole number")
    further = _fitting("further", further or {}, Mapping[str, Pad], "functions by name")
    if not -(2**63) <= seed < 2**64:
        raise ConvswapError(f"seed must have at most 64 bits, got {seed}")
    if margin < 2:
        raise ConvswapError(f"margin must be at least 2 pixels, got {margin}")
    size = tuple(extent - 2 * margin for extent in images.shape[-2:])
    if min(size) < LEAST_SIZE:
        raise ConvswapError(
            f"without a margin of {margin} pixels the photo has {size[0]}×{size[1]}: it must have {LEAST_SIZE} rows "
            "and columns. Give a larger photo, or a smaller margin"
        )
    if not all(0 <= order < min(size) for order in orders):
        raise ConvswapError(f"orders must be from 0 to {min(size) - 1} for this photo, got {tuple(orders)}")
    flat = images.flatten(0, 1).unsqueeze(1)
    shape, pixels = map_shape(size)
    maps = _Maps(size, shape, pixels, shown=images.shape[1])  # the channels of the first photo
    found = []
    for name, kernel in filters().items():
        reach = margin - kernel.shape[-1] // 2
        truth = border_of_padded(_without(flat, reach), kernel)
        got = borders(_without(flat, margin), kernel, orders, further, seed)
        possible = kernel.abs().flatten(1).sum(1).max().item() * flat.abs().max().item()
        found.append(_filter_errors(name, kernel, truth, got, possible, maps))
    return BorderErrors(len(images), size, margin, DRAWS, shape, tuple(found))


def _images(photo: Tensor) -> Tensor:
    """(B, C, H, W) in double precision."""
    if not isinstance(photo, Tensor) or photo.dim() not in (3, 4) or not photo.is_floating_point():
        what = f"{photo.dtype} of shape {tuple(photo.shape)}" if isinstance(photo, Tensor) else type(photo).__name__
        raise ConvswapError(f"photo must be a floating-point tensor (B, C, H, W) or (C, H, W), got {what}")
    images = photo if photo.dim() == 4 else photo.unsqueeze(0)
    if not images.numel():
        raise ConvswapError(f"there is no photo in a tensor of shape {tuple(photo.shape)}")
    images = images.detach().to(device="cpu", dtype=torch.float64)
    if not images.abs().max() <= LARGEST:  # nor is NaN
        raise ConvswapError(f"the photo has numbers that are not finite, or greater than {LARGEST:g}: scale them")
    return images


def _fitting(name: str, value: Any, hint: Any, what: str) -> Any:
    fitted = fit(value, hint)
    if fitted is NO_FIT:
        raise ConvswapError(f"{name} must be {what}, got {value!r}")
    return fitted


def _without(images: Tensor, margin: int) -> Tensor:
    return images[..., margin : images.shape[-2] - margin, margin : images.shape[-1] - margin]


def _filter_errors(
    name: str, kernel: Tensor, truth: Border, got: Mapping[str, list[Border]], possible: float, maps: _Maps
) -> FilterErrors:
    unit = _root_mean_square([truth])
    if unit <= NO_TRUTH * possible:
        blank = "0" * math.prod(maps.shape)
        return FilterErrors(name, kernel.shape[-1], 0.0, tuple(MethodError(method, None, blank) for method in got))
    differences = {
        method: [tuple((strip - true) / unit for strip, true in zip(border, truth, strict=True)) for border in drawn]
        for method, drawn in got.items()
    }
    cells = {method: maps.cells(drawn[0]) for method, drawn in differences.items()}
    usual, most = cells["replicate"].max().item(), torch.stack([*cells.values()]).max().item()
    scale = usual if usual > NO_TRUTH * most else most
    methods = tuple(
        MethodError(method, _root_mean_square(drawn), _digits(cells[method], scale))
        for method, drawn in differences.items()
    )
    return FilterErrors(name, kernel.shape[-1], scale, methods)


def _root_mean_square(drawn: Sequence[Border]) -> float:
    return torch.cat([strip.flatten() for border in drawn for strip in border]).square().mean().sqrt().item()


@dataclass(frozen=True)
class _Maps:
    """How maps are drawn: of photos of a size, in cells of some pixels, and of how many of the images."""

    size: tuple[int, ...]
    shape: tuple[int, int]
    pixels: int
    shown: int

    def cells(self, border: Border) -> Tensor:
        """The greatest magnitude in each cell; within the border there is nothing."""
        top, bottom, left, right = (strip[: self.shown].abs().amax((0, 1)) for strip in border)
        whole = torch.zeros([self.pixels * cells for cells in self.shape], dtype=torch.float64, device="cpu")
        rows, columns = self.size
        pad = len(top)
        whole[:pad, :columns] = top
        whole[rows - pad : rows, :columns] = bottom
        whole[pad : rows - pad, :pad] = left
        whole[pad : rows - pad, columns - pad : columns] = right
        return F.max_pool2d(whole[None], self.pixels)[0]


def _digits(cells: Tensor, scale: float) -> str:
    levels = (cells / max(scale, 1e-300)).clamp(0, 1) * (LEVELS - 1)
    return "".join(f"{int(level):x}" for level in levels.round().flatten().tolist())


def _filter_from(data: Mapping[str, Any]) -> FilterErrors:
    methods = tuple(checked(MethodError(**method)) for method in data["methods"])
    return checked(FilterErrors(**{**data, "methods": methods}))
