"""What a conversion costs: ``python -m benchmarks.conversion``.

``convert`` against a deep copy of the model plus the building of the new layers, which nothing can avoid; how tracing
grows with the depth of a model; and what planning and reporting cost for each target, in a deep one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator

import torch
import torchvision
from torch import nn

import convswap
from convswap.rewrite import build_layers
from convswap.targets import all_targets

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


def planning_rows(depth: int = 500, rounds: int = 3) -> Iterator[str]:
    """Seconds of the processor for a model of ``depth`` convolutions that are all swapped, costs and report included.

    Other processes on a busy machine add nothing to these.
    """
    yield table_row([f"{depth} convolutions to", "plan, s of CPU", "plan and report, s of CPU", "convert, s of CPU"])
    yield table_row(["---"] + ["---:"] * 3)
    for to in all_targets():
        made = [_block(_WITHOUT_OTHER_TAPS.get(to, {})) for _ in range(depth)]
        model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), *made)
        chosen = {"to": to, "where": "!0", "example_inputs": (8, 14, 14)}
        runs: dict[str, Callable[[], object]] = {
            "plan": lambda model=model, chosen=chosen: convswap.plan(model, **chosen),  # type: ignore[misc]
            "report": lambda model=model, chosen=chosen: str(convswap.plan(model, **chosen)),  # type: ignore[misc]
            "convert": lambda model=model, chosen=chosen: convswap.convert(model, **chosen),  # type: ignore[misc]
        }
        assert len(convswap.plan(model, **chosen).swaps) == depth  # type: ignore[arg-type]
        yield table_row([to, *(f"{min(_of_processor(run) for _ in range(rounds)):.2f}" for run in runs.values())])


_WITHOUT_OTHER_TAPS = {
    "guided_pointwise": {"kernel_size": 1, "padding": 0},
    "guided_channelwise": {"groups": 8},
}
"""What the convolutions must be like for targets that take no others."""


def _of_processor(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _block(geometry: dict[str, int] | None = None) -> nn.Module:
    conv = nn.Conv2d(8, 8, **{"kernel_size": 3, "padding": 1, **(geometry or {})})  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU())


def main() -> None:
    torch.set_num_threads(1)
    for rows in (conversion_rows(), tracing_rows(), planning_rows()):
        for row in rows:
            print(row, flush=True)
        print()


if __name__ == "__main__":
    main()
