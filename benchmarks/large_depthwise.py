"""Depthwise convolution with large kernels against ``F.conv2d``: ``python -m benchmarks.large_depthwise [--all]``.

The shapes are those of the stages of ConvNeXt. The floor is what the multiply-adds take at the rate of a large matrix
product, those on padding included; both ways may skip those, and come below it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from convswap.layers.large_depthwise import large_depthwise_conv2d

from .timing import forward_and_backward, table_row, times

STAGES = ((96, 56), (192, 28), (384, 14), (768, 7))
KERNELS = (7, 17, 31)
ALL_KERNELS = (3, 5, 7, 9, 11, 13, 17, 21, 31)
COLUMNS = [
    "2×channels×size², kernel, stride",
    "dtype",
    "pass",
    "F.conv2d, ms",
    "channels_last, ms",
    "ours, ms",
    "channels_last, ms",
    "floor, ms",
    "F.conv2d ÷ ours",
    "in channels_last",
]


def rows(
    rounds: int = 5,
    kernels: Sequence[int] = KERNELS,
    strides: Sequence[int] = (1,),
    dtypes: Sequence[torch.dtype] = (torch.float32,),
) -> Iterator[str]:
    """The table in Markdown, line by line."""
    yield table_row(COLUMNS)
    yield table_row(["---"] * 3 + ["---:"] * 7)
    rate = matrix_product_rate(rounds)
    for dtype in dtypes:
        for stride in strides:
            for channels, size in STAGES:
                for kernel in kernels:
                    yield from _compare(channels, size, kernel, stride, dtype, rate, rounds)


def matrix_product_rate(rounds: int) -> float:
    """Floating-point operations in a second of a large matrix product in float32."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / times({"product": lambda: a @ a}, rounds)["product"]


def _compare(
    channels: int, size: int, kernel: int, stride: int, dtype: torch.dtype, rate: float, rounds: int
) -> Iterator[str]:
    x = torch.randn(2, channels, size, size, dtype=dtype)
    weight = torch.randn(channels, 1, kernel, kernel, dtype=dtype) / kernel
    inputs = {"": x, " last": x.to(memory_format=torch.channels_last)}

    def runs(training: bool) -> dict[str, Callable[[], object]]:
        found: dict[str, Callable[[], object]] = {}
        for name, value in inputs.items():
            i, w = (t.detach().requires_grad_(training) for t in (value, weight))
            plain = _bind(F.conv2d, i, w, None, stride, kernel // 2, 1, channels)
            ours = _bind(large_depthwise_conv2d, i, w, None, stride, kernel // 2)
            found["plain" + name] = forward_and_backward(plain, [i, w]) if training else plain
            found["ours" + name] = forward_and_backward(ours, [i, w]) if training else ours
        return found

    out = (size - 1) // stride + 1
    floor = 2 * 2 * channels * out**2 * kernel**2 / rate
    title = f"2×{channels}×{size}², {kernel}×{kernel}, {stride}"
    for name, passes, taken in (("fwd", 1, times(runs(False), rounds)), ("fwd + bwd", 3, times(runs(True), rounds))):
        milliseconds = [taken[key] for key in ("plain", "plain last", "ours", "ours last")] + [passes * floor]
        ratios = [taken["plain"] / taken["ours"], taken["plain last"] / taken["ours last"]]
        yield table_row(
            [title, str(dtype).removeprefix("torch."), name]
            + [f"{1e3 * value:.2f}" for value in milliseconds]
            + [f"{value:.2f}" for value in ratios]
        )


def _bind(function: Callable[..., Tensor], *arguments: object) -> Callable[[], Tensor]:
    return lambda: function(*arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="all kernel sizes, strides and dtypes")
    torch.set_num_threads(1)
    if parser.parse_args().all:
        lines = rows(kernels=ALL_KERNELS, strides=(1, 2), dtypes=(torch.float32, torch.bfloat16))
    else:
        lines = rows()
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
