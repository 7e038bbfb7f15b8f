"""Convolution whose taps are at real positions common to all output channels, without building its kernel."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from ._geometry import is_channels_last, memory_format, output_size, pad, pad_widths, stored_as
from .dcls_scatter import triangle

SAMPLE_COST = 700
"""What sampling the image at one tap costs, in multiply-adds of the convolution. Measured on one CPU core."""

OVERHEAD = 16
"""How many more output channels a convolution with the dense kernel seems to have than it has."""


def sampling_is_cheaper(grid: tuple[int, ...], taps: int, outputs: int) -> bool:
    """Whether `sampled_conv` beats a convolution with the dense kernel, which has ``outputs`` channels per group."""
    return taps * (outputs + SAMPLE_COST) < math.prod(grid) * (outputs + OVERHEAD)


def sampled_conv(
    x: Tensor,
    weight: Tensor,
    places: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: str | tuple[int, ...],
    grid: tuple[int, ...],
    groups: int,
    padding_mode: str,
) -> Tensor:
    """Interpolate the image at the taps' positions, then mix channels and taps by one matrix product.

    Args:
        x: (B, C, *size), or (C, *size). The result is channels_last where it is.
        weight: (O, I, taps), I input channels per group.
        places: (D, I, taps), positions in pixels relative to ``grid[d] // 2``, ``places[d]`` along axis d.
        bias: (O) or None.
        stride, padding, groups, padding_mode: as in ``nn.Conv2d``, ``padding`` for a kernel of size ``grid``.
    """
    dims, taps, outputs = len(grid), weight.shape[2], weight.shape[0]
    if x.dim() == dims + 1:
        single = sampled_conv(x.unsqueeze(0), weight, places, bias, stride, padding, grid, groups, padding_mode)
        return single.squeeze(0)
    widths = pad_widths(padding, grid, stride, x.shape[2:])
    size = output_size(x.shape[2:], widths, grid, stride)
    if min(size) < 1:
        raise RuntimeError(f"the kernel spans {grid} pixels, more than the padded input, of size {tuple(x.shape[2:])}")
    padded = pad(x, widths, padding_mode).contiguous()
    (batch, channels), pixels = padded.shape[:2], math.prod(size)
    steps = [math.prod(padded.shape[3 + axis :]) for axis in range(dims)]  # from a row to the next, in memory
    corners = torch.zeros((), dtype=torch.long, device=x.device)  # of each output's window, in the flattened image
    for count, skip, step in zip(size, stride, steps, strict=True):
        corners = corners.unsqueeze(-1) + torch.arange(count, device=x.device) * (skip * step)
    touched = [triangle(places[axis], grid[axis], False) for axis in range(dims)]
    image, columns = padded.flatten(2), torch.zeros((), dtype=places.dtype, device=x.device)
    for cell in itertools.product(range(len(touched[0][0])), repeat=dims):
        offset = torch.zeros_like(touched[0][0][0])
        share = torch.ones_like(places[0])
        for (index, bump), step, choice in zip(touched, steps, cell, strict=True):
            offset, share = offset + index[choice] * step, share * bump[choice]
        source = (offset.repeat(groups, 1).unsqueeze(-1) + corners.flatten()).flatten(1)  # (C, taps * pixels)
        taken = image.gather(2, source.expand(batch, -1, -1)).view(batch, channels, taps, pixels)
        columns = columns + taken * share.repeat(groups, 1).unsqueeze(-1)
    mixed = weight.reshape(groups, outputs // groups, -1) @ columns.to(x.dtype).reshape(
        batch, groups, weight.shape[1] * taps, pixels
    )
    y = mixed.reshape(batch, outputs, *size)
    if bias is not None:
        y = y + bias.to(y.dtype).view(-1, *(1,) * dims)
    return stored_as(y, memory_format(x)) if is_channels_last(x) else y
