"""Bringing a guide to the size that a hypernet needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .._geometry import effective_size, output_size, pad_widths

Fit = tuple[tuple[int, ...], tuple[int, ...], str | tuple[int, ...], tuple[int, ...]]
"""Kernel size, stride, padding and dilation of the convolution that is guided."""


def fit_guide(guide: Tensor, input: Tensor, fit: Fit | None) -> Tensor:
    """Give a guide a batch axis and, where kernels are generated for each pixel, the size of the convolution's output.

    On each axis a larger guide is averaged and a smaller one interpolated linearly.

    Args:
        guide: (B, G, H, W), or (B, G), which counts as one pixel; either without B too.
        input: what the convolution reads, (B, C, H, W) or (C, H, W).
        fit: the geometry of the convolution, or None where there is one kernel for all pixels.

    Returns:
        (B, G, Ho, Wo); without ``fit`` (B, G, H, W) or (B, G), as given.

    Raises:
        ValueError: if the guide has another number of axes or another batch size than the input.
    """
    if guide is None:
        raise ValueError("fit_guide got no guide: hand one in, the input where the convolution guides itself")
    if guide.dim() not in (1, 2, 3, 4):
        raise ValueError(f"a guide must be (B, G, H, W) or (B, G), got {tuple(guide.shape)}")
    if guide.dim() in (1, 3):
        guide = guide.unsqueeze(0)
    batch = input.shape[0] if input.dim() == 4 else 1
    if guide.shape[0] != batch:
        raise ValueError(
            f"a guide must have the batch size of the input, got a guide of shape {tuple(guide.shape)} and "
            f"an input of shape {tuple(input.shape)}"
        )
    if fit is None:
        return guide
    kernel_size, stride, padding, dilation = fit
    extents = effective_size(kernel_size, dilation)
    widths = pad_widths(padding, extents, stride, input.shape[-2:])
    return fit_size(guide, output_size(input.shape[-2:], widths, extents, stride))


def fit_size(value: Tensor, size: Sequence[int]) -> Tensor:
    """Bring (B, G, H, W), or (B, G) as one pixel, to (B, G, *size): averaged where larger, interpolated where smaller.

    Raises:
        ValueError: if there are no pixels to make others from.
    """
    if value.dim() == 2:
        value = value[..., None, None]
    rows, columns = value.shape[2:]
    height, width = size
    if rows == height and columns == width:
        return value
    if min(rows, columns, height, width) < 1:
        raise ValueError(f"a guide of {rows}x{columns} pixels cannot be brought to {height}x{width}")
    if rows > height or columns > width:
        value = F.adaptive_avg_pool2d(value, (min(rows, height), min(columns, width)))
    if rows < height or columns < width:
        if rows == 1 and columns == 1:
            return value.expand(-1, -1, height, width)
        value = F.interpolate(value, (height, width), mode="bilinear", align_corners=False)
    return value
