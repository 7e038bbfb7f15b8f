"""Guided convolutions by their index formulas: windows gathered pixel by pixel, then one sum."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .helpers import Geometry, normal


def windows(x: Tensor, g: Geometry) -> Tensor:
    """x (B, C, H, W) to what each tap of each output reads, (B, C, taps, Ho, Wo)."""
    reads, widths = [], []
    for axis in range(2):
        size, kernel, stride, dilation = g.size[axis], g.kernel_size[axis], g.stride[axis], g.dilation[axis]
        span = dilation * (kernel - 1) + 1
        if g.padding == "same":
            total = max((-(-size // stride) - 1) * stride + span - size, 0)
            before, after = total // 2, total - total // 2
        else:
            before = after = 0 if g.padding == "valid" else g.padding[axis]
        starts = range(0, size + before + after - span + 1, stride)
        reads.append(torch.tensor([[start + tap * dilation for start in starts] for tap in range(kernel)]))
        widths.append((before, after))
    mode = "constant" if g.padding_mode == "zeros" else g.padding_mode
    padded = F.pad(x, [*widths[1], *widths[0]], mode)
    rows, columns = reads
    return padded[:, :, rows[:, None, :, None], columns[None, :, None, :]].flatten(2, 3)


def output_size(g: Geometry) -> tuple[int, int]:
    size = windows(torch.zeros(1, 1, *g.size), g).shape[3:]
    return size[0], size[1]


def taps(g: Geometry) -> int:
    return g.kernel_size[0] * g.kernel_size[1]


def with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias[..., None, None]


def guided(x: Tensor, w: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    """y[b, o, p] = sum_in w[b, i, n, o] x[b, i, p + n], i in o's group."""
    seen = windows(x, g).unflatten(1, (g.groups, -1))
    y = torch.einsum("bgin...,bingo->bgo...", seen, w.unflatten(3, (g.groups, -1)))
    return with_bias(y.flatten(1, 2), bias)


def local(x: Tensor, w: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    """y[b, o, p] = sum_in w[b, i, n, o, p] x[b, i, p + n], i in o's group."""
    seen = windows(x, g).unflatten(1, (g.groups, -1))
    y = torch.einsum("bginhw,bingohw->bgohw", seen, w.unflatten(3, (g.groups, -1)))
    return with_bias(y.flatten(1, 2), bias)


def low_rank(x: Tensor, basis: Tensor, coefficients: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    return local(x, torch.einsum("rino,brhw->binohw", basis, coefficients), bias, g)


def channelwise(x: Tensor, w: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    """y[b, o, p] = sum_n w[b, o, n, p] x[b, o // m, p + n]."""
    channels = torch.arange(w.shape[1]) // (w.shape[1] // x.shape[1])
    return with_bias((windows(x, g)[:, channels] * w).sum(2), bias)


def depthwise(x: Tensor, w: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    """y[b, o] = sum_i w[b, i, o] x[b, i], i in o's group."""
    return guided(x, w[:, :, None], bias, g)


def separable(x: Tensor, w_channel: Tensor, w_depth: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    y = channelwise(x, w_channel, None, g)
    mixed = torch.einsum("bgihw,bigo->bgohw", y.unflatten(1, (g.groups, -1)), w_depth.unflatten(2, (g.groups, -1)))
    return with_bias(mixed.flatten(1, 2), bias)


def weight_shapes(name: str, g: Geometry, rank: int = 2) -> list[tuple[Any, ...]]:
    """Shapes of the weights of one sample (of the basis: of all) for each of the formulas above."""
    size, channels = output_size(g), g.in_channels // g.groups
    return {
        "guided": [(channels, taps(g), g.out_channels)],
        "local": [(channels, taps(g), g.out_channels, *size)],
        "low_rank": [(channels, taps(g), g.out_channels), (rank, *size)],
        "channelwise": [(g.out_channels, taps(g), *size)],
        "depthwise": [(channels, g.out_channels)],
        "separable": [(g.in_channels, taps(g), *size), (channels, g.out_channels)],
    }[name]


def tensors(name: str, g: Geometry, batch: int, bias: str = "none", rank: int = 2) -> list[Tensor | None]:
    """Input, weights and bias (``"none"``, ``"one"`` for all samples or ``"each"``)."""
    generator = g.generator()
    made: list[Tensor | None] = [normal(generator, batch, g.in_channels, *g.size)]
    for i, shape in enumerate(weight_shapes(name, g, rank)):
        first = rank if name == "low_rank" and i == 0 else batch
        made.append(normal(generator, first, *shape))
    shape = {"none": None, "one": (g.out_channels,), "each": (batch, g.out_channels)}[bias]
    made.append(None if shape is None else normal(generator, *shape))
    return made
