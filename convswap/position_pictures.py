"""Where the elements of DCLS layers are on their grids, and what they draw there, as small maps that JSON can hold."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from .field_types import checked
from .layers import Dcls1d, Dcls2d, Dcls3d
from .layers.dcls_grid import position_axes
from .layers.functional import construct_kernel

LEVELS = 16
"""A map's cells are one hexadecimal digit each."""

MOST_CELLS = 33
"""Along each axis of a map; larger grids have several pixels to a cell."""

SAMPLED_ELEMENTS = 256
"""Elements of a layer whose positions at the start are noted, to say later how far they have moved."""

ELEMENTS_DRAWN = 2**15
KERNEL_NUMBERS_DRAWN = 2**20


@dataclass(frozen=True)
class Maps:
    """Three maps of a layer's grid, row by row, each relative to its greatest cell: ``"f"`` is that, ``"0"`` nothing.

    Attributes:
        elements: how many elements are nearest to each cell.
        weights: the same, each element counted by the magnitude of its weight.
        kernel: mean magnitude of the dense kernels.
    """

    elements: str
    weights: str
    kernel: str


@dataclass(frozen=True)
class PositionPicture:
    """A layer's positions and kernels when it was made, and at present.

    Attributes:
        grid: the layer's ``dilated_kernel_size``.
        window: pixels on each axis that the kernel it was made from spans.
        shape: rows and columns of the maps: a single row in one dimension, and in three the sum over the first axis.
        start: the maps when the layer was made.
        now: the maps at present, or None if all is as it was at the start, as far as is known.
        sample: positions of some elements at the start, (element, axis) row by row: little-endian numbers in single
            precision as base64 text.
        moved: mean distance, in pixels, of these elements from there; None if it is not known.
    """

    grid: tuple[int, ...]
    window: tuple[int, ...]
    shape: tuple[int, ...]
    start: Maps
    now: Maps | None
    sample: str
    moved: float | None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PositionPicture:
        """The inverse of ``dataclasses.asdict``, for data of any origin.

        Raises:
            TypeError, ValueError: if the data is no picture.
        """
        maps = {name: None if data[name] is None else checked(Maps(**data[name])) for name in ("start", "now")}
        made = checked(cls(**{**data, **maps}))
        if len(made.shape) != 2 or not all(0 < cells <= MOST_CELLS for cells in made.shape):
            raise ValueError(f"a map cannot be of shape {made.shape}")
        if not 1 <= len(made.grid) == len(made.window) <= 3 or min(*made.grid, *made.window) < 1:
            raise ValueError(f"a grid cannot be {made.grid} with a window of {made.window}")
        for drawn in (made.start, *([] if made.now is None else [made.now])):
            for digits in asdict(drawn).values():
                if len(digits) != math.prod(made.shape) or not set(digits) <= set("0123456789abcdef"):
                    raise ValueError(f"a map of shape {made.shape} has other cells")
        if len(base64.b64decode(made.sample, validate=True)) % (4 * len(made.grid)):
            raise ValueError(f"the sample holds no positions on {len(made.grid)} axes")
        return made

    def at_present(self, layer: nn.Module) -> PositionPicture:
        """The same with what ``layer``, which may have been trained since, shows now.

        Of what is no such layer any more, or is sharded or without numbers, nothing is known.
        """
        unknown = replace(self, now=None, moved=None)
        if not _shows(layer) or layer.dilated_kernel_size != self.grid:
            return unknown
        start, positions = _decoded(self.sample, len(self.grid)), _sampled(layer)
        if start.shape != positions.shape:
            return unknown
        distances = (positions - start).norm(dim=1)
        distances = distances[distances.isfinite()]
        moved = distances.mean().item() if len(distances) else None
        maps = _maps(layer)
        return replace(self, now=None if moved == 0 and maps == self.start else maps, moved=moved)


def start_picture(layer: nn.Module) -> PositionPicture | None:
    """The picture of a layer that has just been made; None if it has no positions, or no numbers yet."""
    if not _shows(layer):
        return None
    shape, _ = map_shape(layer.dilated_kernel_size)
    sample = _encoded(_sampled(layer))
    return PositionPicture(layer.dilated_kernel_size, layer.window, shape, _maps(layer), None, sample, moved=0.0)


