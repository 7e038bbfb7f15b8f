"""What the convolutions with generated kernels share: sums over taps, and how their ops differentiate.

Such a convolution is linear in the input and linear in the kernels. So its two gradients are linear in both of their
arguments too, and three ops are each other's derivatives of every order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._geometry import effective_size, memory_format, output_size, windows
from ._define import define

GEOMETRY = "int[] kernel_size, int[] stride, SymInt[] padding, int[] dilation"


def precise(value: Tensor) -> Tensor:
    """In single precision at least, which half precision is summed in. Integers, which it would round, as they are."""
    return value.to(_sum_dtype(value.dtype))


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    integer = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    return dtype if integer else torch.promote_types(dtype, torch.float32)


def check_fit(
    name: str,
    shape: Sequence[int],
    leading: Sequence[int],
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """Check that ``shape`` is ``leading`` and then the number of outputs that an input of ``size`` (H, W) gives.

    Raises:
        RuntimeError: if it is not.
    """
    top, bottom, left, right = padding
    window = effective_size(kernel_size, dilation)
    wanted = (*leading, *output_size(size, ((top, bottom), (left, right)), window, stride))
    if tuple(shape) != wanted:
        raise RuntimeError(f"{name} must be {wanted} for an input of {tuple(size)} pixels, got {tuple(shape)}")


def padded(input: Tensor, padding: Sequence[int]) -> Tensor:
    """With zeros around the image: top, bottom, left, right."""
    top, bottom, left, right = padding
    return F.pad(input, (left, right, top, bottom)) if any(padding) else input


def scattered(
    parts: Callable[[int], Tensor],
    like: Tensor,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The sum of ``parts(tap)``, (B, C, Ho, Wo), each added to the pixels that the tap reads: (B, *input_size)."""
    top, bottom, left, right = padding
    channels, height, width = input_size
    size = like.shape[0], channels, height + top + bottom, width + left + right
    total = torch.zeros(size, dtype=_sum_dtype(like.dtype), device=like.device)
    for tap, window in enumerate(windows(total, like.shape[2:], kernel_size, stride, dilation)):
        window += parts(tap)
    inner = total.narrow(2, top, height).narrow(3, left, width).to(like.dtype)
    return inner.contiguous(memory_format=memory_format(like))


def fake_forward(input: Tensor, weight: Tensor, *_: Any) -> Tensor:
    """The result has the kernels' outputs and pixels: (B, Co, Ho, Wo)."""
    size = (input.shape[0], weight.shape[-4 if weight.dim() == 5 else -3], *weight.shape[-2:])
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def fake_input_grad(grad: Tensor, weight: Tensor, input_size: list[int], *_: Any) -> Tensor:
    """The result has ``input_size``: (B, C, H, W)."""
    size = (grad.shape[0], *input_size)
    return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=memory_format(grad))


def flops_forward(input: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Every generated number is multiplied and added once; so it is for the gradient to the input."""
    return int(2 * math.prod(weight))


def flops_weight_grad(*_: Any, out_shape: Any, **__: Any) -> int:
    """As many as forward."""
    return int(2 * math.prod(out_shape))


def define_guided(
    name: str,
    more: str,
    references: tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]],
    fake_weight_grad: Callable[..., Tensor],
) -> tuple[Any, Any, Any]:
    """Define ``name`` and its gradients to input and weight, each with the other two as its derivatives.

    Args:
        name: of the first op.
        more: arguments after those of ``GEOMETRY``, as they are in a schema, or nothing.
        references: the plain PyTorch forms of the three.
        fake_weight_grad: the fake of the last.
    """

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, *ctx.geometry = inputs
        ctx.save_for_backward(input, weight)

    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            input_grad(g, weight, list(input.shape[1:]), *ctx.geometry) if wanted[0] else None,
            weight_grad(g, input, *ctx.geometry) if wanted[1] else None,
            g.sum((2, 3)) if wanted[2] else None,
            *(None for _ in ctx.geometry),
        )

    def backward_input_grad(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        grad, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            forward(g, weight, None, *ctx.geometry) if wanted[0] else None,
            weight_grad(grad, g, *ctx.geometry) if wanted[1] else None,
            None,
            *(None for _ in ctx.geometry),
        )

    def setup_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, input, *ctx.geometry = inputs
        ctx.save_for_backward(grad, input)

    def backward_weight_grad(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        grad, input = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            forward(input, g, None, *ctx.geometry) if wanted[0] else None,
            input_grad(grad, g, list(input.shape[1:]), *ctx.geometry) if wanted[1] else None,
            *(None for _ in ctx.geometry),
        )

    forward = define(
        f"{name}(Tensor input, Tensor weight, Tensor? bias, {GEOMETRY}{more}) -> Tensor",
        references[0],
        fake=fake_forward,
        flops=flops_forward,
        setup_context=setup,
        backward=backward,
    )
    input_grad = define(
        f"{name}_input_grad(Tensor grad, Tensor weight, SymInt[] input_size, {GEOMETRY}{more}) -> Tensor",
        references[1],
        fake=fake_input_grad,
        flops=flops_forward,
        setup_context=setup,
        backward=backward_input_grad,
    )
    weight_grad = define(
        f"{name}_weight_grad(Tensor grad, Tensor input, {GEOMETRY}{more}) -> Tensor",
        references[2],
        fake=fake_weight_grad,
        flops=flops_weight_grad,
        setup_context=setup_weight_grad,
        backward=backward_weight_grad,
    )
    return forward, input_grad, weight_grad
