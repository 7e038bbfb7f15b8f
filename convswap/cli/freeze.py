"""Turn the layers of a converted file into plain convolutions, and write the result."""

from __future__ import annotations

import argparse

from ..data_files import DataFiles
from ..freezing import freeze
from . import arguments
from .errors import UsageError
from .output import progress
from .writing import write_model

EXAMPLE = "convswap freeze dy.safetensors --out frozen.safetensors --mode mean --data photos/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    arguments.add_converted_file(parser)
    parser.add_argument(
        "--mode",
        choices=("exact", "mean"),
        default="exact",
        help="exact (default): layers whose kernel is the same for all inputs; mean: those that attend to kernels too, "
        "at their mean attention over the data",
    )
    arguments.add_data(parser, "what to take the mean attention over, and to measure errors on")
    arguments.add_where(parser)
    arguments.add_output_files(parser)
    arguments.add_json(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command."""
    model_args = arguments.assignments(parsed.model_arg)
    if parsed.mode == "mean" and not parsed.data:
        raise UsageError("--mode mean takes the mean attention over data: give --data")
    arguments.check_output_names(parsed)
    arguments.check_output_files(parsed)
    with progress(f"reading {parsed.file}"):
        model, source = arguments.load_converted_file(parsed, model_args)
    with progress("freezing"):
        data = DataFiles(model, parsed.data) if parsed.data else None
        frozen = freeze(model, data, mode=parsed.mode, where=parsed.where or "*")
    write_model(parsed, frozen, source)
    return 0
