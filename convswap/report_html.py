"""Reports as HTML. Everything from the model or a file is escaped."""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2

from . import attention_words
from .attention_pictures import pictures
from .attention_statistics import AttentionStatistics
from .border_errors import BorderErrors
from .border_pictures import section
from .formatting import change, further_columns, headline, notes, shorten, totals
from .freeze_words import freeze_sentences
from .report import Report
from .report_pictures import gallery, movement
from .revert_words import revert_sentences
from .verification_words import verdict, warning


def to_html(report: Report) -> str:
    """A self-contained page."""
    return _environment().get_template("page.html").render(_context(report))


def to_fragment(report: Report) -> str:
    """The page's content alone, for notebooks."""
    return _environment().get_template("report.html").render(_context(report))


def attention_fragment(statistics: AttentionStatistics) -> str:
    """Attention statistics alone, for notebooks."""
    template = _environment().get_template("attention.html")
    return f'<div class="convswap">\n{template.render(attention=_attention(statistics))}\n</div>'


def border_fragment(borders: BorderErrors) -> str:
    """Errors at the border alone, for notebooks."""
    template = _environment().get_template("borders.html")
    return f'<div class="convswap">\n{template.render(borders=section(borders))}\n</div>'


def _attention(statistics: AttentionStatistics) -> dict[str, Any]:
    return {
        "headline": attention_words.headline(statistics),
        "remarks": attention_words.remarks(statistics),
        "pictures": pictures(statistics),
        "tables": (
            (attention_words.COLUMNS, attention_words.rows(statistics)),
            (attention_words.RESOLUTION_COLUMNS, attention_words.resolution_rows(statistics)),
        ),
    }


def _context(report: Report) -> dict[str, Any]:
    return {
        "report": report,
        "headline": headline(report),
        "further": further_columns(report),
        "gallery": gallery(report),
        "movement": movement(report),
        "notes": {note: shorten(names) for note, names in notes(report).items()},
        "kept": report.keeps_by_reason(),
        "totals": totals(report),
        "verdict": verdict(report),
        "warning": warning(report),
        "made_plain": {"Frozen": freeze_sentences(report), "Reverted": revert_sentences(report)},
        "attention": None if report.attention is None else _attention(report.attention),
        "borders": None if report.borders is None else section(report.borders),
    }


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("convswap"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["change"] = lambda pair: change(*pair)
    return environment
