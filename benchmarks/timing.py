"""Timing by turns: of a machine under load the ratios still hold when the times do not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


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


def table_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
