"""Turn the layers of a converted file back into the convolutions that they were made from, and write the result."""

from __future__ import annotations

import argparse

from ..data_files import DataFiles
from ..reverting import revert
from . import arguments
from .output import progress
from .writing import write_model

EXAMPLE = "convswap revert dy.safetensors --out plain.safetensors --where 'layer4.*'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    arguments.add_converted_file(parser)
    arguments.add_where(parser)
    arguments.add_data(parser, "what to measure on how much is lost")
    arguments.add_output_files(parser)
    arguments.add_json(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command."""
    model_args = arguments.assignments(parsed.model_arg)
    arguments.check_output_names(parsed)
    arguments.check_output_files(parsed)
    with progress(f"reading {parsed.file}"):
        model, source = arguments.load_converted_file(parsed, model_args)
    with progress("reverting"):
        data = DataFiles(model, parsed.data) if parsed.data else None
        reverted = revert(model, parsed.where or "*", data=data)
    write_model(parsed, reverted, source)
    return 0
