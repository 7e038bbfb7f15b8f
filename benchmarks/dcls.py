"""DCLS layers against plain convolutions and against the package ``dcls``: ``python -m benchmarks.dcls``.

The plain convolution has the dense kernel's geometry: what it takes cannot be undercut by a layer that builds the
kernel and then runs that convolution. Positions are spread over the grid; those of new layers are close together, and
cost less.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from convswap.layers import Dcls2d

from .timing import comparison_rows, table_row

COLUMNS = ["layer", "pass", "plain, ms", "ours, ms", "dcls 0.1.1, ms", "ours ÷ plain", "dcls 0.1.1 ÷ ours"]


def rows(rounds: int = 5) -> Iterator[str]:
    """The table in Markdown, line by line."""
    yield table_row(COLUMNS)
    yield table_row(["---"] * 2 + ["---:"] * 5)
    for version in ("v1", "v0", "max", "gauss"):
        for name, x, ours in (dense(version), depthwise(version)):
            modules = {"plain": ours.freeze(), "ours": ours, "published": oracle(ours)}
            yield from comparison_rows(name, x, modules, rounds)


def dense(version: str) -> tuple[str, Tensor, Dcls2d]:
    """A dense layer: its name, an input, the layer."""
    ours = Dcls2d(256, 256, 9, padding=3, dilated_kernel_size=7, version=version)  # type: ignore[arg-type]
    nn.init.uniform_(ours.P, -3, 3)
    return f"{version}: 2×256×14² → 256, 9 elements in 7×7", torch.randn(2, 256, 14, 14), ours


def depthwise(version: str) -> tuple[str, Tensor, Dcls2d]:
    """A depthwise layer, that of ConvNeXt's first stage."""
    ours = Dcls2d(96, 96, 34, padding=8, dilated_kernel_size=17, groups=96, version=version)  # type: ignore[arg-type]
    nn.init.uniform_(ours.P, -8, 8)
    return f"{version}: 2×96×56² depthwise, 34 elements in 17×17", torch.randn(2, 96, 56, 56), ours


def oracle(ours: Dcls2d) -> nn.Module:
    """The same layer of the package ``dcls``."""
    logging.disable(logging.WARNING)  # it warns at each construction that its CUDA kernel is missing
    package: Any = importlib.import_module("DCLS.construct.modules")
    module: nn.Module = package.Dcls2d(
        ours.in_channels,
        ours.out_channels,
        ours.kernel_count,
        padding=ours.padding,
        dilated_kernel_size=ours.dilated_kernel_size,
        groups=ours.groups,
        version=ours.version,
    )
    module.load_state_dict(ours.state_dict())
    return module


def main() -> None:
    torch.set_num_threads(1)
    for row in rows():
        print(row, flush=True)


if __name__ == "__main__":
    main()
