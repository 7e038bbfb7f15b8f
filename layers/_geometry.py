"""The geometry of a convolution: normalising its arguments, padding, and running it in any dimension."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

IntOrInts: TypeAlias = int | Sequence[int]
"""One number for all axes, or one for each."""

Padding: TypeAlias = str | int | Sequence[int]
"""Numbers as in ``nn.Conv2d``, ``"valid"`` or ``"same"``."""

PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]

PADDING_MODES: tuple[PaddingMode, ...] = ("zeros", "reflect", "replicate", "circular")


def per_axis(value: IntOrInts, dims: int, name: str) -> tuple[int, ...]:
    """Repeat a number for each of ``dims`` axes, or check that there is one for each.

    Raises:
        ValueError: if a sequence of another length is given.
    """
    if isinstance(value, Iterable):
        values = tuple(int(v) for v in value)
        if len(values) != dims:
            raise ValueError(f"{name} must be one number or {dims} of them, got {values}")
        return values
    return (int(value),) * dims


def normalise_padding(padding: Padding, dims: int) -> str | tuple[int, ...]:
    """Check ``padding`` and bring it to ``"same"``, ``"valid"`` or one number per axis.

    Raises:
        ValueError: if a string is neither ``"same"`` nor ``"valid"``, or a number is negative.
    """
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f'padding must be "same", "valid" or numbers, got {padding!r}')
        return padding
    amounts = per_axis(padding, dims, "padding")
    if min(amounts) < 0:
        raise ValueError(f"padding must not be negative, got {amounts}")
    return amounts


def effective_size(kernel_size: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Number of input pixels a dilated kernel spans on each axis: ``d (k - 1) + 1``."""
    return tuple(d * (k - 1) + 1 for k, d in zip(kernel_size, dilation, strict=True))


def pad_widths(
    padding: str | tuple[int, ...], window: Sequence[int], stride: Sequence[int], input_size: Sequence[int]
) -> list[tuple[int, int]]:
    """Pixels to add before and after each axis.

    ``"same"`` gives ``ceil(input / stride)`` outputs and puts an odd pixel behind, as TensorFlow does; with stride 1
    that is what ``nn.Conv2d(padding="same")`` does.
    """
    if padding == "valid":
        return [(0, 0)] * len(window)
    if padding == "same":
        widths = []
        for size, extent, step in zip(input_size, window, stride, strict=True):
            total = extent - 1 if step == 1 else max((-(-size // step) - 1) * step + extent - size, 0)
            widths.append((total // 2, total - total // 2))
        return widths
    assert not isinstance(padding, str)
    return [(p, p) for p in padding]


def check_fits(input_size: Sequence[int], widths: Sequence[tuple[int, int]], window: Sequence[int]) -> None:
    """Check that there is an output pixel on each axis.

    Raises:
        ValueError: if the dilated kernel, which spans ``window``, is larger than the padded input.
    """
    if any(size + sum(width) < extent for size, width, extent in zip(input_size, widths, window, strict=True)):
        raise ValueError(
            f"the kernel spans {tuple(window)} pixels and the input {tuple(input_size)}, padded by "
            f"{' and '.join(str(width) for width in widths)}, has less: take more padding or a smaller kernel"
        )


def conv_nd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    widths: list[tuple[int, int]],
    dilation: tuple[int, ...],
    groups: int,
    padding_mode: str = "zeros",
) -> Tensor:
    """Pad ``x`` (B, C, *size) by ``widths`` in ``padding_mode`` and cross-correlate it with ``weight``."""
    symmetric = all(before == after for before, after in widths)
    if padding_mode == "zeros" and symmetric:
        amounts = tuple(before for before, _ in widths)
    else:
        x = pad(x, widths, padding_mode)
        amounts = (0,) * len(widths)
    dims = weight.dim() - 2
    if dims == 1:
        return F.conv1d(x, weight, bias, stride, amounts, dilation, groups)
    if dims == 2:
        return F.conv2d(x, weight, bias, stride, amounts, dilation, groups)
    return F.conv3d(x, weight, bias, stride, amounts, dilation, groups)


def pad(x: Tensor, widths: list[tuple[int, int]], padding_mode: str = "zeros") -> Tensor:
    """Pad the last axes of ``x`` by ``widths`` (first axis first)."""
    if not any(before or after for before, after in widths):
        return x
    flat = [width for pair in reversed(widths) for width in pair]
    return F.pad(x, flat, "constant" if padding_mode == "zeros" else padding_mode)


def output_size(
    input_size: Sequence[int], widths: Sequence[tuple[int, int]], window: Sequence[int], stride: Sequence[int]
) -> tuple[int, ...]:
    """Spatial size of the result of a convolution whose dilated kernel spans ``window``."""
    return tuple(
        (size + before + after - extent) // step + 1
        for size, (before, after), extent, step in zip(input_size, widths, window, stride, strict=True)
    )


class Split(NamedTuple):
    """How many outputs of an axis have windows that begin before the image, lie in it, and end behind it."""

    low: int
    interior: int
    high: int


def split_outputs(size: int, width: tuple[int, int], extent: int, step: int, outputs: int) -> Split:
    """Split the outputs of an axis of ``size`` pixels, padded by ``width``, with windows of ``extent`` pixels.

    Where no window lies in the image, all count as ``low``.
    """
    first = least(-(-width[0] // step), outputs)
    end = least((size + width[0] - extent) // step + 1, outputs)
    return Split(first, end - first, outputs - end) if end > first else Split(outputs, 0, 0)


def least(one: int, other: int) -> int:
    """As ``min``; but of sizes that a compiler leaves open it is one of both, not an expression of them."""
    return one if one <= other else other


def most(one: int, other: int) -> int:
    """As ``max``, likewise."""
    return one if one >= other else other


def windows(
    image: Tensor, size: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Iterator[Tensor]:
    """For each tap a view of the padded pixels that it reads, (B, C, *size)."""
    (height, width), (down, across) = size, stride
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            y, x = i * dilation[0], j * dilation[1]
            yield image[:, :, y : y + (height - 1) * down + 1 : down, x : x + (width - 1) * across + 1 : across]


def is_channels_last(weight: Tensor) -> bool:
    """Whether a kernel tensor is stored with its channel axis last (and not in both ways, as 1x1 kernels are)."""
    if weight.is_contiguous():
        return False
    # Asking for the memory format by name would be the same, but torch.func.vmap does not answer that.
    return weight.dim() in (4, 5) and weight.movedim(1, -1).is_contiguous()


def memory_format(value: Tensor) -> torch.memory_format:
    """The channels_last format of its dimension where ``value`` (or a kernel) is stored so, else contiguous."""
    if not is_channels_last(value):
        return torch.contiguous_format
    return torch.channels_last if value.dim() == 4 else torch.channels_last_3d


def stored_as(value: Tensor, format: torch.memory_format) -> Tensor:
    """``value`` in that memory format, as ``contiguous(memory_format=format)`` gives it.

    That one does not work within ``torch.func.vmap``, for formats other than contiguous.
    """
    if format == torch.contiguous_format:
        return value.contiguous()
    last = value.movedim(1, -1)
    return value if last.is_contiguous() else last.contiguous().movedim(-1, 1)
