"""Depthwise convolution with large kernels, where PyTorch's own is far from what the multiply-adds need.

Three bilinear ops that are each other's derivatives, so that derivatives of every order run on the same kernels.
Results that are images are channels_last where the first argument is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from .._geometry import memory_format, output_size
from ._define import define


def large_depthwise_conv2d_ref(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]
) -> Tensor:
    """Input (B, C, H, W), weight (m C, 1, kh, kw), zeros around the input: top, bottom, left, right."""
    top, bottom, left, right = padding
    padded, amounts = input, (top, left)
    if (top, left) != (bottom, right):
        padded, amounts = F.pad(input, (left, right, top, bottom)), (0, 0)
    y = F.conv2d(padded, weight, bias, stride, amounts, 1, input.shape[1])
    return y.contiguous(memory_format=memory_format(input))


def large_depthwise_conv2d_input_grad_ref(
    grad: Tensor, weight: Tensor, input_size: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """The gradient to the input, (B, *input_size), ``input_size`` being C, H, W."""
    top, bottom, left, right = padding
    channels, height, width = input_size
    size = [grad.shape[0], channels, height + top + bottom, width + left + right]
    padded: Tensor = conv2d_input(size, _precise(weight), _precise(grad), stride, 0, 1, channels)
    inner = padded.narrow(2, top, height).narrow(3, left, width).to(grad.dtype)
    return inner.contiguous(memory_format=memory_format(grad))


def large_depthwise_conv2d_weight_grad_ref(
    grad: Tensor, input: Tensor, kernel_size: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """The gradient to the weight, (m C, 1, *kernel_size)."""
    top, bottom, left, right = padding
    size = [grad.shape[1], 1, *kernel_size]
    padded = F.pad(input, (left, right, top, bottom))
    gradient: Tensor = conv2d_weight(_precise(padded), size, _precise(grad), stride, 0, 1, input.shape[1])
    return gradient.contiguous().to(grad.dtype)


def _precise(value: Tensor) -> Tensor:
    """In single precision at least: in half, torch's backward passes round what they add up."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _output_size(size: Any, kernel: Any, stride: list[int], padding: list[int]) -> tuple[int, ...]:
    top, bottom, left, right = padding
    return output_size(size, ((top, bottom), (left, right)), kernel, stride)


def _fake(input: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    size = (input.shape[0], weight.shape[0], *_output_size(input.shape[2:], weight.shape[2:], stride, padding))
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _fake_input_grad(
    grad: Tensor, weight: Tensor, input_size: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    size = (grad.shape[0], *input_size)
    return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=memory_format(grad))


def _fake_weight_grad(
    grad: Tensor, input: Tensor, kernel_size: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    return grad.new_empty(grad.shape[1], 1, *kernel_size)


def _flops(input: Any, weight: Any, bias: Any, stride: Any, padding: Any, *, out_shape: Any, **_: Any) -> int:
    return int(2 * math.prod(out_shape) * math.prod(weight[2:]))


def _flops_input_grad(grad: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return int(2 * math.prod(grad) * math.prod(weight[2:]))


def _flops_weight_grad(grad: Any, input: Any, kernel_size: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return int(2 * math.prod(grad) * math.prod(kernel_size))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(input, weight)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    geometry = ctx.stride, ctx.padding
    return (
        input_grad(g, weight, list(input.shape[1:]), *geometry) if wanted[0] else None,
        weight_grad(g, input, list(weight.shape[2:]), *geometry) if wanted[1] else None,
        g.sum((0, 2, 3)) if wanted[2] else None,
        None,
        None,
    )


def _setup_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, weight, _, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(grad, weight)


def _backward_input_grad(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return (
        forward(g, weight, None, ctx.stride, ctx.padding) if wanted[0] else None,
        weight_grad(grad, g, list(weight.shape[2:]), ctx.stride, ctx.padding) if wanted[1] else None,
        None,
        None,
        None,
    )


def _setup_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, input, _, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(grad, input)


def _backward_weight_grad(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    grad, input = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return (
        forward(input, g, None, ctx.stride, ctx.padding) if wanted[0] else None,
        input_grad(grad, g, list(input.shape[1:]), ctx.stride, ctx.padding) if wanted[1] else None,
        None,
        None,
        None,
    )


forward = define(
    "large_depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias, int[] stride, SymInt[] padding) -> Tensor",
    large_depthwise_conv2d_ref,
    fake=_fake,
    flops=_flops,
    setup_context=_setup,
    backward=_backward,
)

input_grad = define(
    "large_depthwise_conv2d_input_grad"
    "(Tensor grad, Tensor weight, SymInt[] input_size, int[] stride, SymInt[] padding) -> Tensor",
    large_depthwise_conv2d_input_grad_ref,
    fake=_fake_input_grad,
    flops=_flops_input_grad,
    setup_context=_setup_input_grad,
    backward=_backward_input_grad,
)

weight_grad = define(
    "large_depthwise_conv2d_weight_grad"
    "(Tensor grad, Tensor input, int[] kernel_size, int[] stride, SymInt[] padding) -> Tensor",
    large_depthwise_conv2d_weight_grad_ref,
    fake=_fake_weight_grad,
    flops=_flops_weight_grad,
    setup_context=_setup_weight_grad,
    backward=_backward_weight_grad,
)
