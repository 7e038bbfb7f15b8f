"""Errors at the border as pictures in reports."""

from __future__ import annotations

from dataclasses import dataclass

from .border_errors import BorderErrors
from .border_words import columns, explanation, filter_words, headline, method_words, rows, scales
from .report_pictures import paths

LONGEST = 80
"""Longer side of a picture in a page, in CSS pixels."""


@dataclass(frozen=True)
class ErrorMap:
    """A map as the parts of an SVG picture.

    Attributes:
        caption: what it shows.
        paths: opacity, and path of the cells that have it.
    """

    caption: str
    paths: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Method:
    """A row of a page's table.

    Attributes:
        cells: its name, and its errors.
        maps: of each filter.
        used: whether it is the converted model's.
    """

    cells: tuple[str, ...]
    maps: tuple[ErrorMap, ...]
    used: bool


@dataclass(frozen=True)
class BorderSection:
    """What a page shows; all pictures are of so many cells, and so many CSS pixels."""

    headline: str
    explanation: str
    scales: str
    columns: tuple[str, ...]
    filters: tuple[str, ...]
    methods: tuple[Method, ...]
    shape: tuple[int, ...]
    height: int
    width: int


def section(borders: BorderErrors) -> BorderSection:
    """Table and pictures of some errors."""
    longest = max(borders.shape)
    height, width = (max(1, LONGEST * cells // longest) for cells in borders.shape)
    methods = []
    for i, (name, cells) in enumerate(zip(borders.methods, rows(borders), strict=True)):
        maps = tuple(
            ErrorMap(
                f"{method_words(name)}, {filter_words(each)}",
                tuple(paths(each.methods[i].map, borders.shape[1])),
            )
            for each in borders.filters
        )
        methods.append(Method(cells, maps, name in borders.used))
    return BorderSection(
        headline(borders),
        explanation(borders),
        scales(borders),
        columns(borders),
        tuple(map(filter_words, borders.filters)),
        tuple(methods),
        borders.shape,
        height,
        width,
    )
