"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..atomic import check_writable, write_text
from ..checkpoint import load_into, read_state_dict
from ..choice import Swap
from ..errors import ConvswapError, OptionError
from ..files import FileInfo, is_converted_file, load, read_info
from ..options import code_named_by, parse_assignment
from ..report import Report
from ..rules import read_rules
from ..sources import Source, build_model, parse_source
from .errors import UsageError

REPORT_FORMS = {".html": Report.to_html, ".md": Report.to_markdown, ".json": Report.to_json, ".txt": Report.__str__}


def add_rules(parser: argparse.ArgumentParser) -> None:
    """``--to``, ``--where`` and ``--option``, or ``--rules``; and ``--trust-source``, for the code that rules name."""
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--to", metavar="TARGET", help="what to convert to (see: convswap targets)")
    either.add_argument(
        "--rules",
        type=Path,
        metavar="FILE",
        help="several rules, in a TOML file: [[swap]] tables of where, to, options",
    )
    add_where(parser)
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the target; may be repeated"
    )
    add_trust(parser)


def add_where(parser: argparse.ArgumentParser) -> None:
    """``--where``."""
    parser.add_argument(
        "--where",
        action="append",
        metavar="PATTERN",
        help="which: a glob on the name (* crosses dots), re:REGEX, or !PATTERN to exclude; may be repeated",
    )


def add_converted_file(parser: argparse.ArgumentParser) -> None:
    """``file`` with what may be needed to load it: ``--model``, ``--model-arg`` and ``--trust-source``."""
    parser.add_argument("file", type=Path, help="a converted file")
    parser.add_argument("--model", help="its architecture, if the file does not name it or not that one")
    add_model_args(parser)
    add_trust(parser)


def add_data(parser: argparse.ArgumentParser, use: str) -> None:
    """``--data``, and what it is for."""
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        metavar="PATH",
        help=f"photos, tensor files (.pt, .npy, .safetensors; samples first) or folders of them: {use}",
    )


def add_output_files(parser: argparse.ArgumentParser) -> None:
    """``--out``, ``--report`` and ``--force``."""
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the safetensors file to write")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help=f"write the report here too ({', '.join(REPORT_FORMS)})"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")


def check_output_names(parsed: argparse.Namespace) -> None:
    """Make sure that ``--out`` and ``--report`` are called as what they are to be.

    Raises:
        UsageError: if one is not.
    """
    if parsed.out.suffix != ".safetensors":
        raise UsageError(f"--out must be a .safetensors file, got {parsed.out}")
    if parsed.report is not None and parsed.report.suffix not in REPORT_FORMS:
        raise UsageError(f"--report must end in {', '.join(REPORT_FORMS)}, got {parsed.report}")


def check_output_files(parsed: argparse.Namespace) -> None:
    """Find out before any work what would stop its result from being written.

    Raises:
        FileError: if something would.
    """
    for path in (parsed.out, parsed.report):
        if path is not None:
            check_writable(path, parsed.force)


def write_report(parsed: argparse.Namespace, made: Report) -> None:
    """Write a report where ``--report`` says."""
    if parsed.report is not None:
        write_text(parsed.report, REPORT_FORMS[parsed.report.suffix](made), parsed.force)


def add_input_size(parser: argparse.ArgumentParser) -> None:
    """``--input-size``."""
    parser.add_argument(
        "--input-size", nargs="+", type=int, metavar="N", help="shape of one sample without batch, e.g. 3 224 224"
    )


def add_model_args(parser: argparse.ArgumentParser) -> None:
    """``--model-arg``."""
    parser.add_argument(
        "--model-arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the model; may be repeated",
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """``--trust-source``."""
    parser.add_argument(
        "--trust-source",
        action="store_true",
        help="import and run the code that a file names; it can do whatever you can, so trust who wrote both",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")


def assignments(texts: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` texts as a dict.

    Raises:
        UsageError: if a text has no ``=`` or a name comes twice.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, value = _assignment(text)
        if name in values:
            raise UsageError(f"{name} is given twice")
        values[name] = value
    return values


def _assignment(text: str) -> tuple[str, Any]:
    try:
        return parse_assignment(text)
    except OptionError as error:
        raise UsageError(str(error)) from error


def rules(parsed: argparse.Namespace) -> tuple[Swap, ...]:
    """The rules as ``plan`` and ``convert`` take them.

    Raises:
        UsageError: if ``--where`` or ``--option`` is given beside a file of rules, or is named as an option.
        ConvswapError: if something is wrong with that file.
    """
    if parsed.rules is not None:
        for name in ("where", "option"):
            if getattr(parsed, name):
                raise UsageError(f"--{name} goes with --to: in {parsed.rules} each [[swap]] table has its own")
        return read_rules(parsed.rules, trust_source=parsed.trust_source)
    options = assignments(parsed.option)
    for name in ("where", "to"):
        if name in options:
            raise UsageError(f"{name} is no option of a target: give --{name}")
    return (Swap(parsed.where or "*", parsed.to, **options),)


def example_inputs(parsed: argparse.Namespace) -> tuple[int, ...] | None:
    """The shape given by ``--input-size``.

    Raises:
        UsageError: if a number is not positive.
    """
    if parsed.input_size is None:
        return None
    if min(parsed.input_size) < 1:
        raise UsageError(f"--input-size must be positive numbers, got {parsed.input_size}")
    return tuple(parsed.input_size)


def load_converted_file(parsed: argparse.Namespace, model_args: Mapping[str, Any]) -> tuple[nn.Module, Source | None]:
    """The model of ``file``, and where its architecture comes from.

    Raises:
        ConvswapError: if the file is none, or cannot be loaded; see `load_model`.
    """
    read_info(parsed.file)  # which a checkpoint, that load_model takes too, does not have
    return load_model(parsed.file, parsed.model, model_args, parsed.trust_source)


def load_model(
    path: Path, name: str | None, model_args: Mapping[str, Any], trust_source: bool
) -> tuple[nn.Module, Source | None]:
    """The model of a checkpoint or of a converted file, and where its architecture comes from.

    Raises:
        UsageError: if a checkpoint comes without the name of its architecture.
        FileError: if the file cannot be read or does not fit.
        ConvswapError: if the file names code that would be run, and ``trust_source`` is not given.
    """
    if is_converted_file(path):
        info = read_info(path)
        if not trust_source:
            _refuse_code(path, info, name is None)
        if name is None:
            return load(path, trust_source=trust_source), info.source
        source = parse_source(name, model_args)
        return load(path, model=build_model(source), trust_source=trust_source), source
    state = read_state_dict(path)
    if name is None:
        raise UsageError(f"{path} does not say what architecture it is for: name it, e.g. --model torchvision:resnet50")
    source = parse_source(name, model_args)
    model = build_model(source)
    load_into(model, state, path)
    return model, source


def _refuse_code(path: Path, info: FileInfo, source_too: bool) -> None:
    """Name all code that loading would run, at once and in the words of the command line.

    Args:
        path: a converted file.
        info: what it says.
        source_too: whether what builds its architecture would be run, for lack of another.

    Raises:
        ConvswapError: if there is any.
    """
    factory = info.source if source_too and info.source is not None and info.source.is_code else None
    named = {} if factory is None else {str(factory): None}
    for step in info.report.recipe.steps:
        if step.target is not None:
            named.update(dict.fromkeys(filter(None, [code_named_by(step.target, step.options)])))
    if named:
        instead = "" if factory is None else f"; instead of {factory}, --model may name an architecture"
        raise ConvswapError(
            f"{path} names {', '.join(named)}, which would be imported and run: if you trust it, "
            f"give --trust-source{instead}"
        )
