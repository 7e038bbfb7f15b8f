"""Show what convswap finds on this machine."""

from __future__ import annotations

import argparse

from rich.table import Table
from rich.text import Text

from ..doctor import diagnose
from . import arguments
from .output import print_json, progress, show

EXAMPLE = "convswap doctor --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    arguments.add_json(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command. 1 if a target of another package is broken."""
    with progress("looking at this machine"):
        found = diagnose()
    if parsed.json:
        print_json(found.to_dict())
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, version in found.versions.items():
            table.add_row(name, Text(version or "missing", style="" if version else "red"))
        for device in found.devices:
            table.add_row("device", Text(device))
        table.add_row("threads", str(found.threads))
        for name, line in found.compilers.items():
            table.add_row(name, Text(line or "not found"))
        for backend, told in found.kernels.items():
            table.add_row(f"{backend} kernels", Text(told))
        table.add_row("targets", Text(", ".join(found.targets)))
        for name, reason in found.broken_targets.items():
            table.add_row("broken target", Text(f"{name}: {reason}", style="red"))
        show(table)
    return 1 if found.broken_targets else 0
