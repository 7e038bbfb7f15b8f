"""Printing for people and for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape

from ..formatting import printable

PIPE_WIDTH = 140
"""Columns where the output is no terminal, so that tables are not folded to 80."""


def console() -> Console:
    """The console of standard output."""
    return _console(sys.stdout)


def print_json(data: Any) -> None:
    """Print JSON to standard output."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def print_error(message: str) -> None:
    """Print a message to standard error."""
    _console(sys.stderr).print(f"[bold red]convswap:[/] {escape(printable(message))}", highlight=False, soft_wrap=True)


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show on a terminal's standard error what is going on."""
    with _console(sys.stderr).status(escape(what)):
        yield


def _console(stream: Any) -> Console:
    return Console(file=stream, soft_wrap=False, width=None if stream.isatty() else PIPE_WIDTH)
