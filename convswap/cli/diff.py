"""Compare two models: names, checkpoints or converted files."""

from __future__ import annotations

import argparse

from ..diff import diff
from . import arguments
from .output import print_json, progress, show

EXAMPLE = "convswap diff resnet50.pth dy.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    for name in ("a", "b"):
        parser.add_argument(name, help="a checkpoint, a converted file, or torchvision:NAME, timm:NAME, module:factory")
    arguments.add_json(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command."""
    with progress(f"comparing {parsed.a} with {parsed.b}"):
        found = diff(parsed.a, parsed.b)
    if parsed.json:
        print_json(found.to_dict())
    else:
        show(found)
    return 0
