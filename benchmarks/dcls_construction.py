"""Construction of DCLS kernels alone, against the package ``dcls``: ``python -m benchmarks.dcls_construction``.

Memory is what a process needs at its peak beyond what it held before, as the system counts it, which is to some hundred
kB; at least what the results take is always counted. Each figure is that of a process of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from convswap.layers import Dcls2d

from .dcls import dense, depthwise, oracle
from .memory import measured_elsewhere, peak_of
from .timing import forward_and_backward, table_row, times

SHAPES = {"dense": dense, "depthwise": depthwise}
NAMES = {"dense": "256×256 kernels, 9 elements in 7×7", "depthwise": "96 kernels, 34 elements in 17×17"}
VERSIONS = ("v1", "v0", "max", "gauss")
PASSES = ("fwd", "fwd + bwd")
COLUMNS = [
    "kernels",
    "pass",
    "ours, ms",
    "dcls 0.1.1, ms",
    "dcls 0.1.1 ÷ ours",
    "ours, MB",
    "dcls 0.1.1, MB",
    "dcls 0.1.1 ÷ ours",
]


def rows(rounds: int = 7) -> Iterator[str]:
    """The table in Markdown, line by line."""
    yield table_row(COLUMNS)
    yield table_row(["---"] * 2 + ["---:"] * 6)
    for version in VERSIONS:
        for shape in SHAPES:
            for which in PASSES:
                taken = times(_runs(version, shape, which), rounds)
                peaks = {whose: _peak_elsewhere(version, shape, which, whose) for whose in taken}
                figures = [f"{1e3 * taken[whose]:.2f}" for whose in ("ours", "published")]
                figures.append(f"{taken['published'] / taken['ours']:.0f}")
                figures += [f"{peaks[whose] / 1e6:.2f}" for whose in ("ours", "published")]
                figures.append(f"{peaks['published'] / peaks['ours']:.0f}")
                yield table_row([f"{version}: {NAMES[shape]}", which, *figures])


def _runs(version: str, shape: str, which: str) -> dict[str, Callable[[], object]]:
    _, _, ours = SHAPES[shape](version)
    return {"ours": _run(ours, ours.construct_kernel, which), "published": _run(ours, _published(ours), which)}


def _published(ours: Dcls2d) -> Callable[[], Tensor]:
    construct = oracle(ours).DCK
    inputs = ours.weight, ours.P, ours.SIG
    return lambda: construct(*inputs)  # type: ignore[operator]


def _run(ours: Dcls2d, construct: Callable[[], Tensor], which: str) -> Callable[[], object]:
    if which == PASSES[0]:
        return torch.no_grad()(construct)
    return forward_and_backward(construct, [p for p in (ours.weight, ours.P, ours.SIG) if p is not None])


def _peak_elsewhere(*which: str) -> int:
    """Bytes, for a version, a shape, a pass and whose construction it is."""
    return int(measured_elsewhere("benchmarks.dcls_construction", "--peak", *which))


def _peak(version: str, shape: str, which: str, whose: str) -> int:
    return peak_of(_runs(version, shape, which)[whose])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", nargs=4, metavar=("VERSION", "SHAPE", "PASS", "WHOSE"), help="one figure of memory")
    asked = parser.parse_args().peak
    torch.set_num_threads(1)
    if asked:
        print(_peak(*asked))
        return
    for row in rows():
        print(row, flush=True)


if __name__ == "__main__":
    main()
