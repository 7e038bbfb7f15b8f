"""Attention statistics for terminals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from .attention_statistics import AttentionStatistics
from .attention_words import COLUMNS, RESOLUTION_COLUMNS, headline, remarks, resolution_rows, rows
from .rich_text import plain, rendered


def to_text(statistics: AttentionStatistics) -> str:
    """The statistics as plain text."""
    return rendered(to_rich(statistics))


def to_rich(statistics: AttentionStatistics) -> RenderableType:
    """The statistics as something that rich can print."""
    parts: list[RenderableType] = [plain(headline(statistics), style="bold")]
    parts.append(_table(COLUMNS, rows(statistics)))
    parts.append(_table(RESOLUTION_COLUMNS, resolution_rows(statistics)))
    parts += [plain(remark) for remark in remarks(statistics)]
    return Group(*parts)


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(*map(plain, line))
    return table
