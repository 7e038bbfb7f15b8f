"""A look at kernels that have just been loaded: whether they compute what those of the CPU do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-4
"""Of single precision, relative to the greatest number: a wrong index is far above it."""


@torch.no_grad()
def first_disagreement(device_type: str) -> str | None:
    """The name of an op whose results on a device differ from those on the CPU, or None if all agree."""
    for op, arguments in _examples():
        try:
            if not _alike(_run(op, arguments, "cpu"), _run(op, arguments, device_type)):
                return str(op)
        except RuntimeError as error:
            return f"{op} ({error})"
    return None


def _run(op: Any, arguments: tuple[Any, ...], device_type: str) -> Any:
    """The results of an op on copies of its arguments, or, where it gives none, the first of these."""
    copies = [v.to(device_type, copy=True) if isinstance(v, Tensor) else v for v in arguments]
    results = op(*copies)
    return copies[0] if results is None else results


def _alike(here: Any, there: Any) -> bool:
    pairs = zip(here, there, strict=True) if isinstance(here, tuple) else ((here, there),)
    return all(
        one.shape == other.shape and bool((one - other.cpu()).abs().max() <= TOLERANCE * one.abs().max())
        for one, other in pairs
    )


def _examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Every op with arguments that reach the border of its tiles and of its grid.

    The guided ones have other code for rows of whole vectors, for 3x3 kernels next to each other, and, where there is
    enough to do for a GPU, for several channels in a thread: there are examples of all of them.
    """
    from . import (
        dcls_scatter,
        dcls_separable,
        dcls_sparse_conv2d,
        dynamic_conv2d,
        extrapolate_pad,
        guided_channelwise_conv2d,
        guided_local_conv2d,
        hybrid_activation,
        large_depthwise_conv2d,
        padding_free_conv,
    )

    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, kernel, bias, geometry = numbers(2, 3, 37, 34), numbers(6, 1, 9, 7), numbers(6), ([1, 2], [4, 4, 3, 2])
    y = large_depthwise_conv2d.forward(x, kernel, bias, *geometry)
    yield large_depthwise_conv2d.forward, (x, kernel, bias, *geometry)
    yield large_depthwise_conv2d.input_grad, (y, kernel, [3, 37, 34], *geometry)
    yield large_depthwise_conv2d.weight_grad, (y, x, [9, 7], *geometry)
    for z in (x, numbers(37, 34)):
        factors, powers = numbers(z.shape[1]), numbers(z.shape[1]).sigmoid() + 0.5
        yield hybrid_activation.forward, (z, factors, powers)
        yield hybrid_activation.backward, (z.flip(0), z, factors, powers)
    weight, P, SIG = numbers(6, 1, 5), 3 * numbers(2, 6, 1, 5), numbers(2, 6, 1, 5)
    grid = ([9, 7], [1, 0])
    yield dcls_scatter.forward, (weight, P, *grid, True, False)
    yield dcls_scatter.backward, (kernel, weight, P, [1, 0], True, False)
    for gaussian in (True, False):
        yield dcls_separable.forward, (weight, P, SIG, *grid, gaussian, 0.5)
        yield dcls_separable.backward, (kernel, weight, P, SIG, [1, 0], gaussian, 0.5)
    drawn = (*grid, True, False)
    yield dcls_sparse_conv2d.forward, (x, weight, P, *drawn, *geometry)
    yield dcls_sparse_conv2d.input_grad, (y, weight, P, [3, 37, 34], *drawn, *geometry)
    yield dcls_sparse_conv2d.kernel_grad, (y, x, weight, P, *drawn, *geometry)
    around = ([3, 2], [1, 2], [1, 0, 2, 1], [2, 1])
    kernels, more = numbers(2, 6, 6, 34, 18), numbers(2, 6)
    y = guided_channelwise_conv2d.forward(x, kernels, more, *around)
    yield guided_channelwise_conv2d.forward, (x, kernels, more, *around)
    yield guided_channelwise_conv2d.input_grad, (y, kernels, [3, 37, 34], *around)
    yield guided_channelwise_conv2d.weight_grad, (y, x, *around)
    x, kernels = numbers(2, 4, 37, 34), numbers(2, 2, 6, 6, 34, 18)
    yield guided_local_conv2d.forward, (x, kernels, more, *around, 2)
    yield guided_local_conv2d.input_grad, (y, kernels, [4, 37, 34], *around, 2)
    yield guided_local_conv2d.weight_grad, (y, x, *around, 2)
    around = ([3, 3], [1, 1], [1, 1, 1, 1], [1, 1])
    x, kernels, y = numbers(2, 4, 37, 36), numbers(2, 8, 9, 37, 36), numbers(2, 8, 37, 36)
    yield guided_channelwise_conv2d.forward, (x, kernels, None, *around)
    yield guided_channelwise_conv2d.input_grad, (y, kernels, [4, 37, 36], *around)
    yield guided_channelwise_conv2d.weight_grad, (y, x, *around)
    kernels = kernels.view(2, 2, 9, 4, 37, 36)
    yield guided_local_conv2d.forward, (x, kernels, None, *around, 2)
    yield guided_local_conv2d.input_grad, (y[:, :4], kernels, [4, 37, 36], *around, 2)
    yield guided_local_conv2d.weight_grad, (y[:, :4], x, *around, 2)
    dilated = ([2, 1], [1, 2, 0, 1], [1, 2], 2)
    x, kernels, shares = numbers(3, 10, 17, 15), numbers(3 * 70, 5, 3, 3), numbers(3, 3)
    y, more = dynamic_conv2d.forward(x, kernels, None, shares, *dilated), numbers(3, 70)
    yield dynamic_conv2d.forward, (x, kernels, more, shares, *dilated)
    yield dynamic_conv2d.input_grad, (y, kernels, shares, [10, 17, 15], *dilated)
    yield dynamic_conv2d.weight_grad, (y, x, kernels, shares, *dilated)
    sides = ([2, 1, 0, 3], [2, 3, 1, 4])
    for image in (numbers(2, 3, 37, 34), numbers(2, 8, 9, 7).to(memory_format=torch.channels_last)):
        yield extrapolate_pad.forward, (image, *sides)
        yield extrapolate_pad.backward, (extrapolate_pad.forward(image, *sides), *sides)
    sides = ([1, 2, 0, 1, 20, 1], [3, 1, 2, 0, 1, 2])
    x = numbers(2, 3, 5, 4, 6)
    padded = extrapolate_pad.forward(x, *sides)
    yield extrapolate_pad.forward, (x, *sides)
    yield extrapolate_pad.backward, (padded, *sides)
    yield extrapolate_pad.backward_in_place, (padded, *sides)
    x, kernel, bias = numbers(2, 6, 17, 15), numbers(4, 3, 3, 3), numbers(4)
    for keep in (True, False):
        bordered = ([2, 1], [1, 2, 2, 1], [1, 2], 2, [2, 1, 2, 3], keep)
        y = padding_free_conv.forward(x, kernel, bias, *bordered)
        yield padding_free_conv.forward, (x, kernel, bias, *bordered)
        yield padding_free_conv.input_grad, (y, kernel, [6, 17, 15], *bordered)
        yield padding_free_conv.weight_grad, (y, x, [3, 3], *bordered, True)
    some = numbers(65537)

    def many(*shape: int) -> Tensor:
        return some.expand(-(-math.prod(shape) // len(some)), -1).flatten()[: math.prod(shape)].view(shape)

    yield guided_local_conv2d.forward, (many(1, 1, 512, 1024), many(1, 1, 9, 2, 512, 1024), None, *around, 1)
    yield guided_local_conv2d.input_grad, (many(1, 1, 512, 512), many(1, 2, 9, 1, 512, 512), [2, 512, 512], *around, 1)
    row = ([1, 2], [1, 1], [0, 0, 1, 0], [1, 1])
    yield guided_local_conv2d.weight_grad, (many(1, 2, 512, 1024), many(1, 1, 512, 1024), *row, 1)
