"""Reports for terminals."""

from __future__ import annotations

import io

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .formatting import change, errors_by_layer, headline, notes, shorten, totals, verdict
from .report import Report

TEXT_WIDTH = 140


def to_text(report: Report) -> str:
    """The report as plain text."""
    stream = io.StringIO()
    Console(file=stream, width=TEXT_WIDTH, no_color=True, highlight=False).print(to_rich(report))
    return stream.getvalue().rstrip("\n")


def to_rich(report: Report) -> RenderableType:
    """The report as something that rich can print."""
    parts: list[RenderableType] = [Text(headline(report), style="bold")]
    if report.swaps:
        parts.append(_swap_table(report))
    for note, names in notes(report).items():
        parts.append(Text(f"note: {note}: {shorten(names)}"))
    parts.extend(_kept(report))
    parts.append(_total_table(report))
    if report.unknown_shapes is not None:
        parts.append(Text(f"shapes are unknown: {report.unknown_shapes}", style="yellow"))
    for line in verdict(report):
        failed = report.verification is not None and not report.verification.passed
        parts.append(Text(line, style="red" if failed else "green"))
    return Group(*parts)


def _swap_table(report: Report) -> Table:
    errors = errors_by_layer(report)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    table.add_column("convolution")
    table.add_column("to")
    table.add_column("fidelity")
    table.add_column("parameters", justify="right")
    table.add_column("multiply-adds", justify="right")
    if errors:
        table.add_column("error", justify="right")
    for step in report.swaps:
        row = [
            Text(" = ".join((step.name or "(the model)", *step.aliases))),
            Text(step.geometry),
            Text(str(step.target)),
            Text(str(step.fidelity)),
            Text(change(step.before.parameters, step.after.parameters)),
            Text(change(step.before.multiply_adds, step.after.multiply_adds)),
        ]
        table.add_row(*row, *([errors.get(step.name, "")] if errors else []))
    return table


def _kept(report: Report) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for reason, names in report.keeps_by_reason().items():
        parts.append(Text.assemble(("kept ", "bold"), f"{shorten(names)}: {reason}"))
    for other in report.others:
        parts.append(Text.assemble(("not a site ", "bold"), f"{other.name} ({other.kind}): {other.reason}"))
    return parts


def _total_table(report: Report) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for what, how_much in totals(report):
        table.add_row(Text(what), Text(how_much))
    return table
