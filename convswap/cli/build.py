"""Compile the kernels ahead of their first use, as for images and clusters."""

from __future__ import annotations

import argparse
import time

from rich.table import Table
from rich.text import Text

from ..errors import ConvswapError
from ..layers.ops._build import BACKENDS, Backend, BuildError, build, is_compiled, library_path, nvcc
from . import arguments
from .errors import UsageError
from .output import print_json, progress, show

EXAMPLE = "convswap build --cuda-archs 80,90"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="which kernels; by default the CPU's, and CUDA's where a GPU is seen or --cuda-archs is given",
    )
    parser.add_argument(
        "--cuda-archs",
        metavar="LIST",
        help="compute capabilities to compile for, as in 80,86,90,100,120; by default those of the visible GPUs",
    )
    arguments.add_json(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command."""
    if parsed.cuda_archs and parsed.backend == "cpu":
        raise UsageError("--cuda-archs is for the CUDA kernels, and --backend cpu leaves them out")
    architectures = [part.strip() for part in (parsed.cuda_archs or "").split(",") if part.strip()]
    if parsed.cuda_archs is not None and not architectures:
        raise UsageError(f"--cuda-archs names no compute capability: {parsed.cuda_archs!r}. Write them as in 80,90")
    made = [_build(backend, architectures) for backend in _backends(parsed.backend, bool(architectures))]
    if parsed.json:
        print_json(made)
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for entry in made:
            how = f"compiled in {entry['seconds']:.0f} s" if entry["compiled"] else "found in the cache"
            table.add_row(Text(str(entry["backend"])), Text(how), Text(str(entry["library"]), overflow="fold"))
        show(table)
    return 0


def _backends(named: Backend | None, architectures_given: bool) -> list[Backend]:
    if named is not None:
        return [named]
    import torch

    return ["cpu", "cuda"] if architectures_given or (nvcc() and torch.cuda.device_count()) else ["cpu"]


def _build(backend: Backend, architectures: list[str]) -> dict[str, str | float | bool]:
    start = time.monotonic()
    try:
        compiled = not is_compiled(library_path(backend, architectures if backend == "cuda" else ()))
        with progress(f"compiling the {backend} kernels"):
            library = build(backend, architectures if backend == "cuda" else ())
    except BuildError as error:
        raise ConvswapError(f"the {backend} kernels cannot be compiled: {error}") from error
    return {
        "backend": backend,
        "library": str(library),
        "compiled": compiled,
        "seconds": round(time.monotonic() - start, 1),
    }
