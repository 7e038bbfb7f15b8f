"""What a conversion costs: ``python -m benchmarks.conversion``.

``convert`` against a deep copy of the model plus the building of the new layers, which nothing can avoid; and how
tracing grows with the depth of a model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torchvision
from torch import nn

import convswap
from convswap.rewrite import build_layers

from .timing import table_row, times

DEPTHS = (25, 50, 100, 200, 400, 800)


def conversion_rows(rounds: int = 5) -> Iterator[str]:
    """Seconds and ratios for resnet50."""
    yield table_row(
        ["resnet50 to", "deep copy, s", "building, s", "planning, s", "convert, s", "convert ÷ (copy + building)"]
    )
    yield table_row(["---"] + ["---:"] * 5)
    model = torchvision.models.resnet50()
    for to in ("dynamic", "dcls"):
        steps = convswap.plan(model, to=to).steps
        taken = times(
            {
                "copy": lambda: copy.deepcopy(model),
                "build": lambda steps=steps: build_layers(steps, 0),  # type: ignore[misc]
                "plan": lambda to=to: convswap.plan(model, to=to),  # type: ignore[misc]
                "convert": lambda to=to: convswap.convert(model, to=to),  # type: ignore[misc]
            },
            rounds,
        )
        ratio = taken["convert"] / (taken["copy"] + taken["build"])
        yield table_row([to, *(f"{taken[name]:.3f}" for name in ("copy", "build", "plan", "convert")), f"{ratio:.2f}"])


def tracing_rows(rounds: int = 3) -> Iterator[str]:
    """Milliseconds for each convolution of models of growing depth."""
    yield table_row(["convolutions", "trace, s", "for each, ms", "plan, s", "for each, ms"])
    yield table_row(["---:"] * 5)
    for depth in DEPTHS:
        model = nn.Sequential(*(_block() for _ in range(depth)))
        taken = times(
            {
                "trace": lambda model=model: convswap.trace(model, (8, 14, 14)),  # type: ignore[misc]
                "plan": lambda model=model: convswap.plan(model, to="dcls", example_inputs=(8, 14, 14)),  # type: ignore[misc]
            },
            rounds,
        )
        cells = [f"{taken[name]:.2f} | {1e3 * taken[name] / depth:.2f}" for name in ("trace", "plan")]
        yield table_row([str(depth), *cells])


def _block() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())


def main() -> None:
    torch.set_num_threads(1)
    for rows in (conversion_rows(), tracing_rows()):
        for row in rows:
            print(row, flush=True)
        print()


if __name__ == "__main__":
    main()
