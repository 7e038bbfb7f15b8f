"""Padding an image with noise that is distributed as the pixels next to the border are (Nguyen et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ._geometry import IntOrInts, Padding, conv_nd, least
from ._lagrange import normalise_sides
from .border_ends import ends, joined
from .border_geometry2d import resolve_border_conv2d
from .noise_source import NoiseSource, standard_normal

torch.fx.wrap("random_pad2d")
torch.fx.wrap("random_pad_conv2d")

Noise: TypeAlias = torch.Generator | NoiseSource | None


def random_pad2d(
    input: Tensor, pad: int | Sequence[int] | Sequence[tuple[int, int]], generator: Noise = None
) -> Tensor:
    """Extend an image on each side by normal noise with the mean and deviation of the pixels next to it.

    "Distribution Padding in Convolutional Neural Networks" (Nguyen et al. 2019). A side that is extended by p pixels
    takes, for each sample and channel, mean and standard deviation (unbiased) of the p + 1 outermost rows or columns,
    of all there are if these are fewer; a single number does not deviate. Standard normal noise is drawn for the top
    (top, left + W + right), the bottom, the left (top + H + bottom, left) and the right, in this order, in single
    precision whatever the input's, and shared by all samples and channels. A corner is the mean of what the two sides
    that meet there put into it.

    Gradients flow through mean and deviation; a deviation of 0 passes none. Half precision is computed in single and
    rounded once.

    Args:
        input: (B, C, H, W), floating-point. The result is channels_last where it is.
        pad: pixels to add: one number for all sides, (vertical, horizontal), or ((top, bottom), (left, right)).
        generator: draws the noise, on its own device; by default the global one of the input's device does.

    Returns:
        (B, C, top + H + bottom, left + W + right).

    Raises:
        ValueError: if the input is none of these or has no pixels, or ``pad`` does not fit it.
    """
    if input.dim() != 4 or not input.is_floating_point():
        raise ValueError(f"the input must be (B, C, H, W), floating-point, got {tuple(input.shape)} of {input.dtype}")
    if min(input.shape[2:]) < 1:
        raise ValueError(f"an image without pixels has no mean and deviation, got {tuple(input.shape)}")
    (top, bottom), (left, right) = normalise_sides(pad, 2, "pad")
    height, width = input.shape[2:]
    across, down = left + width + right, top + height + bottom
    above, below = _sides(input, 2, (top, bottom), [(top, across), (bottom, across)], generator)
    before, after = _sides(input, 3, (left, right), [(down, left), (down, right)], generator)

    def outside(side: Tensor, start: int, rows: int) -> Tensor:
        """What lies above or below the image, of which the corners are half what lies beside it."""
        first, middle, last = side.split((left, width, right), 3)
        return joined(
            [
                (first + before.narrow(2, start, rows)) / 2,
                middle,
                (last + after.narrow(2, start, rows)) / 2,
            ],
            3,
            input,
        )

    beside = [before.narrow(2, top, height), input, after.narrow(2, top, height)]
    parts = [joined(beside, 3, input)]
    if top:
        parts.insert(0, outside(above, 0, top))
    if bottom:
        parts.append(outside(below, top + height, bottom))
    return joined(parts, 2, input)


def random_pad_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    generator: Noise = None,
) -> Tensor:
    """Convolve an image that is extended by `random_pad2d`.

    Args:
        input: (B, C, H, W), or (C, H, W). The result is channels_last where it is.
        weight: (O, C / groups, kh, kw), cross-correlated as in ``F.conv2d``.
        bias: (O) or None.
        stride, dilation, groups: as in ``F.conv2d``.
        padding: pixels that the image is extended by on each side: one number, two, ``"valid"``, or ``"same"`` with any
            stride, then as TensorFlow does.
        generator: draws the noise; by default the global one of the input's device does.

    Returns:
        (B, O, Ho, Wo), or (O, Ho, Wo).

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, a number is out of range, or the kernel is larger
            than the padded input.
    """
    conv = resolve_border_conv2d(input, weight, bias, stride, padding, dilation, groups)
    image = random_pad2d(conv.image, conv.widths, generator)
    y = conv_nd(image, conv.weight, conv.bias, conv.stride, [(0, 0)] * 2, conv.dilation, groups)
    return y.squeeze(0) if input.dim() == 3 else y


def _sides(
    input: Tensor, axis: int, pads: tuple[int, int], shapes: list[tuple[int, int]], generator: Noise
) -> list[Tensor]:
    """What the two sides of an axis put outside the image, (B, C, *shape), in single precision at least."""
    size = input.shape[axis]
    counts = [least(pad + 1, size) if pad else 0 for pad in pads]
    sides = []
    for strip, shape in zip(ends(input, axis, *counts), shapes, strict=True):
        strip = strip.to(torch.promote_types(input.dtype, torch.float32))
        if 0 in shape:
            sides.append(strip.new_empty((*input.shape[:2], *shape)))
            continue
        noise = standard_normal(shape, strip.device, generator).to(strip.dtype)
        if strip.shape[2] * strip.shape[3] == 1:
            sides.append(strip.expand(-1, -1, *shape))
            continue
        # From one of its own numbers a constant strip differs by exactly 0, as from its computed mean it may not.
        origin = strip[:, :, :1, :1].detach()
        offset = strip - origin
        mean = offset.mean((2, 3), keepdim=True)
        variance = (offset - mean).square().sum((2, 3), keepdim=True) / (strip.shape[2] * strip.shape[3] - 1)
        # The root has no derivative at 0, which is the variance of what a ReLU has left nothing of.
        varies = variance > 0
        deviation = torch.where(varies, torch.where(varies, variance, 1).sqrt(), 0)
        sides.append(torch.addcmul(origin + mean, deviation, noise))
    return sides
