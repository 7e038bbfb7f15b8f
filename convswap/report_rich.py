"""Reports for terminals."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from . import attention_rich, border_rich
from .formatting import change, further_columns, headline, notes, shorten, totals
from .freeze_words import freeze_sentences
from .report import Report
from .report_pictures import movement
from .revert_words import revert_sentences
from .rich_text import plain, rendered
from .verification_words import verdict, warning


def to_text(report: Report) -> str:
    """The report as plain text."""
    return rendered(to_rich(report))


def to_rich(report: Report) -> RenderableType:
    """The report as something that rich can print."""
    parts: list[RenderableType] = [plain(headline(report), style="bold")]
    if report.swaps:
        parts.append(_swap_table(report))
    for note, names in notes(report).items():
        parts.append(plain(f"note: {note}: {shorten(names)}"))
    moved = movement(report)
    if moved is not None:
        parts.append(plain(moved))
    parts.extend(_kept(report))
    parts.append(_total_table(report))
    if report.unknown_shapes is not None:
        parts.append(plain(f"shapes are unknown: {report.unknown_shapes}", style="yellow"))
    for line in verdict(report):
        failed = report.verification is not None and not report.verification.passed
        parts.append(plain(line, style="red" if failed else "green"))
    warned = warning(report)
    if warned is not None:
        parts.append(plain(warned, style="yellow"))
    parts += [plain(sentence) for sentence in (*freeze_sentences(report), *revert_sentences(report))]
    if report.borders is not None:
        parts.append(border_rich.to_rich(report.borders))
    if report.attention is not None:
        parts.append(attention_rich.to_rich(report.attention))
    return Group(*parts)


def _swap_table(report: Report) -> Table:
    further = further_columns(report)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    table.add_column("convolution")
    table.add_column("to")
    table.add_column("fidelity")
    table.add_column("parameters", justify="right")
    table.add_column("multiply-adds", justify="right")
    for heading in further:
        table.add_column(heading, justify="right")
    for step in report.swaps:
        row = [
            plain(" = ".join((step.name or "(the model)", *step.aliases))),
            plain(step.geometry),
            plain(str(step.target)),
            plain(str(step.fidelity)),
            plain(change(step.before.parameters, step.after.parameters)),
            plain(change(step.before.multiply_adds, step.after.multiply_adds)),
        ]
        table.add_row(*row, *(texts.get(step.name, "") for texts in further.values()))
    return table


def _kept(report: Report) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for reason, names in report.keeps_by_reason().items():
        parts.append(_labelled("kept ", f"{shorten(names)}: {reason}"))
    for other in report.others:
        parts.append(_labelled("not a site ", f"{other.name} ({other.kind}): {other.reason}"))
    return parts


def _labelled(label: str, text: str) -> Text:
    return Text.assemble((label, "bold"), plain(text))


def _total_table(report: Report) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for what, how_much in totals(report):
        table.add_row(plain(what), plain(how_much))
    return table
