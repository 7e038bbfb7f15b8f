"""Show the report of a converted file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..files import read_info
from . import arguments
from .output import print_json, show, write

EXAMPLE = "convswap report dy.safetensors --markdown"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("file", type=Path, help="a converted file")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    form.add_argument("--html", action="store_true", help="print an HTML page")
    arguments.add_json(form)  # type: ignore[arg-type]


def run(parsed: argparse.Namespace) -> int:
    """Run the command."""
    info = read_info(parsed.file)
    if parsed.json:
        print_json(info.report.to_dict())
    elif parsed.markdown:
        write(info.report.to_markdown())
    elif parsed.html:
        write(info.report.to_html())
    else:
        source = f"architecture {info.source}" if info.source else "architecture not named"
        show(source)
        show(info.report)
    return 0
