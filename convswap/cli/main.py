"""Reading the command line, and turning errors into messages and exit codes."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence

from ..errors import ConvswapError, GrowthWarning
from ..layers.ops._build import BuildError
from ..layers.ops._load import KernelWarning
from . import build, convert, diff, doctor, freeze, plan, report, revert, targets
from .errors import OutputError, UsageError
from .output import discard_output, flush, print_error

COMMANDS = (plan, convert, freeze, revert, diff, report, targets, build, doctor)

DESCRIPTION = "Replace the convolutions of a trained model by other layers, keeping its function."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 if the job was done, 1 if it could not be (with a message), 2 for a command line that is wrong.
    """
    if sys.stderr is None:  # closed by whoever started us
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        return _run(arguments)
    except (ConvswapError, BuildError) as error:
        print_error(str(error))
        if isinstance(error, OutputError):
            discard_output()
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:  # whoever read our output has read enough
        discard_output()
    except KeyboardInterrupt:
        print_error("interrupted")
        return 130
    except MemoryError:
        print_error("there is not enough memory for this")
    except Exception as error:
        if os.environ.get("CONVSWAP_TRACEBACK"):
            raise
        print_error(
            f"unexpected {type(error).__name__}: {error}\n"
            "Setting CONVSWAP_TRACEBACK=1 shows where it comes from; please report it."
        )
    return 1


def _run(arguments: Sequence[str] | None) -> int:
    parsed = _parse(arguments)
    if sys.stdout is None:
        raise OutputError("the output could not be written: standard output is closed")
    if "" not in sys.path:  # the current folder, for module.path:factory; last, so that nothing there hides a package
        sys.path.append("")
    # The root logger of timm and warnings of model code are not for the people who read our output.
    warnings.simplefilter("ignore")
    for ours in (KernelWarning, GrowthWarning):
        warnings.simplefilter("default", ours)
    warnings.showwarning = lambda message, *_: print_error(str(message))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks an arrow is no reason to fail
    code: int = parsed.run(parsed)
    return code


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    try:
        return make_parser().parse_args(arguments)
    finally:  # the help that argparse prints before it exits
        if sys.stdout is not None:
            flush()


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from .. import __version__

    parser = argparse.ArgumentParser(prog="convswap", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"convswap {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    for command in COMMANDS:
        summary = (command.__doc__ or "").strip().splitlines()[0]
        added = commands.add_parser(
            command.__name__.rpartition(".")[2],
            help=summary,
            description=summary,
            epilog=f"example:\n  {command.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # or a plan's --model, which it lacks, would be read as --model-arg
        )
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return parser
