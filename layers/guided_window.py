"""What the functional forms of guided convolution have in common: geometry, batch axes, dtypes, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ._geometry import (
    PADDING_MODES,
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


class Window(NamedTuple):
    """The geometry of a convolution of images of one size."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    widths: list[tuple[int, int]]
    """Pixels to add: (top, bottom), (left, right)."""
    dilation: tuple[int, ...]
    size: tuple[int, ...]
    """Of the output: Ho, Wo."""

    @property
    def taps(self) -> int:
        return self.kernel_size[0] * self.kernel_size[1]


def resolve_window(
    input_size: Sequence[int], kernel_size: IntOrInts, stride: IntOrInts, padding: Padding, dilation: IntOrInts
) -> Window:
    """Bring the arguments of a convolution to numbers for an input of this (height, width).

    Raises:
        ValueError: if a number is out of range, or the kernel larger than the padded input.
    """
    kernel, steps, spacing = (
        per_axis(value, 2, name)
        for value, name in ((kernel_size, "kernel_size"), (stride, "stride"), (dilation, "dilation"))
    )
    for name, values in (("kernel_size", kernel), ("stride", steps), ("dilation", spacing)):
        if min(values) < 1:
            raise ValueError(f"{name} must be at least 1, got {values}")
    extents = effective_size(kernel, spacing)
    widths = pad_widths(normalise_padding(padding, 2), extents, steps, input_size)
    check_fits(input_size, widths, extents)
    return Window(kernel, steps, widths, spacing, output_size(input_size, widths, extents, steps))


class Batch(NamedTuple):
    """Arguments of a guided convolution with a batch axis each, in the dtype to compute in."""

    x: Tensor
    weights: tuple[Tensor, ...]
    bias: Tensor | None
    """(B, Co)."""


def batched(
    x: Tensor, weights: Sequence[tuple[str, Tensor, int]], bias: Tensor | None, out_channels: int, padding_mode: str
) -> Batch:
    """Give everything a batch axis and, under autocast, the dtype of a convolution.

    Args:
        x: (B, C, H, W), or (C, H, W).
        weights: name, tensor, and how many axes it has in a batch.
        bias: (Co) or (B, Co) or None.
        out_channels: Co.
        padding_mode: only checked here.

    Raises:
        ValueError: if there are no channels, axes, batch sizes, dtypes or devices do not fit together, or the padding
            mode is unknown.
    """
    if x.dim() not in (3, 4):
        raise ValueError(f"the input must be (B, C, H, W) or (C, H, W), got {tuple(x.shape)}")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
    if x.shape[-3] < 1 or out_channels < 1:
        raise ValueError(
            f"there must be input and output channels, got {x.shape[-3]} and {out_channels}: an input of shape "
            f"{tuple(x.shape)} and {', '.join(f'{name} of shape {tuple(weight.shape)}' for name, weight, _ in weights)}"
        )
    alone = x.dim() == 3
    image = autocast_like_conv(x.unsqueeze(0) if alone else x)
    batch = image.shape[0]
    made = []
    for name, weight, axes in weights:
        if weight.dim() == axes - 1 and alone:
            weight = weight.unsqueeze(0)
        if weight.dim() != axes:
            raise ValueError(f"{name} must have {axes} axes, got {tuple(weight.shape)}")
        if weight.shape[0] != batch:
            raise ValueError(
                f"{name} must hold weights for each of the {batch} samples of the input {tuple(x.shape)}, "
                f"got {weight.shape[0]}: {tuple(weight.shape)}"
            )
        made.append(checked_dtype(name, autocast_like_conv(weight), image))
    if bias is not None:
        # The number of axes first: a 0-dim tensor has no last one.
        if bias.dim() not in (1, 2) or bias.shape[-1] != out_channels or (bias.dim() == 2 and bias.shape[0] != batch):
            raise ValueError(f"bias must be ({out_channels},) or ({batch}, {out_channels}), got {tuple(bias.shape)}")
        bias = checked_dtype("bias", autocast_like_conv(bias), image).expand(batch, out_channels)
    return Batch(image, tuple(made), bias)


def checked_dtype(name: str, value: Tensor, like: Tensor) -> Tensor:
    """``value`` itself.

    Raises:
        ValueError: unless it has the dtype and the device of ``like``, the input.
    """
    if value.dtype != like.dtype or value.device != like.device:
        raise ValueError(
            f"{name} must have the dtype and device of the input, {like.dtype} on {like.device}, "
            f"got {value.dtype} on {value.device}"
        )
    return value


def check_channels(
    x: Tensor, channels: int, out_channels: int, groups: int, name: str, weight: Tensor, of: str
) -> None:
    """Check that ``weight``, whose axes ``of`` names, fits the channels of ``x``.

    Raises:
        ValueError: otherwise.
    """
    if groups < 1 or out_channels % groups:
        raise ValueError(f"groups must divide the {out_channels} output channels of {name}, got groups={groups}")
    if x.shape[1] != channels * groups:
        raise ValueError(
            f"{name} {of} of shape {tuple(weight.shape)} is for an input of {channels * groups} channels with "
            f"groups={groups}, got an input of shape {tuple(x.shape)}"
        )


def check_taps(name: str, weight: Tensor, axis: int, window: Window) -> None:
    """Check that axis ``axis`` of ``weight`` holds one number for each tap.

    Raises:
        ValueError: otherwise.
    """
    if weight.shape[axis] != window.taps:
        rows, columns = window.kernel_size
        raise ValueError(
            f"{name} must have {window.taps} taps on axis {axis} for a {rows}x{columns} kernel, "
            f"got {weight.shape[axis]}: {tuple(weight.shape)}"
        )


def check_pixels(name: str, weight: Tensor, window: Window) -> None:
    """Check that the last two axes of ``weight`` are those of the output.

    Raises:
        ValueError: otherwise.
    """
    if tuple(weight.shape[-2:]) != window.size:
        raise ValueError(
            f"{name} must have weights for the output's {window.size[0]}x{window.size[1]} pixels, "
            f"got {tuple(weight.shape)}"
        )
