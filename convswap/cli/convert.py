"""Convert a checkpoint and write the result to one safetensors file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..convert import convert
from ..inputs import default_inputs
from . import arguments
from .errors import UsageError
from .output import print_error, progress
from .writing import write_model

EXAMPLE = (
    "convswap convert resnet50.pth --model torchvision:resnet50 --to dynamic --out dy.safetensors --report dy.html"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("checkpoint", type=Path, help="a .pth, .pt or safetensors file, or a converted one")
    parser.add_argument("--model", help="its architecture: torchvision:NAME, timm:NAME or module.path:factory")
    arguments.add_model_args(parser)
    arguments.add_rules(parser)
    arguments.add_output_files(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random starts (default 0)")
    parser.add_argument(
        "--verify",
        metavar="INPUT",
        help="compare with the original on this image or tensor file; by default on random numbers",
    )
    parser.add_argument("--no-verify", action="store_true", help="do not compare with the original")
    arguments.add_input_size(parser)
    arguments.add_json(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command."""
    if parsed.no_verify and parsed.verify is not None:
        raise UsageError("--verify and --no-verify exclude each other")
    arguments.check_output_names(parsed)
    rules = arguments.rules(parsed)
    inputs = arguments.example_inputs(parsed)
    model_args = arguments.assignments(parsed.model_arg)
    arguments.check_output_files(parsed)
    with progress(f"reading {parsed.checkpoint}"):
        model, source = arguments.load_model(parsed.checkpoint, parsed.model, model_args, parsed.trust_source)
    with progress(f"converting {'to' if parsed.rules is None else 'by'} {parsed.to or parsed.rules}"):
        verify = _verify_inputs(parsed, model, inputs)
        new = convert(model, rules, example_inputs=inputs, seed=parsed.seed, verify=verify)
    write_model(parsed, new, source)
    return 0


def _verify_inputs(parsed: argparse.Namespace, model: Any, inputs: tuple[int, ...] | None) -> Any:
    """What to compare both models on; None for not at all."""
    if parsed.no_verify:
        return None
    if parsed.verify is not None:
        return Path(parsed.verify)
    if inputs is not None:
        return inputs
    if default_inputs(model) is None:
        print_error("not compared with the original: the input size is unknown (--input-size, or --verify FILE)")
        return None
    return 0
