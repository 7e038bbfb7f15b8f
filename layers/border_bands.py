"""A convolution whose outputs at the border are computed apart from the others, band by band.

Along an axis the outputs are a band whose windows begin before the image, the interior, and a band whose windows end
behind it. The bands of the first axis are as wide as the image, those of the next lie in the interior of the first,
and so on; what is left is a plain convolution of the image itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._geometry import conv_nd, least, memory_format, most, split_outputs, stored_as
from .border_geometry import BorderConv
from .extrapolation import extrapolate_pad


def banded_conv(
    conv: BorderConv,
    order: Sequence[tuple[int, int]],
    edge_weight: Tensor,
    edge_bias: Tensor | None,
    keep_img_grad: bool,
) -> Tensor:
    """Convolve the interior with the kernel of ``conv`` and the bands with ``edge_weight``, on extrapolated pixels.

    Args:
        conv: the convolution.
        order: of the extrapolation, (before, after) for each axis.
        edge_weight, edge_bias: kernel and bias of the outputs at the border, of the shapes that ``conv`` has.
        keep_img_grad: whether outputs at the border pass gradients to the image.

    Returns:
        (B, O, *out).
    """
    outputs = conv.output_size
    splits = [
        split_outputs(*axis) for axis in zip(conv.size, conv.widths, conv.extents, conv.stride, outputs, strict=True)
    ]
    source = conv.image if keep_img_grad else conv.image.detach()

    def pixels(chosen: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The pixels, from and to, that the windows of these outputs (first, how many) span on each axis."""
        starts = [at * step - width[0] for (at, _), step, width in zip(chosen, conv.stride, conv.widths, strict=True)]
        return [
            (start, start + (count - 1) * step + extent)
            for start, (_, count), step, extent in zip(starts, chosen, conv.stride, conv.extents, strict=True)
        ]

    def convolve(part: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv_nd(part, weight, bias, conv.stride, [(0, 0)] * len(outputs), conv.dilation, conv.groups)

    def band(chosen: Sequence[tuple[int, int]]) -> Tensor:
        return convolve(extended_part(source, pixels(chosen), order), edge_weight, edge_bias)

    def inside(done: list[tuple[int, int]]) -> Tensor:
        """The outputs in the interior of the first axes, whose outputs there are ``done``, and all of the others."""
        axis = len(done)
        if axis == len(outputs):
            return convolve(part_of(conv.image, pixels(done)), conv.weight, conv.bias)
        low, interior, high = splits[axis]
        rest = [(0, count) for count in outputs[axis + 1 :]]
        parts = [band([*done, (0, low), *rest])] if low else []
        if interior:
            parts.append(inside([*done, (low, interior)]))
        if high:
            parts.append(band([*done, (low + interior, high), *rest]))
        return torch.cat(parts, 2 + axis) if len(parts) > 1 else parts[0]

    y = inside([])
    if not keep_img_grad and min(split.interior for split in splits) == 0:
        y = y + conv.image.narrow(0, 0, 0).sum()  # nothing, so that the image has a gradient, of zeros, all the same
    return y


def part_of(image: Tensor, pixels: Sequence[tuple[int, int]]) -> Tensor:
    """These pixels, from and to on each axis, of ``image`` (B, C, *size)."""
    for axis, (start, end) in enumerate(pixels, start=2):
        image = image.narrow(axis, start, end - start)
    return image


def extended_part(image: Tensor, pixels: Sequence[tuple[int, int]], order: Sequence[tuple[int, int]]) -> Tensor:
    """These pixels, from and to on each axis, of an image (B, C, *size) that is extrapolated where they lie outside.

    No more of the image is extended than these pixels depend on.
    """
    needed, pads, chosen = [], [], []
    for size, (start, end), (before, after) in zip(image.shape[2:], pixels, order, strict=True):
        low, high = start < 0, end > size
        first = 0 if low else least(start, size - 1)
        last = size if high else most(end, 1)
        if low:  # the polynomial goes through these
            last = most(last, before + 1)
        if high:
            first = least(first, size - after - 1)
        pad = -start if low else 0, end - size if high else 0
        needed.append((first, last))
        pads.append(pad)
        chosen.append((start - first + pad[0], end - first + pad[0]))
    part = stored_as(part_of(image, needed), memory_format(image))
    return part_of(extrapolate_pad(part, pads, order), chosen)
