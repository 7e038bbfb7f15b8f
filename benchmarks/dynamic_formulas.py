"""Times each formula of `dynamic_conv` against the plain convolution: ``python -m benchmarks.dynamic_formulas``.

One thread, K = 4. All candidates of a row run by turns in one process and the median counts, as a ratio to the plain
convolution's; of a machine under load the ratios still hold when the times do not. ``choose_formula`` is calibrated by
this table: its last column is how much slower the automatic choice is than the best formula.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from convswap.layers.dynamic_choice import Formula, choose_formula
from convswap.layers.dynamic_conv import dynamic_conv

from .timing import forward_and_backward, table_row, times

KERNELS = 4
FORMULAS: tuple[Formula, ...] = get_args(Formula)


@dataclass(frozen=True)
class Shape:
    batch: int
    channels: int
    out: int
    size: int
    kernel: int
    groups: int = 1

    def __str__(self) -> str:
        grouped = "" if self.groups == 1 else " depthwise" if self.groups == self.channels else f" {self.groups} groups"
        return f"{self.batch}×{self.channels}×{self.size}² → {self.out}, {self.kernel}×{self.kernel}{grouped}"


SHAPES = (
    Shape(1, 256, 256, 14, 3),
    Shape(8, 512, 512, 7, 3),
    Shape(32, 512, 512, 7, 3),
    Shape(8, 256, 256, 14, 3),
    Shape(8, 64, 64, 56, 3),
    Shape(8, 128, 128, 28, 3),
    Shape(8, 16, 16, 56, 3),
    Shape(8, 256, 256, 14, 3, groups=2),
    Shape(8, 256, 256, 14, 3, groups=32),
    Shape(8, 256, 256, 14, 3, groups=256),
    Shape(8, 144, 144, 56, 3, groups=144),
    Shape(32, 144, 144, 28, 3, groups=144),
    Shape(8, 384, 384, 14, 7, groups=384),
    Shape(8, 96, 96, 56, 7, groups=96),
    Shape(1, 512, 2048, 7, 1),
    Shape(8, 64, 256, 56, 1),
    Shape(8, 256, 1024, 14, 1),
    Shape(8, 512, 2048, 7, 1),
    Shape(32, 512, 2048, 7, 1),
)


def measure(shape: Shape, memory_format: torch.memory_format, backward: bool, rounds: int) -> list[str]:
    """Cells of one row: the plain convolution's time, the ratios, the automatic choice and its loss."""

    def parameter(*sizes: int) -> Tensor:
        value = torch.randn(sizes)
        return (value.contiguous(memory_format=memory_format) if len(sizes) == 4 else value).requires_grad_(backward)

    x = parameter(shape.batch, shape.channels, shape.size, shape.size)
    weight = parameter(KERNELS * shape.out, shape.channels // shape.groups, shape.kernel, shape.kernel)
    plain = parameter(shape.out, shape.channels // shape.groups, shape.kernel, shape.kernel)
    bias, plain_bias = parameter(KERNELS * shape.out), parameter(shape.out)
    attention = torch.rand(shape.batch, KERNELS).softmax(1).requires_grad_(backward)
    padding = shape.kernel // 2

    def timed(forward: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], object]:
        return forward_and_backward(forward, inputs) if backward else forward

    conv = partial(F.conv2d, x, plain, plain_bias, 1, padding, 1, shape.groups)
    runs = {"plain": timed(conv, [x, plain, plain_bias])}
    for formula in FORMULAS:
        if (formula == "matmul" and shape.kernel > 1) or (formula == "depthwise" and shape.groups < shape.channels):
            continue
        runs[formula] = timed(
            partial(dynamic_conv, x, weight, bias, attention, 1, padding, 1, shape.groups, formula=formula),
            [x, weight, bias, attention],
        )
    taken = times(runs, rounds)
    chosen = choose_formula(x, weight, KERNELS, shape.groups, shape.size**2)
    best = min(taken[formula] for formula in FORMULAS if formula in taken)
    ratios = [f"{taken[f] / taken['plain']:.2f}" if f in taken else "" for f in FORMULAS]
    return [f"{1e3 * taken['plain']:.2f}", *ratios, chosen, f"{100 * (taken[chosen] / best - 1):.0f} %"]


def rows(rounds: int = 4) -> Iterator[str]:
    """The table in Markdown, line by line."""
    columns = ["shape", "layout", "pass", "plain, ms", *FORMULAS, "automatic", "loss"]
    yield table_row(columns)
    yield table_row(["---"] * len(columns))
    for shape in SHAPES:
        for layout, memory_format in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
            for backward in (False, True):
                row = measure(shape, memory_format, backward, rounds)
                yield table_row([str(shape), layout, "fwd + bwd" if backward else "fwd", *row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="timed turns of each candidate")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for row in rows(arguments.rounds):
        print(row, flush=True)


if __name__ == "__main__":
    main()
