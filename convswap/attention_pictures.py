"""Attention statistics as pictures: bars of each layer's kernels, and how sharp the choice is over the depth."""

from __future__ import annotations

from dataclasses import dataclass

from .attention_statistics import AttentionStatistics, KernelUse
from .attention_words import size
from .formatting import shorten

MOST_ROWS = 60
"""Layers, at each size of their inputs, that are drawn."""

BAR, HEIGHT = 14, 40
"""Width of a bar and height of all, in CSS pixels."""

WIDEST = 280

PLOT_WIDTH, PLOT_HEIGHT = 640, 150

LABEL = 52
"""Width of the words for a size in the plot, in CSS pixels."""

MOST_BARS = 64
"""Kernels of a layer that are drawn."""

MOST_LINES = 4
"""Sizes of each layer's inputs that the plot shows."""


@dataclass(frozen=True)
class Bar:
    """A kernel's bar, of width 1 and from the bottom up, with the spread around its end; the height of all is 1."""

    x: float
    y: float
    height: float
    low: float
    high: float
    caption: str


@dataclass(frozen=True)
class BarChart:
    """The bars of a layer at one size of its inputs.

    Attributes:
        name, size: of the layer, and of its inputs, with how many kernels are drawn if not all are.
        width, height: in CSS pixels.
        equal: where bars would end if all were equal.
        entropy: relative to that of equal weights, and in words.
    """

    name: str
    size: str
    width: int
    height: int
    bars: tuple[Bar, ...]
    equal: float
    entropy: str


@dataclass(frozen=True)
class Point:
    """A layer at one size in the plot of entropies; in CSS pixels."""

    x: float
    y: float
    caption: str


@dataclass(frozen=True)
class Line:
    """The layers of the plot at the largest of the sizes that each has had, or the second largest and so on."""

    opacity: float
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Step:
    """Where, in the plot of entropies, the size of inputs changes; without words where there is no room for them."""

    x: float
    size: str


@dataclass(frozen=True)
class Plot:
    """The entropies over the depth of the network."""

    width: int
    height: int
    lines: tuple[Line, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Pictures:
    """What a page draws, and what it leaves out."""

    charts: tuple[BarChart, ...]
    plot: Plot | None
    left_out: str


def pictures(statistics: AttentionStatistics) -> Pictures:
    """The pictures of some statistics."""
    uses = [(layer.name or "(the model)", use) for layer in statistics.layers for use in layer.sizes]
    top = max(mean + spread for _, use in uses for mean, spread in zip(use.mean, use.spread, strict=True)) or 1.0
    charts = tuple(_chart(name, use, top) for name, use in uses[:MOST_ROWS])
    left_out = list(dict.fromkeys(name for name, _ in uses[MOST_ROWS:]))
    return Pictures(charts, _plot(statistics), shorten(left_out))


def _chart(name: str, use: KernelUse, top: float) -> BarChart:
    bars = tuple(
        Bar(
            k + 0.1,
            round(1 - mean / top, 4),
            round(mean / top, 4),
            round(1 - max(0.0, mean - spread) / top, 4),
            round(1 - (mean + spread) / top, 4),
            f"kernel {k}: {mean:.3f} ± {spread:.3f}",
        )
        for k, (mean, spread) in enumerate(zip(use.mean[:MOST_BARS], use.spread[:MOST_BARS], strict=True))
    )
    total = len(use.mean)
    share = use.relative_entropy
    return BarChart(
        name,
        size(use.size) + (f", {MOST_BARS} of {total} kernels" if total > MOST_BARS else ""),
        min(WIDEST, BAR * len(bars)),
        HEIGHT,
        bars,
        round(1 - sum(use.mean) / total / top, 4),
        "" if share is None else f"{use.entropy:.3f} ({share:.1%} of log K)",
    )


def _plot(statistics: AttentionStatistics) -> Plot | None:
    layers = [layer for layer in statistics.layers if len(layer.whole.mean) > 1]
    if len(layers) < 2:
        return None
    spacing = PLOT_WIDTH / len(layers)
    lines: dict[int, list[Point]] = {}
    steps: list[Step] = []
    before: list[tuple[int, ...]] = []
    labelled = -float(LABEL)
    for place, layer in enumerate(layers):
        for rank, use in enumerate(layer.sizes[:MOST_LINES]):
            share = use.relative_entropy or 0.0
            y = round(PLOT_HEIGHT * (1 - min(1.0, share)), 2)
            caption = f"{layer.name or 'the model'}, {size(use.size)}: {share:.1%}"
            lines.setdefault(rank, []).append(Point(round((place + 0.5) * spacing, 2), y, caption))
        sizes = [use.size for use in layer.sizes]
        if sizes != before:
            x = round(place * spacing, 2)
            room = x - labelled >= LABEL
            steps.append(Step(x, size(sizes[0]) if room else ""))
            labelled, before = x if room else labelled, sizes
    drawn = tuple(Line(round(1 / (rank + 1), 2), tuple(points)) for rank, points in sorted(lines.items()))
    return Plot(PLOT_WIDTH, PLOT_HEIGHT, drawn, tuple(steps))
