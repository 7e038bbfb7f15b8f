"""Turn the layers of a converted file back into the convolutions that they were made from, and write the result."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..data_files import DataFiles
from ..files import read_info
from ..reverting import revert
from . import arguments
from .output import progress
from .writing import write_model

EXAMPLE = "convswap revert dy.safetensors --out plain.safetensors --where 'layer4.*'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("file", type=Path, help="a converted file")
    parser.add_argument("--model", help="its architecture, if the file does not name it or not that one")
    arguments.add_model_args(parser)
    arguments.add_trust(parser)
    arguments.add_where(parser)
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="photos, tensor files (.pt, .npy, .safetensors; samples first) or folders of them: what to measure on how "
        "much is lost",
    )
    arguments.add_output_files(parser)
    arguments.add_json(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command."""
    model_args = arguments.assignments(parsed.model_arg)
    arguments.check_output_names(parsed)
    arguments.check_output_files(parsed)
    with progress(f"reading {parsed.file}"):
        read_info(parsed.file)  # which a checkpoint, that load_model takes too, does not have
        model, source = arguments.load_model(parsed.file, parsed.model, model_args, parsed.trust_source)
    with progress("reverting"):
        data = DataFiles(model, parsed.data) if parsed.data else None
        reverted = revert(model, parsed.where or "*", data=data)
    write_model(parsed, reverted, source)
    return 0
