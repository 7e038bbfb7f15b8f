"""Errors at the border for terminals."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from .border_errors import BorderErrors
from .border_words import columns, explanation, headline, rows
from .rich_text import plain, rendered


def to_text(borders: BorderErrors) -> str:
    """The errors as plain text."""
    return rendered(to_rich(borders))


def to_rich(borders: BorderErrors) -> RenderableType:
    """The errors as something that rich can print."""
    return Group(plain(headline(borders), style="bold"), plain(explanation(borders)), table(borders))


def table(borders: BorderErrors) -> Table:
    """A row for each way to treat the border."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    name, *filters = columns(borders)
    made.add_column(plain(name))
    for heading in filters:
        made.add_column(plain(heading), justify="right")
    for row in rows(borders):
        made.add_row(*map(plain, row), style="bold" if "←" in row[0] else None)
    return made
