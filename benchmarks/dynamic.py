"""Dynamic layers against plain convolutions and against the published formula: ``python -m benchmarks.dynamic``.

The published formula is: broadcast, multiply, sum over the kernels, one grouped convolution. The plain convolution has
the geometry of what runs in the end.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convswap.layers import DynamicConv2d

from .timing import comparison_rows, table_row

COLUMNS = ["layer", "pass", "plain, ms", "ours, ms", "published, ms", "ours ÷ plain", "published ÷ ours"]


def rows(rounds: int = 3) -> Iterator[str]:
    """The table in Markdown, line by line."""
    yield table_row(COLUMNS)
    yield table_row(["---"] * 2 + ["---:"] * 5)
    for channels, size, groups in ((512, 7, 1), (64, 56, 1), (144, 56, 144)):
        plain = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)
        ours = DynamicConv2d.from_conv(plain)
        x = torch.randn(8, channels, size, size)
        name = f"dynamic, K = 4: 8×{channels}×{size}² 3×3{' depthwise' if groups > 1 else ''}"
        modules = {"plain": plain, "ours": ours, "published": _PublishedDynamic(ours)}
        yield from comparison_rows(name, x, modules, rounds)


class _PublishedDynamic(nn.Module):
    """The formula as published: (B, K, 1…) × (1, K, O, I, k, k), summed over K, then one grouped convolution."""

    def __init__(self, ours: DynamicConv2d) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        ours = self.ours
        attention = ours.attention(x)
        weight = ours.weight.view(1, ours.kernels, ours.out_channels, *ours.weight.shape[1:])
        mixed = (attention[:, :, None, None, None, None] * weight).sum(1)
        assert ours.bias is not None
        bias = (attention[:, :, None] * ours.bias.view(1, ours.kernels, -1)).sum(1)
        y = F.conv2d(
            x.reshape(1, -1, *x.shape[2:]),
            mixed.flatten(0, 1),
            bias.flatten(),
            padding=1,
            groups=ours.groups * x.shape[0],
        )
        return y.view(x.shape[0], -1, *y.shape[2:])


def main() -> None:
    torch.set_num_threads(1)
    for row in rows():
        print(row, flush=True)


if __name__ == "__main__":
    main()
