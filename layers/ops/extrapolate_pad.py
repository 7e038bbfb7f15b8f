"""Padding by extrapolation, axis by axis, and its transpose.

Two linear ops that are each other's derivatives. Half precision is computed in single and rounded once. Results are
channels_last where the first argument is. And the transpose in place, for those who have no use for the gradient that
they give, and no memory for another.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._geometry import memory_format, stored_as
from .._lagrange import check_order, lagrange_weights
from ._define import LIBRARY, define
from ._load import kernels_loaded

Side = tuple[int, int]

MOST_MEMORY = 1.5
"""Memory of a gradient to an image that is computed in place, as a part of what it takes."""


def extrapolate_pad_ref(input: Tensor, padding: list[int], order: list[int]) -> Tensor:
    """Input (B, C, *size) of 1 to 3 axes; padding and order: before and after each axis, first axis first."""
    widths, orders = _pairs(padding), _pairs(order)
    check_order(input.shape[2:], widths, orders, input.dtype)
    y = _precise(input)
    for axis, ((before, after), (first, last)) in enumerate(zip(widths, orders, strict=True), 2):
        pieces = [y]
        if before > 0:
            outside = _weights(before, first, y).flip(0)  # the outermost comes first
            pieces.insert(0, _sum([_pixel(y, axis, j, outside[:, j]) for j in range(first + 1)]))
        if after > 0:
            outside = _weights(after, last, y)
            pieces.append(_sum([_pixel(y, axis, -1 - j, outside[:, j]) for j in range(last + 1)]))
        y = torch.cat(pieces, axis) if len(pieces) > 1 else y
    return _finished(y, input)


def extrapolate_pad_backward_ref(grad: Tensor, padding: list[int], order: list[int]) -> Tensor:
    """From the gradient to the padded image (B, C, *size + padding) that to the image."""
    widths, orders = _pairs(padding), _pairs(order)
    check_order(_inner_size(grad, padding), widths, orders, grad.dtype)
    g = _precise(grad)
    for axis, ((before, after), (first, last)) in reversed(list(enumerate(zip(widths, orders, strict=True), 2))):
        size = g.shape[axis] - before - after
        inner = g.narrow(axis, before, size).clone()
        if before > 0:
            outside, weights = g.narrow(axis, 0, before), _weights(before, first, g).flip(0)
            for j in range(first + 1):
                inner.select(axis, j).add_(_weighted(outside, axis, weights[:, j]))
        if after > 0:
            outside, weights = g.narrow(axis, before + size, after), _weights(after, last, g)
            for j in range(last + 1):
                inner.select(axis, -1 - j).add_(_weighted(outside, axis, weights[:, j]))
        g = inner
    return _finished(g, grad)


def extrapolate_pad_backward_in_place_ref(grad: Tensor, padding: list[int], order: list[int]) -> None:
    """Put the numbers of `extrapolate_pad_backward_ref`, as they lie in memory, to the beginning of those of grad."""
    found = extrapolate_pad_backward_ref(grad, padding, order)
    grad.as_strided(found.shape, found.stride()).copy_(found)


def folded(grad: Tensor, padding: list[int], order: list[int]) -> Tensor:
    """As `backward`, of a gradient that is contiguous or channels_last, in the memory of which the result may be.

    Not where that is `MOST_MEMORY` times as large, as whoever keeps the result keeps all of it.
    """
    size = _inner_size(grad, padding)
    large = math.prod(grad.shape[2:]) > MOST_MEMORY * math.prod(size)
    if large or grad.device.type != "cpu" or not kernels_loaded("cpu"):
        return backward(grad, padding, order)  # type: ignore[no-any-return]
    backward_in_place(grad, padding, order)
    return grad.resize_((*grad.shape[:2], *size), memory_format=memory_format(grad))


def _weights(pad: int, order: int, like: Tensor) -> Tensor:
    """`lagrange_weights`, (pad, order + 1)."""
    return torch.tensor(lagrange_weights(pad, order), dtype=like.dtype, device=like.device)


def _pixel(image: Tensor, axis: int, at: int, weights: Tensor) -> Tensor:
    """What one pixel of an axis contributes to as many outside it as there are weights.

    A product of numbers, as matrix products are rounded under autocast and by settings of a GPU.
    """
    return image.select(axis, at).unsqueeze(axis) * _along(weights, image, axis)


def _weighted(outside: Tensor, axis: int, weights: Tensor) -> Tensor:
    return (outside * _along(weights, outside, axis)).sum(axis)


def _along(weights: Tensor, image: Tensor, axis: int) -> Tensor:
    return weights.view(-1, *(1,) * (image.dim() - axis - 1))


def _sum(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def _pairs(sides: list[int]) -> list[Side]:
    return list(zip(sides[::2], sides[1::2], strict=True))


def _inner_size(padded: Tensor, padding: list[int]) -> list[int]:
    return [size - before - after for size, (before, after) in zip(padded.shape[2:], _pairs(padding), strict=True)]


def _precise(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _finished(value: Tensor, like: Tensor) -> Tensor:
    """In the dtype and the memory format of ``like``, and never ``like`` itself."""
    value = stored_as(value.to(like.dtype), memory_format(like))
    return value.clone() if value is like else value


def _fake(input: Tensor, padding: list[int], order: list[int]) -> Tensor:
    sizes = zip(input.shape[2:], _pairs(padding), strict=True)
    size = (*input.shape[:2], *(inner + before + after for inner, (before, after) in sizes))
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _fake_backward(grad: Tensor, padding: list[int], order: list[int]) -> Tensor:
    size = (*grad.shape[:2], *_inner_size(grad, padding))
    return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=memory_format(grad))


def _flops(*_: Any, **__: Any) -> int:
    return 0  # torch counts matrix products and convolutions, of which there are none


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.padding, ctx.order = inputs


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return backward(g, ctx.padding, ctx.order), None, None


def _backward_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return forward(g, ctx.padding, ctx.order), None, None


forward = define(
    "extrapolate_pad(Tensor input, SymInt[] padding, int[] order) -> Tensor",
    extrapolate_pad_ref,
    fake=_fake,
    flops=_flops,
    setup_context=_setup,
    backward=_backward,
)

backward = define(
    "extrapolate_pad_backward(Tensor grad, SymInt[] padding, int[] order) -> Tensor",
    extrapolate_pad_backward_ref,
    fake=_fake_backward,
    flops=_flops,
    setup_context=_setup,
    backward=_backward_backward,
)

LIBRARY.define("extrapolate_pad_backward_(Tensor(a!) grad, SymInt[] padding, int[] order) -> ()")
LIBRARY.impl("extrapolate_pad_backward_", extrapolate_pad_backward_in_place_ref, "CompositeExplicitAutograd")
backward_in_place = torch.ops.convswap.extrapolate_pad_backward_.default
