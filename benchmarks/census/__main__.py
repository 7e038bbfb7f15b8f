"""Run the census: ``python -m benchmarks.census --all``, or with the names of models."""

from __future__ import annotations

import argparse
import fnmatch
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from convswap.atomic import check_writable, write_text
from convswap.errors import ConvswapError, FileError, UnknownNameError, did_you_mean

from . import results, tables
from .catalogue import all_names, varied
from .file import CENSUS, Record
from .structure import structure
from .workers import run_each


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0; 1 if some model gave no result or was converted wrongly; 2 if nothing could be begun."""
    parser = _parser()
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which ends the processes of the models too
    if options.all == bool(options.names):
        parser.error("give the names of models, or --all")
    try:
        return _run(options)
    except ConvswapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = options.all or options.json is not None
        print("stopped" + ("; the same command goes on from there" if kept else ""), file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.census", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="torchvision:<name> or timm:<name>; globs too")
    parser.add_argument("--all", action="store_true", help="all models (with --verify and --training: those chosen)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--verify", action="store_true", help="compare converted models with the originals, in numbers")
    kind.add_argument("--training", action="store_true", help="the same in training mode, with gradients")
    parser.add_argument("--workers", type=_positive(int), default=os.cpu_count() or 1, help="processes (one per core)")
    parser.add_argument("--time-limit", type=_positive(float), default=None, help="seconds for each model")
    parser.add_argument(
        "--memory-limit", type=_positive(float), default=10.0, metavar="GIB", help="of each process (10)"
    )
    parser.add_argument(
        "--json", type=Path, default=None, metavar="FILE",
        help=f"for results, and a .md beside it; by default {CENSUS.name} with --all, else they are only shown",
    )  # fmt: skip
    return parser


def _positive(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"  # what argparse calls a value that is none
    return parse


def _run(options: argparse.Namespace) -> int:
    section = "numbers" if options.verify else "training" if options.training else "structure"
    work, chosen, time_limit = _work(section)
    path = options.json or (CENSUS if options.all else None)
    limits = {
        "workers": options.workers,
        "time_limit": options.time_limit or time_limit,
        "memory_limit": options.memory_limit,
    }
    if path is None:
        names = _chosen(options.names)
        found = _work_through(section, names, names, work, limits, lambda name, record: None)
        content = {"versions": results.versions(), "date": {section: date.today().isoformat()}, section: found}
        print(tables.document(content, None))
        return int(any(map(_wrong, found.values())))
    text = path.with_suffix(".md") if path != CENSUS else path.with_name("CENSUS.md")
    if text == path:
        raise FileError(f"{path} is to be a .json file: the tables go into a .md beside it")
    for file in (path, text):
        check_writable(file, overwrite=True)
    kept = results.Results(path, section, whole=options.all)
    names = chosen() if options.all else _chosen(options.names)
    todo = [name for name in names if name not in kept.begun]
    if len(todo) < len(names):
        print(f"going on from {len(names) - len(todo)} models in {kept.lines}", file=sys.stderr)
    _work_through(section, names, varied(todo), work, limits, kept.add)
    found = {name: kept.begun[name] for name in names}
    write_text(text, tables.document(kept.write(names), path.name), overwrite=True)
    return int(any(map(_wrong, found.values())))


def _work_through(
    section: str,
    names: Sequence[str],
    todo: Sequence[str],
    work: Callable[[str], Record],
    limits: Mapping[str, Any],
    keep: Callable[[str, Record], None],
) -> dict[str, Record]:
    """The records of the models that are ``todo`` of these, with a progress bar."""
    found: dict[str, Record] = {}
    warnings.simplefilter("ignore")
    with _progress() as progress:
        task = progress.add_task(section, total=len(names), completed=len(names) - len(todo))

        def on_start(name: str) -> None:
            progress.update(task, description=name)
            progress.refresh()

        def on_result(name: str, record: Record) -> None:
            found[name] = record
            keep(name, record)
            if "failure" in record:
                progress.console.print(f"{name}: {record['failure']}", markup=False, highlight=False)
            progress.advance(task)
            progress.refresh()

        run_each(todo, work, **limits, on_result=on_result, on_start=on_start)
    return found


def _wrong(record: Record) -> bool:
    outcomes = record.get("targets", {}).values()
    return bool(
        "failure" in record
        or record.get("missing")
        or record.get("outside")
        or any("error" in outcome for outcome in outcomes)
    )


def _work(section: str) -> tuple[Callable[[str], Record], Callable[[], list[str]], float]:
    """What is done with each model, which models are chosen for it, and the usual limit of seconds for each."""
    if section == "numbers":
        from .numbers import numbers
        from .smallest import smallest_models

        return numbers, smallest_models, 1800
    if section == "training":
        from .training import training, training_models

        return training, training_models, 900
    return structure, all_names, 300


def _chosen(patterns: Sequence[str]) -> list[str]:
    """The models that match these names or globs.

    Raises:
        UnknownNameError: if nothing matches one of them.
    """
    known = all_names()
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matches = fnmatch.filter(known, pattern)
        if not matches:
            raise UnknownNameError(f"there is no model {pattern!r}.{did_you_mean(pattern, known)}")
        chosen.update(dict.fromkeys(matches))
    return list(chosen)


def _progress() -> Progress:
    # Without the thread that would refresh it: processes are forked, and must find no lock that it holds.
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        auto_refresh=False,
    )


if __name__ == "__main__":
    sys.exit(main())
