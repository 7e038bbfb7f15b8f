"""Padding-free convolution against the plain one and the published ways: ``python -m benchmarks.padding_free``.

The published code convolves with zero padding, gathers by index for each border pixel the nearest full window,
multiplies it with a kernel that a matrix has transformed for the displacement, and writes the results over those of the
border: "memory" takes windows of one displacement, and so of one kernel, at a time, "speed" all at once, each with a
transformed kernel of its own. Both are written here from that description. "By concatenation" is padding by sums of
slices, then the plain convolution.

Times are taken in a process whose C library keeps what is freed, as a training process would after a while: otherwise
it is by chance who has to wait for new pages of the system. Peaks are taken in one that gives everything back.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from convswap.layers.functional import padding_free_conv2d
from convswap.layers.ops.extrapolate_pad import extrapolate_pad_ref

from .memory import measured_elsewhere, peak_of
from .timing import forward_and_backward, table_row, times

BATCH, SIZE = 4, 56
KERNELS = (3, 5, 7)
LAYERS = {"64→64": (64, 1), "96, depthwise": (96, 96)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
WAYS = ("plain", "ours", "concatenation", "memory", "speed")
COLUMNS = [
    f"{BATCH}×channels×{SIZE}², kernel",
    "dtype, format",
    "pass",
    "plain",
    "ours",
    "by concatenation",
    "published, memory",
    "published, speed",
    "ours ÷ plain",
    "concatenation ÷ plain",
    "memory ÷ ours",
    "speed ÷ ours",
]
KEEP_FREED = {"MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}


class Published:
    """The nearest full windows of border pixels, and how kernels are transformed for them, of one kernel size."""

    def __init__(self, kernel: int, dtype: torch.dtype) -> None:
        self.kernel, self.pad = kernel, kernel // 2
        places = torch.arange(SIZE)
        centres = places.clamp(self.pad, SIZE - 1 - self.pad)
        shifts = [self._shift(by) for by in range(-self.pad, self.pad + 1)]
        self.transforms = [[torch.kron(down, across).to(dtype) for across in shifts] for down in shifts]
        moved = places - centres + self.pad  # of the transform
        is_border = ((moved[:, None] != self.pad) | (moved != self.pad)).flatten()
        border, taps = is_border.nonzero().squeeze(1), torch.arange(kernel) - self.pad
        rows, columns = border // SIZE, border % SIZE
        down, across = centres[rows, None] + taps, centres[columns, None] + taps
        pixels = (down[:, :, None] * SIZE + across[:, None]).flatten(1)  # (N, K), of each window
        each = [self.transforms[i][j] for i, j in zip(moved[rows].tolist(), moved[columns].tolist(), strict=True)]
        self.all = border, pixels, torch.stack(each)  # (N), (N, K), (N, K, K): tap of the kernel, number of the window
        pairs = torch.stack([moved[rows], moved[columns]], 1)
        alike = [(pair.tolist(), (pairs == pair).all(1).nonzero().squeeze(1)) for pair in pairs.unique(dim=0)]
        self.alike = [(border[which], pixels[which], self.transforms[i][j]) for (i, j), which in alike]

    def _shift(self, by: int) -> Tensor:
        """Values at places moved by so much of the polynomials that are 1 at one place and 0 at all others."""
        at = (torch.arange(self.kernel, dtype=torch.float64) - self.pad) / self.kernel
        moved = torch.vander(at + by / self.kernel, self.kernel)
        solved: Tensor = torch.linalg.solve(torch.vander(at).mT, moved.mT).mT
        return solved

    def memory(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        y = F.conv2d(x, weight, None, 1, self.pad, 1, groups)
        for border, pixels, transform in self.alike:
            kernels = torch.einsum("kj,ocj->ock", transform.mT, weight.flatten(2)).unflatten(0, (groups, -1))
            windows = x.flatten(2)[:, :, pixels].unflatten(1, (groups, -1))
            y.flatten(2)[:, :, border] = torch.einsum("gock,bgcnk->bgon", kernels, windows).flatten(1, 2)
        return y

    def speed(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        y = F.conv2d(x, weight, None, 1, self.pad, 1, groups)
        border, pixels, transforms = self.all
        kernels = torch.einsum("nkj,ocj->ocnk", transforms.mT, weight.flatten(2)).unflatten(0, (groups, -1))
        windows = x.flatten(2)[:, :, pixels].unflatten(1, (groups, -1))
        y.flatten(2)[:, :, border] = torch.einsum("gocnk,bgcnk->bgon", kernels, windows).flatten(1, 2)
        return y


class Case:
    """One layer, with what each way needs."""

    def __init__(self, layer: str, dtype: str, format: str, kernel: int) -> None:
        channels, groups = LAYERS[layer]
        generator = torch.Generator().manual_seed(0)
        memory_format, pad = FORMATS[format], kernel // 2
        x = torch.randn(BATCH, channels, SIZE, SIZE, generator=generator).to(DTYPES[dtype])
        w = torch.randn(channels, channels // groups, kernel, kernel, generator=generator).to(DTYPES[dtype]) / kernel
        self.x = x.contiguous(memory_format=memory_format).requires_grad_()
        self.w = w.contiguous(memory_format=memory_format).requires_grad_()
        published = Published(kernel, DTYPES[dtype])
        sides = [pad] * 4, [kernel - 1] * 4

        def by_concatenation() -> Tensor:
            return F.conv2d(extrapolate_pad_ref(self.x, *sides), self.w, None, 1, 0, 1, groups)

        self.ways: dict[str, Callable[[], Tensor]] = {
            "plain": lambda: F.conv2d(self.x, self.w, None, 1, pad, 1, groups),
            "ours": lambda: padding_free_conv2d(self.x, self.w, None, 1, pad, 1, groups),
            "concatenation": by_concatenation,
            "memory": lambda: published.memory(self.x, self.w, groups),
            "speed": lambda: published.speed(self.x, self.w, groups),
        }

    def both_passes(self) -> dict[str, Callable[[], object]]:
        return {name: forward_and_backward(way, [self.x, self.w]) for name, way in self.ways.items()}


def rows(rounds: int = 9) -> Iterator[str]:
    """The table in Markdown, line by line."""
    yield table_row(COLUMNS)
    yield table_row(["---"] * 3 + ["---:"] * 9)
    for layer, (_, groups) in LAYERS.items():
        for dtype in DTYPES if groups == 1 else ("float32",):
            for format in FORMATS:
                for kernel in KERNELS:
                    yield from _compare([layer, dtype, format, str(kernel)], rounds)


def _compare(case: list[str], rounds: int) -> Iterator[str]:
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "times", *case, str(rounds)]
    told = subprocess.run(command, env=os.environ | KEEP_FREED, stdout=subprocess.PIPE, text=True, check=True).stdout
    layer, dtype, format, kernel = case
    title = [f"{layer}, {kernel}×{kernel}", f"{dtype}, {format}"]
    for name, line in zip(("fwd, ms", "fwd + bwd, ms"), told.splitlines(), strict=True):
        yield _row([*title, name], [1e3 * float(value) for value in line.split()], 2)
    peaks = [float(measured_elsewhere(command[2], "peak", *case, way)) / 1e6 for way in WAYS]
    yield _row([*title, "fwd + bwd, peak MB"], peaks, 1)


def _row(title: list[str], values: list[float], digits: int) -> str:
    plain, ours, concatenation, memory, speed = values
    ratios = [f"{ours / plain:.2f}", f"{concatenation / plain:.2f}", f"{memory / ours:.1f}", f"{speed / ours:.1f}"]
    return table_row([*title, *(f"{value:.{digits}f}" for value in values), *ratios])


def _print_times(case: Case, rounds: int) -> None:
    with torch.no_grad():
        forward = times(dict(case.ways), rounds)
    for taken in (forward, times(case.both_passes(), rounds)):
        print(*(taken[way] for way in WAYS))


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        what, layer, dtype, format, kernel, last = sys.argv[1:]
        case = Case(layer, dtype, format, int(kernel))
        if what == "peak":
            print(peak_of(case.both_passes()[last]))
        else:
            _print_times(case, int(last))
        return
    for line in rows():
        print(line, flush=True)


if __name__ == "__main__":
    main()
