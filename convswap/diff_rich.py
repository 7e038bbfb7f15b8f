"""Comparisons for terminals."""

from __future__ import annotations

import io

from rich.console import Console, Group, RenderableType
from rich.table import Table

from .diff import Diff, LayerDiff
from .formatting import count
from .rich_text import plain

SHOWN_DISTANCES = 20


def to_text(diff: Diff) -> str:
    """The comparison as plain text."""
    stream = io.StringIO()
    Console(file=stream, width=140, no_color=True, highlight=False).print(to_rich(diff))
    return stream.getvalue().rstrip("\n")


def to_rich(diff: Diff) -> RenderableType:
    """The comparison as something that rich can print."""
    a, b = diff.names
    parts: list[RenderableType] = [
        plain(f"{a}: {count(diff.parameters[0])} numbers; {b}: {count(diff.parameters[1])}", style="bold")
    ]
    parts.append(_layer_table(diff) if diff.layers else plain("the same layers, with the same shapes"))
    if not diff.weights_compared:
        parts.append(plain("weights are not compared: a bare architecture has random ones"))
    elif diff.distances:
        parts.append(_distance_table(diff))
    if diff.weights_compared:
        parts.append(plain(f"{diff.equal} tensors are equal bit for bit, {len(diff.distances)} have other numbers"))
    return Group(*parts)


def _layer_table(diff: Diff) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    for name in diff.names:
        table.add_column(name, overflow="fold")
    for layer in diff.layers:
        table.add_row(plain(layer.name or "(the model)"), plain(_cell(layer, 0)), plain(_cell(layer, 1)))
    return table


def _cell(layer: LayerDiff, side: int) -> str:
    shapes = layer.shapes[side]
    if shapes is None:
        return "-"
    kind = layer.kinds[side]
    held = ", ".join(f"{name} {'×'.join(map(str, shape)) or 'number'}" for name, shape in shapes.items())
    return f"{kind}: {held}" if kind else held


def _distance_table(diff: Diff) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", overflow="fold")
    table.add_column("greatest difference", justify="right")
    table.add_column("relative distance", justify="right")
    for distance in diff.distances[:SHOWN_DISTANCES]:
        table.add_row(plain(distance.name), f"{distance.greatest:.2e}", f"{distance.relative:.2e}")
    if len(diff.distances) > SHOWN_DISTANCES:
        table.add_row(f"… and {len(diff.distances) - SHOWN_DISTANCES} more", "", "")
    return table
