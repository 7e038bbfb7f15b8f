"""Attention over kernels against plain convolutions and published formulas: ``python -m benchmarks.dynamic``.

Published is: broadcast, multiply and sum over the kernels, or for CondConv2d one matrix product, then one grouped
convolution. The plain convolution has the geometry of what runs in the end. Memory is what a process needs at its peak
beyond what it held before, as the system counts it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import convswap
from convswap.layers import CondConv2d, DynamicConv2d, ODConv2d

from .memory import measured_elsewhere, peak_of
from .timing import forward_and_backward, table_row, times

COLUMNS = [
    "layer",
    "pass",
    "plain, ms",
    "ours, ms",
    "published, ms",
    "ours ÷ plain",
    "published ÷ ours",
    "plain, MB",
    "ours, MB",
    "published, MB",
]
LAYERS: dict[str, Any] = {"dynamic": DynamicConv2d, "condconv": CondConv2d, "odconv": ODConv2d}
SHAPES = {
    "8×512×7² 3×3": (512, 7, 1),
    "8×64×56² 3×3": (64, 56, 1),
    "8×144×56² 3×3 depthwise": (144, 56, 144),
}
PASSES = ("fwd", "fwd + bwd")
MODEL = "resnet18, {} of its convolutions dynamic: {}×3×224²"


def rows(rounds: int = 3) -> Iterator[str]:
    """The table in Markdown, line by line."""
    yield table_row(COLUMNS)
    yield table_row(["---"] * 2 + ["---:"] * 8)
    for layer in LAYERS:
        for shape in SHAPES:
            x, modules = _modules(layer, shape)
            peaks = _peaks_elsewhere(layer, shape)
            yield from _compared(f"{layer}, K = 4: {shape}", x, modules, rounds, peaks)
    yield from _whole_model(rounds)


def _modules(layer: str, shape: str) -> tuple[Tensor, dict[str, nn.Module]]:
    channels, size, groups = SHAPES[shape]
    plain = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)
    ours = LAYERS[layer].from_conv(plain)
    return torch.randn(8, channels, size, size), {"plain": plain, "ours": ours, "published": _Published(ours)}


def _compared(
    name: str, x: Tensor, modules: dict[str, nn.Module], rounds: int, peaks: dict[tuple[str, str], int]
) -> Iterator[str]:
    for which in PASSES:
        taken = times({key: _run(module, x, which) for key, module in modules.items()}, rounds)
        milliseconds = [f"{1e3 * taken[key]:.1f}" if key in taken else "" for key in ("plain", "ours", "published")]
        ratios = [f"{taken['ours'] / taken['plain']:.2f}"]
        ratios.append(f"{taken['published'] / taken['ours']:.1f}" if "published" in taken else "")
        megabytes = [
            f"{peaks[which, key] / 1e6:.1f}" if (which, key) in peaks else "" for key in ("plain", "ours", "published")
        ]
        yield table_row([name, which, *milliseconds, *ratios, *megabytes])


def _run(module: nn.Module, x: Tensor, which: str) -> Callable[[], object]:
    if which == PASSES[0]:
        return torch.no_grad()(lambda: module(x))
    own = x.detach().requires_grad_()
    return forward_and_backward(lambda: module(own), [own, *module.parameters()])


def _whole_model(rounds: int, batch: int = 4) -> Iterator[str]:
    plain = torchvision.models.resnet18().eval()
    ours = convswap.convert(plain, to="dynamic")
    swapped = sum(isinstance(module, DynamicConv2d) for module in ours.modules())
    x = torch.randn(batch, 3, 224, 224)
    yield from _compared(MODEL.format(swapped, batch), x, {"plain": plain, "ours": ours}, rounds, {})


class _Published(nn.Module):
    """The formulas as published, (B, K, 1, …) × (1, K, O, I, k, k) where there is no matrix product."""

    def __init__(self, ours: DynamicConv2d | CondConv2d | ODConv2d) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        ours = self.ours
        found = ours.attentions(x)
        kernel, batch = found["kernel"], x.shape[0]
        stack = ours.weight.view(ours.kernels, ours.out_channels, *ours.weight.shape[1:])
        assert ours.bias is not None
        bias = (kernel[:, :, None] * ours.bias.view(1, ours.kernels, -1)).sum(1)
        if isinstance(ours, CondConv2d):
            mixed = (kernel @ stack.flatten(1)).view(batch, *stack.shape[1:])
        elif isinstance(ours, ODConv2d):
            x = x * found["channel"][:, :, None, None]
            taps = found["position"].view(batch, 1, 1, 1, *ours.kernel_size)
            mixed = (kernel[:, :, None, None, None, None] * taps * stack).sum(1)
        else:
            mixed = (kernel[:, :, None, None, None, None] * stack).sum(1)
        own_bias = None if isinstance(ours, ODConv2d) else bias.flatten()
        whole = x.reshape(1, -1, *x.shape[2:])
        y = F.conv2d(whole, mixed.flatten(0, 1), own_bias, padding=1, groups=ours.groups * batch)
        y = y.view(batch, -1, *y.shape[2:])
        if "filter" in found:
            y = y * found["filter"][:, :, None, None]
        return y + bias[:, :, None, None] if isinstance(ours, ODConv2d) else y


def _peaks_elsewhere(layer: str, shape: str) -> dict[tuple[str, str], int]:
    """Bytes, for each pass and module."""
    printed = measured_elsewhere("benchmarks.dynamic", "--peaks", layer, shape)
    lines = (line.split("\t") for line in printed.splitlines())
    return {(which, key): int(size) for which, key, size in lines}


def _print_peaks(layer: str, shape: str) -> None:
    x, modules = _modules(layer, shape)
    for which in PASSES:
        for key, module in modules.items():
            print(which, key, peak_of(_run(module, x, which)), sep="\t")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peaks", nargs=2, metavar=("LAYER", "SHAPE"), help="figures of memory alone")
    asked = parser.parse_args().peaks
    torch.set_num_threads(1)
    if asked:
        _print_peaks(*asked)
        return
    for row in rows():
        print(row, flush=True)


if __name__ == "__main__":
    main()
