"""Show what a conversion would do, without weights."""

from __future__ import annotations

import argparse

from ..plan import plan
from ..report import report
from ..sources import build_model, parse_source
from . import arguments
from .errors import UsageError
from .output import print_json, progress, show

EXAMPLE = 'convswap plan timm:convnext_tiny --to dcls --where "stages.2.*" --option kernel_count=34'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("model", help="torchvision:NAME, timm:NAME or module.path:factory")
    arguments.add_rules(parser)
    arguments.add_model_args(parser)
    arguments.add_input_size(parser)
    arguments.add_json(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command."""
    if parsed.trust_source and parsed.rules is None:
        raise UsageError("--trust-source is for code that a file of rules names: it goes with --rules")
    rules = arguments.rules(parsed)
    inputs = arguments.example_inputs(parsed)
    source = parse_source(parsed.model, arguments.assignments(parsed.model_arg))
    with progress(f"planning {source}"):
        made = report(plan(build_model(source), rules, example_inputs=inputs))
    if parsed.json:
        print_json(made.to_dict())
    else:
        show(made)
    return 0
