"""Text for terminals, taken literally."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType
from rich.text import Text

from .formatting import printable

TEXT_WIDTH = 140


def plain(text: str, style: str = "") -> Text:
    """Text that rich takes literally, without control characters."""
    return Text(printable(text), style=style)


def rendered(what: RenderableType) -> str:
    """What rich prints of it, as plain text."""
    stream = io.StringIO()
    Console(file=stream, width=TEXT_WIDTH, no_color=True, highlight=False).print(what)
    return stream.getvalue().rstrip("\n")
