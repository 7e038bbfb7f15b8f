"""Times each formula of `od_conv2d` against the plain convolution: ``python -m benchmarks.od_formulas``.

One thread. All candidates of a row run by turns in one process and the median counts, as a ratio to the plain
convolution's. ``choose_formula`` is calibrated by this table: its last column is how much slower the automatic choice
is than the best formula. ``published`` lays the attentions over the kernels of all samples before it sums them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from convswap.layers.od_formula import ODFormula, choose_formula, od_conv2d

from .dynamic_formulas import Shape
from .timing import forward_and_backward, table_row, times

FORMULAS: tuple[ODFormula, ...] = get_args(ODFormula)

SHAPES = (
    Shape(1, 512, 512, 7, 3),
    Shape(8, 512, 512, 7, 3),
    Shape(32, 256, 256, 7, 3),
    Shape(8, 256, 256, 14, 3),
    Shape(8, 512, 512, 14, 3),
    Shape(8, 64, 64, 56, 3),
    Shape(8, 256, 256, 14, 3, groups=32),
    Shape(8, 144, 144, 56, 3, groups=144),
    Shape(8, 64, 256, 56, 1),
    Shape(8, 1024, 256, 14, 1),
    Shape(8, 512, 2048, 7, 1),
)


def published(x: Tensor, weight: Tensor, attentions: Mapping[str, Tensor], padding: int, groups: int) -> Tensor:
    """The layer as its authors compute it: each sample's kernels, all K of them, then one grouped convolution."""
    batch, channels = x.shape[:2]
    kernels = attentions["kernel"].shape[1] if "kernel" in attentions else 1
    stack = weight.unflatten(0, (kernels, -1))[None]
    if "position" in attentions:
        stack = stack * attentions["position"].view(batch, 1, 1, 1, *weight.shape[2:])
    if "kernel" in attentions:
        stack = stack * attentions["kernel"].view(batch, kernels, 1, 1, 1, 1)
    mixed = stack.sum(1).expand(batch, -1, -1, -1, -1)
    image = (x * attentions["channel"][..., None, None]).reshape(1, batch * channels, *x.shape[2:])
    y = F.conv2d(image, mixed.flatten(0, 1), None, 1, padding, 1, batch * groups)
    y = y.view(batch, -1, *y.shape[2:])
    return y * attentions["filter"][..., None, None] if "filter" in attentions else y


def measure(shape: Shape, kernels: int, memory_format: torch.memory_format, backward: bool, rounds: int) -> list[str]:
    """Cells of one row: the plain convolution's time, the ratios, the automatic choice and its loss."""

    def parameter(*sizes: int) -> Tensor:
        value = torch.randn(sizes)
        return (value.contiguous(memory_format=memory_format) if len(sizes) == 4 else value).requires_grad_(backward)

    x = parameter(shape.batch, shape.channels, shape.size, shape.size)
    weight = parameter(kernels * shape.out, shape.channels // shape.groups, shape.kernel, shape.kernel)
    plain = parameter(shape.out, shape.channels // shape.groups, shape.kernel, shape.kernel)
    numbers = {"channel": shape.channels, "filter": shape.out, "position": shape.kernel**2, "kernel": kernels}
    if shape.groups == shape.channels == shape.out:
        del numbers["filter"]
    attentions = {name: parameter(shape.batch, number) for name, number in numbers.items() if number > 1}
    padding = shape.kernel // 2

    def timed(forward: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], object]:
        return forward_and_backward(forward, inputs) if backward else forward

    inputs = [x, weight, *attentions.values()]
    runs = {"plain": timed(partial(F.conv2d, x, plain, None, 1, padding, 1, shape.groups), [x, plain])}
    runs["published"] = timed(partial(published, x, weight, attentions, padding, shape.groups), inputs)
    for formula in FORMULAS:
        if (formula == "matmul" and shape.kernel > 1) or (formula == "depthwise" and shape.groups < shape.channels):
            continue
        compute = partial(od_conv2d, x, weight, None, attentions, 1, padding, 1, shape.groups, formula=formula)
        runs[formula] = timed(compute, inputs)
    taken = times(runs, rounds)
    chosen = choose_formula(x, weight, kernels, shape.groups, shape.size**2)
    best = min(taken[formula] for formula in FORMULAS if formula in taken)
    ratios = [f"{taken[f] / taken['plain']:.2f}" if f in taken else "" for f in ("published", *FORMULAS)]
    return [f"{1e3 * taken['plain']:.2f}", *ratios, chosen, f"{100 * (taken[chosen] / best - 1):.0f} %"]


def rows(rounds: int = 4) -> Iterator[str]:
    """The table in Markdown, line by line."""
    columns = ["shape", "K", "layout", "pass", "plain, ms", "published", *FORMULAS, "automatic", "loss"]
    yield table_row(columns)
    yield table_row(["---"] * len(columns))
    for shape in SHAPES:
        for kernels in (1, 4):
            for layout, memory_format in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
                for backward in (False, True):
                    row = measure(shape, kernels, memory_format, backward, rounds)
                    yield table_row([str(shape), str(kernels), layout, "fwd + bwd" if backward else "fwd", *row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="timed turns of each candidate")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for row in rows(arguments.rounds):
        print(row, flush=True)


if __name__ == "__main__":
    main()
