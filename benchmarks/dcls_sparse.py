"""DCLS without kernels against DCLS with kernels: ``python -m benchmarks.dcls_sparse [--all]``.

Depthwise: `dcls_sparse_conv` against `construct_kernel` and `large_depthwise_conv2d`, in the shapes of the stages of
ConvNeXt. Positions that all output channels share: `dcls_gather_conv2d` against `construct_kernel` and ``F.conv2d``.
The last column tells which of the two is chosen for the shapes: by `sparse_wins` and `gather_wins`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from convswap.layers.dcls_sparse import dcls_gather_conv2d, dcls_sparse_conv, gather_wins, sparse_wins
from convswap.layers.functional import large_depthwise_conv2d
from convswap.layers.ops.dcls_scatter import forward as dcls_scatter

from .timing import forward_and_backward, table_row, times

STAGES = ((96, 56), (192, 28), (384, 14), (768, 7))
ALL_COUNTS = (5, 9, 16, 34, 49)
ALL_SIZES = (7, 9, 13, 17, 23, 31)
AXES = [1, 0]
COLUMNS = ["shapes", "pass", "with kernels, ms", "without, ms", "with ÷ without", "chosen"]


def rows(rounds: int = 5, every: bool = False) -> Iterator[str]:
    """The table in Markdown, line by line."""
    yield table_row(COLUMNS)
    yield table_row(["---"] * 2 + ["---:"] * 3 + ["---"])
    counts, sizes = (ALL_COUNTS, ALL_SIZES) if every else ((9, 34), (7, 17, 31))
    for channels, image in STAGES:
        for size in sizes:
            for count in counts:
                yield from _depthwise(channels, image, size, count, rounds)
    for channels, image in ((64, 56), (128, 28), (256, 14), (512, 7)):
        for size in (5, 7, 13) if every else (7,):
            yield from _shared(channels, image, size, 9, rounds)


def _depthwise(channels: int, image: int, size: int, count: int, rounds: int) -> Iterator[str]:
    x, weight = torch.randn(2, channels, image, image), torch.randn(channels, 1, count) / count
    P = (torch.rand(2, channels, 1, count) - 0.5) * (size - 1)
    kernel, padding = [size, size], [size // 2] * 4

    def dense(x: Tensor, weight: Tensor, P: Tensor) -> Tensor:
        return large_depthwise_conv2d(x, dcls_scatter(weight, P, kernel, AXES, True, False), None, 1, size // 2)

    def sparse(x: Tensor, weight: Tensor, P: Tensor) -> Tensor:
        return dcls_sparse_conv(x, weight, P, None, kernel, AXES, True, (1, 1), padding)

    name = f"depthwise 2×{channels}×{image}², {count} elements in {size}×{size}"
    chosen = sparse_wins(x, count, kernel, (1, 1), padding)
    yield from _compare(name, (x, weight, P), dense, sparse, chosen, rounds)


def _shared(channels: int, image: int, size: int, count: int, rounds: int) -> Iterator[str]:
    x, weight = torch.randn(2, channels, image, image), torch.randn(channels, channels, count) / count
    P = (torch.rand(2, 1, channels, count) - 0.5) * (size - 1)
    kernel, padding = [size, size], [size // 2] * 4

    def dense(x: Tensor, weight: Tensor, P: Tensor) -> Tensor:
        built = dcls_scatter(weight, P.expand(2, channels, -1, -1), kernel, AXES, False, False)
        return F.conv2d(x, built, None, 1, size // 2)

    def gather(x: Tensor, weight: Tensor, P: Tensor) -> Tensor:
        return dcls_gather_conv2d(x, weight, P, None, kernel, AXES, False, (1, 1), padding)

    name = f"shared 2×{channels}×{image}² → {channels}, {count} elements in {size}×{size}"
    yield from _compare(name, (x, weight, P), dense, gather, gather_wins(x, count, kernel, channels), rounds)


def _compare(
    name: str,
    tensors: Sequence[Tensor],
    dense: Callable[..., Tensor],
    sparse: Callable[..., Tensor],
    chosen: bool,
    rounds: int,
) -> Iterator[str]:
    ways = {"with": dense, "without": sparse}
    learned = [tensor.clone().requires_grad_() for tensor in tensors]
    forward: dict[str, Callable[[], object]] = {}
    both: dict[str, Callable[[], object]] = {}
    for key, way in ways.items():
        forward[key] = partial(way, *tensors)
        both[key] = forward_and_backward(partial(way, *learned), learned)
    for which, runs in (("fwd", forward), ("fwd + bwd", both)):
        taken = times(runs, rounds)
        milliseconds = [f"{1e3 * taken[key]:.2f}" for key in ways]
        ratio = f"{taken['with'] / taken['without']:.2f}"
        yield table_row([name, which, *milliseconds, ratio, "without" if chosen else "with"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="all element counts and sizes")
    torch.set_num_threads(1)
    for row in rows(every=parser.parse_args().all):
        print(row, flush=True)


if __name__ == "__main__":
    main()
