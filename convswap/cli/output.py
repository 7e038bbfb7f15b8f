"""Printing for people and for machines."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.markup import escape

from ..formatting import printable
from .errors import OutputError

PIPE_WIDTH = 140
"""Columns where the output is no terminal, so that tables are not folded to 80."""


def show(what: Any) -> None:
    """Print to standard output what rich can render; a string as it is."""
    plain: dict[str, Any] = {"markup": False, "highlight": False} if isinstance(what, str) else {}
    with _writing():
        _console(sys.stdout).print(what, **plain)


def print_json(data: Any) -> None:
    """Print JSON to standard output; numbers that JSON does not have become null."""
    write(json.dumps(_finite(data), indent=2, allow_nan=False) + "\n")


def write(text: str) -> None:
    """Write text to standard output."""
    with _writing():
        sys.stdout.write(text)


def flush() -> None:
    """Write out what standard output holds back.

    Raises:
        OutputError: if that fails.
    """
    with _writing():
        pass


def discard_output() -> None:
    """Let nothing more be written: Python would try, and fail, once more at its end."""
    with suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_error(message: str) -> None:
    """Print a message to standard error."""
    with suppress(OSError):  # there is nowhere left to say so
        _console(sys.stderr).print(
            f"[bold red]convswap:[/] {escape(printable(message))}", highlight=False, soft_wrap=True
        )


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show on a terminal's standard error what is going on."""
    with _console(sys.stderr).status(escape(what)):
        yield


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"the output could not be written: {error.strerror or error}") from error


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _console(stream: Any) -> Console:
    return Console(file=stream, soft_wrap=False, width=None if stream.isatty() else PIPE_WIDTH)
