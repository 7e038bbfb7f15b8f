"""Guided convolutions against the formula as published: ``python -m benchmarks.guided``.

The published formula is: unfold, broadcast, multiply, sum. The plain convolution has the geometry of the guided one and
one kernel for all samples and pixels. The floor is to read the generated numbers once (and to write their gradient
once), or where there are few of them, the multiply-adds at the rate of a large matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convswap.layers.functional import (
    guided_channelwise_conv2d,
    guided_conv2d,
    guided_depthwise_conv2d,
    guided_local_conv2d,
)

from .timing import forward_and_backward, table_row, times

COLUMNS = [
    "layer",
    "pass",
    "published, ms",
    "plain, ms",
    "ours, ms",
    "floor, ms",
    "published ÷ ours",
    "ours ÷ plain",
    "ours ÷ floor",
    "memory, published ÷ ours",
]


@dataclass(frozen=True)
class Case:
    """One layer: functions of the input and the generated tensors, and the plain convolution beside it."""

    name: str
    weights: list[Tensor]
    ours: Callable[..., Tensor]
    published: Callable[..., Tensor]
    plain: nn.Conv2d
    multiply_adds: int | None = None  # where they are the floor


def rows(rounds: int = 5, batch: int = 4, channels: int = 64, size: int = 56) -> Iterator[str]:
    """The table in Markdown, line by line."""
    yield table_row(COLUMNS)
    yield table_row(["---"] * 2 + ["---:"] * 8)
    product = torch.randn(1024, 1024)
    for make in (_channelwise, _local, _low_rank, _guided, _pointwise):
        case = make(batch, channels, size)
        x = torch.randn(batch, case.plain.in_channels, size, size)
        yield from _compare(case, x, product, rounds)


def _compare(case: Case, x: Tensor, product: Tensor, rounds: int) -> Iterator[str]:
    with torch.no_grad():
        runs: dict[str, Callable[[], object]] = {
            "published": lambda: case.published(x, *case.weights),
            "plain": lambda: case.plain(x),
            "ours": lambda: case.ours(x, *case.weights),
        }
        yield _row(case, "fwd", runs, _floor(case, product, writing=False), 1, rounds)
    x = x.requires_grad_()
    weights = [w.detach().requires_grad_() for w in case.weights]
    runs = {
        "published": forward_and_backward(lambda: case.published(x, *weights), [x, *weights]),
        "plain": forward_and_backward(lambda: case.plain(x), [x, case.plain.weight]),
        "ours": forward_and_backward(lambda: case.ours(x, *weights), [x, *weights]),
    }
    yield _row(case, "fwd + bwd", runs, _floor(case, product, writing=True), 3, rounds)


def _row(
    case: Case, name: str, runs: dict[str, Callable[[], object]], floor: Callable[[], object], passes: int, rounds: int
) -> str:
    taken = times({**runs, "floor": floor}, rounds)
    if case.multiply_adds is not None:
        taken["floor"] *= passes * case.multiply_adds / 1024**3
    peaks = {key: _peak(runs[key]) for key in ("published", "ours")}
    ratios = [taken["published"] / taken["ours"], taken["ours"] / taken["plain"], taken["ours"] / taken["floor"]]
    return table_row(
        [case.name, name]
        + [f"{1e3 * taken[key]:.2f}" for key in ("published", "plain", "ours", "floor")]
        + [f"{ratio:.2f}" for ratio in (*ratios, peaks["published"] / peaks["ours"])]
    )


def _floor(case: Case, product: Tensor, writing: bool) -> Callable[[], object]:
    """What cannot be avoided: reading the generated numbers, with their gradient reading them again and writing it."""
    if case.multiply_adds is not None:
        return lambda: product @ product

    def move() -> None:
        for weight in case.weights:
            weight.sum()
            if writing:
                weight.sum()
                torch.zeros_like(weight)

    return move


def _peak(run: Callable[[], object]) -> int:
    """Most bytes of tensors that a run holds at a time, besides what it is given."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = run()
    del result
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return max(peak, 1)


def _unfolded(x: Tensor) -> Tensor:
    """What each tap of 3×3 reads: (B, C, 9, H, W)."""
    return F.unfold(x, 3, padding=1).view(*x.shape[:2], 9, *x.shape[2:])


def _channelwise(batch: int, channels: int, size: int) -> Case:
    return Case(
        f"channelwise {batch}×{channels}×{size}², 3×3",
        [torch.randn(batch, channels, 9, size, size)],
        lambda x, w: guided_channelwise_conv2d(x, w, kernel_size=3),
        lambda x, w: (_unfolded(x) * w).sum(2),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
    )


def _local(batch: int, channels: int, size: int) -> Case:
    few = channels // 8
    return Case(
        f"local {few}→{few}, {batch}×{size}², 3×3",
        [torch.randn(batch, few, 9, few, size, size)],
        lambda x, w: guided_local_conv2d(x, w, kernel_size=3),
        lambda x, w: (_unfolded(x).unsqueeze(3) * w).sum((1, 2)),
        nn.Conv2d(few, few, 3, padding=1, bias=False),
    )


def _low_rank(batch: int, channels: int, size: int) -> Case:
    few, rank = channels // 8, 4

    def published(x: Tensor, basis: Tensor, coefficients: Tensor) -> Tensor:
        w = torch.einsum("rito,bryx->bitoyx", basis, coefficients)
        return (_unfolded(x).unsqueeze(3) * w).sum((1, 2))

    return Case(
        f"local of rank {rank}, {few}→{few}, {batch}×{size}², 3×3",
        [torch.randn(rank, few, 9, few), torch.randn(batch, rank, size, size)],
        lambda x, basis, coefficients: guided_local_conv2d(x, (basis, coefficients), kernel_size=3),
        published,
        nn.Conv2d(few, few, 3, padding=1, bias=False),
        batch * size**2 * rank * few * (9 * few + 1),
    )


def _guided(batch: int, channels: int, size: int) -> Case:
    return Case(
        f"guided {channels}→{channels}, {batch}×{size}², 3×3",
        [torch.randn(batch, channels, 9, channels)],
        lambda x, w: guided_conv2d(x, w, kernel_size=3),
        lambda x, w: (_unfolded(x).unsqueeze(3) * w[..., None, None]).sum((1, 2)),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        batch * size**2 * 9 * channels**2,
    )


def _pointwise(batch: int, channels: int, size: int) -> Case:
    return Case(
        f"pointwise {channels}→{channels}, {batch}×{size}²",
        [torch.randn(batch, channels, channels)],
        lambda x, w: guided_depthwise_conv2d(x, w),
        lambda x, w: (x.unsqueeze(2) * w[..., None, None]).sum(1),
        nn.Conv2d(channels, channels, 1, bias=False),
        batch * size**2 * channels**2,
    )


def main() -> None:
    torch.set_num_threads(1)
    for row in rows():
        print(row, flush=True)


if __name__ == "__main__":
    main()
