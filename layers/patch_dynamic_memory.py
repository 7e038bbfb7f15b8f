"""Training of predicted kernels with little memory: a few outputs at a time, and what is quickly found is not kept."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .patch_dynamic_chunks import CHUNK, Piece, Window, mean_product, patch_map, pieces, predicted
from .patch_dynamic_hidden import Maps, Statistics, first_units, second_kernel, second_map, second_units


class SavingMemory(torch.autograd.Function):
    """`predicted`, of which only what the second linear maps give is kept for backward.

    The other hidden units, and W3^T p, are computed again for a few outputs at a time. In backward passes that are
    differentiated themselves everything is computed again at once.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, statistics: Statistics, window: Window, groups: int, training: bool, *values: Tensor
    ) -> Tensor:
        maps = Maps(*values)
        ctx.window, ctx.groups, ctx.training = window, groups, training
        ctx.autocast = x.device.type, _autocast_dtype(x)
        kept, sums = [], []
        ctx.pieces = list(_pieces(x, maps, window, groups))
        for piece in ctx.pieces:
            own, own_statistics = piece.maps(maps), piece.statistics(statistics)
            seen = x[:, piece.channels]
            z = patch_map(seen, own.first_weight, own.first_bias, window, piece.groups)
            z = second_map(first_units(z, own, own_statistics, training), own)
            kept.append(z)
            h = second_units(z, own, own_statistics, training)
            sums.append(mean_product(h, seen, own, window, piece.groups))
        # In training those of the batch at hand are used, and the running ones will have changed by then.
        ctx.save_for_backward(x, *maps, *(() if training else statistics), *kept)
        return sums[0] if len(sums) == 1 else torch.cat(sums, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *rest = ctx.saved_tensors
        maps, rest = Maps(*rest[: len(Maps._fields)]), rest[len(Maps._fields) :]
        kept = rest[-len(ctx.pieces) :]
        statistics = Statistics(None, None, None, None) if ctx.training else Statistics(*rest[:4])
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[5:]]
        device, dtype = ctx.autocast
        with nullcontext() if dtype is None else torch.autocast(device, dtype):
            found = _again if torch.is_grad_enabled() else _by_pieces
            gradients = found(ctx, grad, x, maps, statistics, kept, wanted)
        return gradients[0], None, None, None, None, *gradients[1:]


def _again(
    ctx: Any, grad: Tensor, x: Tensor, maps: Maps, statistics: Statistics, kept: list[Tensor], wanted: list[bool]
) -> list[Tensor | None]:
    """The gradients to x and the maps, differentiable themselves."""
    arguments = [value.view_as(value) for value in (x, *maps)]
    y = predicted(arguments[0], Maps(*arguments[1:]), statistics, ctx.window, ctx.groups, ctx.training)
    return _gradients(y, grad, arguments, wanted, again=True)


def _by_pieces(
    ctx: Any, grad: Tensor, x: Tensor, maps: Maps, statistics: Statistics, kept: list[Tensor], wanted: list[bool]
) -> list[Tensor | None]:
    """The gradients to x and the maps."""
    gradients = [torch.zeros_like(value) if want else None for value, want in zip((x, *maps), wanted, strict=True)]
    for piece, z in zip(ctx.pieces, kept, strict=True):
        found = _of_piece(ctx, piece, grad[:, piece.outputs], x, maps, statistics, z, wanted)
        for index, value in enumerate(found):
            total = gradients[index]
            if value is not None and total is not None:
                if index == 0:
                    total[:, piece.channels] += value
                else:
                    total[piece.outputs] = value
    return list(gradients)


def _of_piece(
    ctx: Any,
    piece: Piece,
    grad: Tensor,
    x: Tensor,
    maps: Maps,
    statistics: Statistics,
    z: Tensor,
    wanted: list[bool],
) -> list[Tensor | None]:
    """The gradients to the channels of x and the maps that belong to a piece."""
    given = (x[:, piece.channels], *piece.maps(maps))
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_(want) for value, want in zip(given, wanted, strict=True)]
        z = z.detach().requires_grad_()
        seen, own, own_statistics = leaves[0], Maps(*leaves[1:]), piece.statistics(statistics)
        h = second_units(z, own, own_statistics, ctx.training)
        y = mean_product(h, seen, own, ctx.window, piece.groups)
        del h
        after = _gradients(y, grad, [z, *leaves], [True, *wanted])
        del y
        z_grad = after[0]
        assert z_grad is not None
        before = patch_map(seen, own.first_weight, own.first_bias, ctx.window, piece.groups)
        units = first_units(before, own, own_statistics, ctx.training)
        del before
    # What a convolution with the second maps has as its derivatives, without running it again.
    kernel = second_kernel(units, own).detach().to(units.dtype)
    axes = units.dim() - 2
    none, one = [0] * axes, [1] * axes
    units_grad, kernel_grad, bias_grad = torch.ops.aten.convolution_backward(
        z_grad,
        units.detach(),
        kernel,
        [kernel.shape[0]],
        one,
        none,
        one,
        False,
        none,
        len(own.second_weight),
        [True] * 3,
    )
    del z, z_grad
    first = _gradients(units, units_grad, leaves, wanted)
    total = [_sum(one, other) for one, other in zip(after[1:], first, strict=True)]
    for name, value in (("second_weight", kernel_grad), ("second_bias", bias_grad)):
        index = 1 + Maps._fields.index(name)
        if wanted[index]:
            total[index] = value.view_as(leaves[index]).to(leaves[index].dtype)
    return total


def _gradients(
    y: Tensor, grad: Tensor, arguments: list[Tensor], wanted: list[bool], again: bool = False
) -> list[Tensor | None]:
    """The gradients to the arguments that want one and that y depends on."""
    chosen = [i for i, want in enumerate(wanted) if want]
    found: list[Tensor | None] = [None] * len(arguments)
    if chosen and y.requires_grad:
        inputs = [arguments[i] for i in chosen]
        gradients = torch.autograd.grad(y, inputs, grad, create_graph=again, allow_unused=True)
        for i, value in zip(chosen, gradients, strict=True):
            found[i] = value
    return found


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _pieces(x: Tensor, maps: Maps, window: Window, groups: int) -> Any:
    outputs, hidden = maps.last_weight.shape[:2]
    height, width = (
        (size + sum(around) - step * (kernel - 1) - 1) // stride + 1
        for size, around, step, kernel, stride in zip(
            x.shape[2:], window.widths, window.dilation, window.kernel_size, window.stride, strict=True
        )
    )
    most = sys.maxsize if x.is_meta else CHUNK  # where nothing takes memory, all at once takes the least time
    return pieces(outputs, groups, x.shape[1] // groups, hidden * x.shape[0] * height * width, most)


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast casts to on the device of x; None if it is off."""
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
