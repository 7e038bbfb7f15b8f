from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import convswap

NET = "tests.models:TwoConvs"
"""A model of two convolutions, as the command line names it. Its input size is unknown."""


@dataclass(frozen=True)
class Outcome:
    """What a command gave: its exit code, and what it printed."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


def load(path: Path) -> Any:
    """The model of a converted file."""
    return convswap.load(path, trust_source=True).eval()


def contents(folder: Path) -> dict[str, bytes]:
    """All files in a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(cli: Cli, folder: Path, *arguments: object, code: int = 1) -> str:
    """Run a command that must fail with nothing written or changed in ``folder``, and return its message on one line.

    The lines of the message are joined by spaces.
    """
    before = contents(folder)
    outcome = cli(*arguments)
    assert outcome.code == code, outcome
    assert contents(folder) == before
    assert outcome.out == ""
    assert "please report it" not in outcome.err  # what is said of errors that nobody foresaw
    return " ".join(outcome.err.split())