def _shows(layer: nn.Module) -> TypeGuard[Dcls1d | Dcls2d | Dcls3d]:
    """Whether it is a layer with positions whose numbers are all here: not on the meta device, not sharded."""
    if not isinstance(layer, Dcls1d | Dcls2d | Dcls3d):
        return False
    return not any(p.is_meta or hasattr(p, "full_tensor") for p in layer.parameters())


def map_shape(sizes: tuple[int, ...]) -> tuple[tuple[int, int], int]:
    """Rows and columns of a map, and pixels along each side of a cell."""
    rows, columns = (1, *sizes)[-2:]
    pixels = math.ceil(max(rows, columns) / MOST_CELLS)
    return (math.ceil(rows / pixels), math.ceil(columns / pixels)), pixels


@torch.no_grad()
def _sampled(layer: Any) -> Tensor:
    """(element, axis): positions of elements that are spread over the whole layer."""
    positions = layer.P.detach().flatten(1)
    number = positions.shape[1]
    count = min(number, SAMPLED_ELEMENTS)
    chosen = torch.arange(count, dtype=torch.float64, device="cpu")
    if number > count:  # steps of the golden ratio: evenly spread, and in no rhythm with the number of elements
        chosen = chosen * (math.sqrt(5) - 1) / 2 % 1 * number
    found: Tensor = positions[:, chosen.long().to(positions.device)].T.cpu().float()
    return found


def _encoded(positions: Tensor) -> str:
    return base64.b64encode(struct.pack(f"<{positions.numel()}f", *positions.flatten().tolist())).decode()


def _decoded(sample: str, axes: int) -> Tensor:
    data = base64.b64decode(sample)
    return torch.tensor(struct.unpack(f"<{len(data) // 4}f", data), device="cpu").view(-1, axes)


@torch.no_grad()
def _maps(layer: Any) -> Maps:
    """The maps of a layer, of a part of its kernels if there are many."""
    sizes: tuple[int, ...] = layer.dilated_kernel_size
    weight, P, SIG = _some_kernels(layer, math.prod(sizes))
    (rows, columns), pixels = map_shape(sizes)
    axes = position_axes(layer.version, len(sizes))
    cells = torch.zeros(weight.shape, dtype=torch.long, device="cpu")
    for axis, stride in ((len(sizes) - 1, 1), (len(sizes) - 2, columns)):
        if axis >= 0:
            pixel = (P[axes.index(axis)] + sizes[axis] // 2).round().clamp(0, sizes[axis] - 1)
            cells += pixel.nan_to_num(0).long() // pixels * stride
    kernel = construct_kernel(weight, P, SIG, sizes, layer.version, layer.least_sigma.get(layer.version))
    magnitude = kernel.abs().flatten(0, 1).mean(0)
    while magnitude.dim() > 2:
        magnitude = magnitude.sum(0)
    magnitude = magnitude.reshape((1, *magnitude.shape)[-2:])
    row, column = (torch.arange(size, device="cpu") // pixels for size in magnitude.shape)
    places = row[:, None] * columns + column

    def digits(index: Tensor, amounts: Tensor) -> str:
        amounts = amounts.flatten().double().nan_to_num(0, 0, 0)
        summed = torch.bincount(index.flatten(), amounts, rows * columns)
        levels = summed / summed.max().clamp_min(1e-300) * (LEVELS - 1)
        return "".join(f"{int(level):x}" for level in levels.round().tolist())

    return Maps(
        elements=digits(cells, torch.ones_like(weight)),
        weights=digits(cells, weight.abs()),
        kernel=digits(places, magnitude),
    )


def _some_kernels(layer: Any, grid: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weight, P and SIG of so many kernels, evenly spread, as can be drawn in little time; on the CPU."""
    outputs, inputs, count = layer.weight.shape
    most = max(1, min(ELEMENTS_DRAWN // count, KERNEL_NUMBERS_DRAWN // grid))
    step = math.ceil(outputs * inputs / most)

    def some(value: Tensor) -> Tensor:
        part = value.detach().reshape(*value.shape[:-3], outputs * inputs, 1, count)[..., ::step, :, :].cpu()
        return part.to(torch.promote_types(value.dtype, torch.float32))

    return some(layer.weight), some(layer.P), None if layer.SIG is None else some(layer.SIG)
