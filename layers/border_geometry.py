"""What the functional forms of convolutions with a border of their own have in common: geometry and checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ._geometry import (
    IntOrInts,
    Padding,
    check_fits,
    effective_size,
    normalise_padding,
    output_size,
    pad_widths,
    per_axis,
)
from .ops._autocast import autocast_like_conv


class BorderConv(NamedTuple):
    """A convolution of a batch of images of one size, its tensors in the dtype to compute in."""

    image: Tensor
    """(B, C, *size)."""
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    widths: list[tuple[int, int]]
    """Pixels (before, after) that each axis lacks for its windows."""
    dilation: tuple[int, ...]
    groups: int
    extents: tuple[int, ...]
    """Pixels that the kernel spans on each axis."""

    @property
    def size(self) -> tuple[int, ...]:
        """Of the image, without batch and channels."""
        return tuple(self.image.shape[2:])

    @property
    def output_size(self) -> tuple[int, ...]:
        """Of the result, without batch and channels."""
        return output_size(self.size, self.widths, self.extents, self.stride)


def resolve_border_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrInts,
    padding: Padding,
    dilation: IntOrInts,
    groups: int,
) -> BorderConv:
    """Bring the arguments of a convolution to numbers, a batch axis and, under autocast, the dtype of a convolution.

    Args:
        input: (B, C, *size), or (C, *size).
        weight: (O, C / groups, *kernel_size) of 1 to 3 spatial axes, which tells how many the input has.
        bias: (O) or None.
        stride, padding, dilation, groups: as in ``nn.Conv2d``; ``padding="same"`` with any stride.

    Raises:
        ValueError: if a number is out of range, shapes, dtypes or devices do not fit together, or the kernel is larger
            than the padded input.
    """
    dims = weight.dim() - 2
    if not 1 <= dims <= 3 or min(weight.shape) < 1:
        raise ValueError(f"weight must be (O, C / groups, *kernel_size) with 1 to 3 axes, got {tuple(weight.shape)}")
    if input.dim() not in (dims + 1, dims + 2):
        raise ValueError(
            f"the input must have {dims + 2} axes (or {dims + 1}, without batch) for a weight of shape "
            f"{tuple(weight.shape)}, got {tuple(input.shape)}"
        )
    if any(size < 1 for size in input.shape[-dims:]):
        raise ValueError(f"an image must have a pixel on each axis, got an input of shape {tuple(input.shape)}")
    image = autocast_like_conv(input if input.dim() == dims + 2 else input.unsqueeze(0))
    steps, spacing = per_axis(stride, dims, "stride"), per_axis(dilation, dims, "dilation")
    for name, values in (("stride", steps), ("dilation", spacing)):
        if min(values) < 1:
            raise ValueError(f"{name} must be at least 1, got {values}")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(
            f"groups must divide the {weight.shape[0]} output channels of weight {tuple(weight.shape)}, "
            f"got groups={groups}"
        )
    if image.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} with groups={groups} is for {weight.shape[1] * groups} input "
            f"channels, got an input of shape {tuple(input.shape)}"
        )
    kernel, offset = fitting_kernel("weight", weight, weight.shape, image), fitting_bias("bias", bias, weight, image)
    extents = effective_size(weight.shape[2:], spacing)
    widths = pad_widths(normalise_padding(padding, dims), extents, steps, image.shape[2:])
    check_fits(image.shape[2:], widths, extents)
    return BorderConv(image, kernel, offset, steps, widths, spacing, groups, extents)


def fitting_kernel(name: str, value: Tensor, shape: Sequence[int], image: Tensor) -> Tensor:
    """``value`` in the dtype to compute in.

    Raises:
        ValueError: unless it has this shape, and the dtype and device of ``image``.
    """
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must be of shape {tuple(shape)}, got {tuple(value.shape)}")
    computed = autocast_like_conv(value)
    if computed.dtype != image.dtype or computed.device != image.device:
        raise ValueError(
            f"{name} must have the dtype and device of the input, {image.dtype} on {image.device}, "
            f"got {computed.dtype} on {computed.device}"
        )
    return computed


def fitting_bias(name: str, value: Tensor | None, weight: Tensor, image: Tensor) -> Tensor | None:
    """``value`` in the dtype to compute in, or None.

    Raises:
        ValueError: unless it has a number for each output of ``weight``, and the dtype and device of ``image``.
    """
    return None if value is None else fitting_kernel(name, value, weight.shape[:1], image)
