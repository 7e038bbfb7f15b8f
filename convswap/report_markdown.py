"""Reports as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from . import attention_words, border_words
from .attention_statistics import AttentionStatistics
from .border_errors import BorderErrors
from .formatting import change, further_columns, headline, notes, shorten, totals
from .freeze_words import freeze_sentences
from .report import Report
from .report_pictures import movement
from .revert_words import revert_sentences
from .verification_words import verdict, warning


def to_markdown(report: Report) -> str:
    """The report as a Markdown document."""
    lines = [f"# {_escape(headline(report))}", ""]
    if report.swaps:
        lines += [*_swap_table(report), ""]
    lines += [f"- note: {_escape(note)}: {_escape(shorten(names))}" for note, names in notes(report).items()]
    moved = movement(report)
    lines += [] if moved is None else [f"- {_escape(moved)}"]
    lines += [
        f"- **kept** {_escape(shorten(names))}: {_escape(reason)}" for reason, names in report.keeps_by_reason().items()
    ]
    lines += [f"- **not a site** {_escape(o.name)} ({_escape(o.kind)}): {_escape(o.reason)}" for o in report.others]
    if lines[-1]:
        lines.append("")
    lines += [_row(("in all", "")), _row(("---", "---:")), *(_row(pair) for pair in totals(report))]
    if report.unknown_shapes is not None:
        lines += ["", f"Shapes are unknown: {_escape(report.unknown_shapes)}"]
    sentences = verdict(report)
    if sentences:
        lines += ["", *(f"- {_escape(sentence)}" for sentence in sentences)]
    warned = warning(report)
    lines += [] if warned is None else [f"- **warning** {_escape(warned)}"]
    done = [*freeze_sentences(report), *revert_sentences(report)]
    if done:
        lines += ["", *(f"- {_escape(sentence)}" for sentence in done)]
    if report.borders is not None:
        lines += ["", *_borders(report.borders)]
    if report.attention is not None:
        lines += ["", *_attention(report.attention)]
    return "\n".join(lines) + "\n"


def _borders(borders: BorderErrors) -> list[str]:
    columns = border_words.columns(borders)
    return [
        f"## {_escape(border_words.headline(borders))}",
        "",
        _escape(border_words.explanation(borders)),
        "",
        _row([*map(_escape, columns)]),
        _row(["---"] + ["---:"] * (len(columns) - 1)),
        *(_row([*map(_escape, row)]) for row in border_words.rows(borders)),
    ]


def _attention(statistics: AttentionStatistics) -> list[str]:
    lines = [f"## {_escape(attention_words.headline(statistics))}"]
    for columns, rows in (
        (attention_words.COLUMNS, attention_words.rows(statistics)),
        (attention_words.RESOLUTION_COLUMNS, attention_words.resolution_rows(statistics)),
    ):
        lines += ["", _row(columns), _row(["---"] * len(columns)), *(_row([*map(_escape, row)]) for row in rows)]
    return [*lines, "", *(f"- {_escape(remark)}" for remark in attention_words.remarks(statistics))]


def _swap_table(report: Report) -> list[str]:
    further = further_columns(report)
    head = ["layer", "convolution", "to", "fidelity", "parameters", "multiply-adds", *further]
    rows = [_row(head), _row(["---"] * 4 + ["---:"] * (len(head) - 4))]
    for step in report.swaps:
        cells = [
            " = ".join((step.name or "(the model)", *step.aliases)),
            step.geometry,
            str(step.target),
            str(step.fidelity),
            change(step.before.parameters, step.after.parameters),
            change(step.before.multiply_adds, step.after.multiply_adds),
        ]
        rows.append(_row([*map(_escape, cells), *(texts.get(step.name, "") for texts in further.values())]))
    return rows


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    for character in "\\`*_<>|[]":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")
