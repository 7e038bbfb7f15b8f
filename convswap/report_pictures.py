"""Positions and kernels of DCLS layers as pictures in reports, and in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from .formatting import shorten
from .position_pictures import LEVELS, MOST_CELLS, Maps, PositionPicture
from .report import Report, StepReport

MOST_LAYERS = 24
"""Layers that a report draws."""

WIDTH = 110
"""Width of a picture in a page, in CSS pixels."""

HEADINGS = {"elements": "elements", "weights": "elements by weight", "kernel": "mean magnitude of the kernels"}


@dataclass(frozen=True)
class Drawing:
    """A map as the parts of an SVG picture; all are numbers, or made of numbers.

    Attributes:
        caption: what it shows.
        rows, columns: of cells.
        width, height: in CSS pixels.
        window: x, y, width and height, in cells, of the part that the original kernel spans.
        paths: opacity, and path of the cells that have it.
    """

    caption: str
    rows: int
    columns: int
    width: int
    height: int
    window: tuple[float, float, float, float]
    paths: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Row:
    """The drawings of a layer: of each map at the start and, if there is something else to show, now."""

    step: StepReport
    grid: str
    moved: str
    drawings: tuple[Drawing, ...]


@dataclass(frozen=True)
class Gallery:
    """What a report draws: headings of the columns, rows, and the names of layers that are left out."""

    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    left_out: str


def gallery(report: Report) -> Gallery | None:
    """The pictures of a report, or None if it has none."""
    steps = [(step, step.picture) for step in report.swaps if step.picture is not None]
    if not steps:
        return None
    trained = any(picture.now is not None for _, picture in steps)
    times = ("at the start", "now") if trained else ("",)
    headings = tuple(f"{words} {time}".strip() for words in HEADINGS.values() for time in times)
    rows = tuple(
        Row(step, "×".join(map(str, picture.grid)), _distance(picture.moved), tuple(_drawings(picture, headings)))
        for step, picture in steps[:MOST_LAYERS]
    )
    return Gallery(headings, rows, shorten([step.name for step, _ in steps[MOST_LAYERS:]]))


def movement(report: Report) -> str | None:
    """How far elements have moved since the conversion, in a sentence; None if there are none, or none has moved."""
    moved = {s.name: s.picture.moved for s in report.swaps if s.picture is not None and s.picture.moved is not None}
    if not any(moved.values()):
        return None
    mean = sum(moved.values()) / len(moved)
    most, least = (f"{choose(moved, key=moved.__getitem__)}: " for choose in (max, min))
    ends = f" (most in {most}{max(moved.values()):.3g}, least in {least}{min(moved.values()):.3g})"
    return f"elements have moved by {mean:.3g} pixels on average{ends if len(moved) > 1 else ''}"


def _distance(moved: float | None) -> str:
    return "?" if moved is None else f"{moved:.3g}"


def _drawings(picture: PositionPicture, headings: tuple[str, ...]) -> Iterator[Drawing]:
    times = [picture.start, picture.now or picture.start][: len(headings) // len(HEADINGS)]
    captions = iter(headings)
    for name in HEADINGS:
        for maps in times:
            yield _drawing(picture, maps, name, next(captions))


def _drawing(picture: PositionPicture, maps: Maps, name: str, caption: str) -> Drawing:
    rows, columns = picture.shape
    sizes, extents = ((1, *values)[-2:] for values in (picture.grid, picture.window))
    pixels = -(-max(sizes) // MOST_CELLS)
    spans = [extent / pixels for extent in extents]
    corner = [(size - extent) / 2 / pixels for size, extent in zip(sizes, extents, strict=True)]
    longest = max(rows, columns)
    return Drawing(
        caption,
        rows,
        columns,
        max(10, WIDTH * columns // longest),
        max(10, WIDTH * rows // longest),
        (corner[1], corner[0], spans[1], spans[0]),
        tuple(paths(getattr(maps, name), columns)),
    )


def paths(digits: str, columns: int) -> Iterator[tuple[float, str]]:
    """For each level above 0, its opacity and a path of its cells, runs in a row as one rectangle."""
    runs: dict[int, list[str]] = {}
    for start in range(0, len(digits), columns):
        x = 0
        for digit, same in groupby(digits[start : start + columns]):
            length = len(list(same))
            runs.setdefault(int(digit, 16), []).append(f"M{x} {start // columns}h{length}v1h-{length}z")
            x += length
    for level in sorted(set(runs) - {0}):
        yield round(level / (LEVELS - 1), 2), "".join(runs[level])
