"""List what convolutions can be converted to, with options."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from rich.table import Table
from rich.text import Text

from ..targets import Target, all_targets
from . import arguments
from .output import print_json, show

EXAMPLE = "convswap targets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    arguments.add_json(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command."""
    targets = all_targets()
    if parsed.json:
        print_json({name: {"summary": t.summary, "options": _options(t)} for name, t in targets.items()})
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("target", "what it is", "options and defaults"):
        table.add_column(heading)
    for name, target in targets.items():
        options = ", ".join(f"{option}={default}" for option, default in _options(target).items())
        table.add_row(Text(name, style="bold"), Text(target.summary), Text(options))
    show(table)
    return 0


def _options(target: Target) -> dict[str, Any]:
    return {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(target.options)
    }
