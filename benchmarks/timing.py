"""Timing by turns: of a machine under load the ratios still hold when the times do not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn


def times(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each run, all of them run by turns; the first turn warms up."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def forward_and_backward(forward: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Callable[[], object]:
    """A run of ``forward`` and of the gradients to ``inputs``."""

    def both() -> object:
        y = forward()
        return torch.autograd.grad(y, inputs, torch.ones_like(y))

    return both


def comparison_rows(name: str, x: Tensor, modules: dict[str, nn.Module], rounds: int) -> Iterator[str]:
    """Two lines, forward and forward + backward, on the same input: ``plain``, ``ours`` and ``published``."""
    with torch.no_grad():
        forward = times({key: lambda m=m: m(x) for key, m in modules.items()}, rounds)  # type: ignore[misc]
    yield _comparison(name, "fwd", forward)
    x = x.requires_grad_()
    runs = {
        key: forward_and_backward(lambda m=m: m(x), [x, *m.parameters()])  # type: ignore[misc]
        for key, m in modules.items()
    }
    yield _comparison(name, "fwd + bwd", times(runs, rounds))


def _comparison(name: str, which: str, taken: dict[str, float]) -> str:
    milliseconds = [f"{1e3 * taken[key]:.1f}" for key in ("plain", "ours", "published")]
    ratios = [f"{taken['ours'] / taken['plain']:.2f}", f"{taken['published'] / taken['ours']:.1f}"]
    return table_row([name, which, *milliseconds, *ratios])


def table_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
