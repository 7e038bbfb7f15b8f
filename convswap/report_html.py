"""Reports as HTML. Everything from the model or a file is escaped."""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2

from .formatting import change, further_columns, headline, notes, shorten, totals, verdict
from .report import Report
from .report_pictures import gallery, movement


def to_html(report: Report) -> str:
    """A self-contained page."""
    return _environment().get_template("page.html").render(_context(report))


def to_fragment(report: Report) -> str:
    """The page's content alone, for notebooks."""
    return _environment().get_template("report.html").render(_context(report))


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
    }


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("convswap"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["change"] = lambda pair: change(*pair)
    return environment
