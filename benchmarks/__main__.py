"""Run all benchmarks and write ``benchmarks/RESULTS.md``: ``python -m benchmarks``, or ``make bench``."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import timm
import torch
import torchvision

from . import (
    conversion,
    costs,
    dcls,
    dcls_construction,
    dcls_sparse,
    dynamic,
    dynamic_formulas,
    guided,
    hybrid,
    large_depthwise,
    padding_free,
)

RESULTS = Path(__file__).parent / "RESULTS.md"


def lines() -> Iterator[str]:
    """The document, line by line."""
    yield "# Benchmarks"
    yield ""
    yield (
        f"{date.today()}, one thread of {_processor()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, timm {timm.__version__}. Medians of runs taken by turns in one "
        "process; the ratios are what counts. Written by `make bench`."
    )
    for title, rows in (
        ("What a conversion costs", conversion.conversion_rows()),
        ("Tracing and planning grow linearly", conversion.tracing_rows()),
        ("Planning, reporting and converting a deep model", conversion.planning_rows()),
        ("Costs that plans tell, against what converted models do", costs.rows()),
        ("DCLS", dcls.rows()),
        ("Construction of DCLS kernels", dcls_construction.rows()),
        ("Depthwise convolution with large kernels", large_depthwise.rows()),
        ("DCLS without building the kernel", dcls_sparse.rows()),
        ("Dynamic convolution", dynamic.rows()),
        ("The formulas of dynamic convolution, as ratios to the plain one", dynamic_formulas.rows(rounds=3)),
        ("Guided convolution", guided.rows()),
        ("Kernels predicted for each patch", hybrid.rows()),
        ("Padding-free convolution", padding_free.rows()),
    ):
        yield from ("", f"## {title}", "", *rows)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    torch.set_num_threads(1)
    text = ""
    for line in lines():
        print(line, flush=True)
        text += f"{line}\n"
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
