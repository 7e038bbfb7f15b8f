"""Depthwise convolution with DCLS kernels that are never built, from their non-zero taps alone.

Kernels are drawn as triangles (see `scatter_ref`): of at most four taps for each element, whatever the grid's size.
Input (B, C, H, W), weight (O, 1, count) and P (2, O, 1, count), O being a multiple of C: output o reads input
``o // (O / C)``. Zeros around the input: top, bottom, left, right. Weight and P are in single precision, in double
with a double input; an input in half precision is computed with in single. Results that are images are channels_last
where the first argument is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._geometry import memory_format, output_size
from ..dcls_scatter import scatter_ref
from ._define import define
from .dcls_scatter import dcls_scatter_backward_ref
from .large_depthwise_conv2d import (
    large_depthwise_conv2d_input_grad_ref,
    large_depthwise_conv2d_ref,
    large_depthwise_conv2d_weight_grad_ref,
)


def dcls_sparse_depthwise_conv2d_ref(
    input: Tensor,
    weight: Tensor,
    P: Tensor,
    size: list[int],
    axes: list[int],
    normalise: bool,
    right_slope: bool,
    stride: list[int],
    padding: list[int],
) -> Tensor:
    """Build the kernel, then convolve: (B, O, *out)."""
    kernel = scatter_ref(weight, P, size, axes, normalise, right_slope)
    return large_depthwise_conv2d_ref(input.to(weight.dtype), kernel, None, stride, padding).to(input.dtype)


def dcls_sparse_depthwise_conv2d_input_grad_ref(
    grad: Tensor,
    weight: Tensor,
    P: Tensor,
    input_size: list[int],
    size: list[int],
    axes: list[int],
    normalise: bool,
    right_slope: bool,
    stride: list[int],
    padding: list[int],
) -> Tensor:
    """The gradient to the input, (B, *input_size), ``input_size`` being C, H, W."""
    kernel = scatter_ref(weight, P, size, axes, normalise, right_slope)
    precise = large_depthwise_conv2d_input_grad_ref(grad.to(weight.dtype), kernel, input_size, stride, padding)
    return precise.to(grad.dtype)


def dcls_sparse_depthwise_conv2d_kernel_grad_ref(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    P: Tensor,
    size: list[int],
    axes: list[int],
    normalise: bool,
    right_slope: bool,
    stride: list[int],
    padding: list[int],
) -> tuple[Tensor, Tensor]:
    """The gradients to weight and P."""
    grad, input = grad.to(weight.dtype), input.to(weight.dtype)
    to_kernel = large_depthwise_conv2d_weight_grad_ref(grad, input, size, stride, padding)
    return dcls_scatter_backward_ref(to_kernel, weight, P, axes, normalise, right_slope)


def _fake(input: Tensor, weight: Tensor, P: Tensor, size: list[int], *others: Any) -> Tensor:
    stride, (top, bottom, left, right) = others[-2:]
    out = output_size(input.shape[2:], ((top, bottom), (left, right)), size, stride)
    shape = (input.shape[0], weight.shape[0], *out)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _fake_input_grad(grad: Tensor, weight: Tensor, P: Tensor, input_size: list[int], *_: Any) -> Tensor:
    shape = (grad.shape[0], *input_size)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=memory_format(grad))


def _fake_kernel_grad(grad: Tensor, input: Tensor, weight: Tensor, P: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), P.new_empty(P.shape)


def _taps(weight: Any, size: Any) -> int:
    """Of a kernel, at most."""
    return min(4 * int(weight[2]), int(math.prod(size)))


def _flops(input: Any, weight: Any, P: Any, size: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * int(math.prod(out_shape)) * _taps(weight, size)


def _flops_input_grad(grad: Any, weight: Any, P: Any, input_size: Any, size: Any, *_: Any, **__: Any) -> int:
    return 2 * int(math.prod(grad)) * _taps(weight, size)


def _flops_kernel_grad(grad: Any, input: Any, weight: Any, P: Any, size: Any, *_: Any, **__: Any) -> int:
    return 2 * int(math.prod(grad)) * _taps(weight, size)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, P, *ctx.others = inputs
    ctx.save_for_backward(input, weight, P)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, P = ctx.saved_tensors
    to_input = input_grad(g, weight, P, list(input.shape[1:]), *ctx.others) if ctx.needs_input_grad[0] else None
    return (to_input, *_to_elements(ctx.needs_input_grad, g, input, weight, P, ctx.others), *(None,) * len(ctx.others))


def _setup_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, weight, P, _, *ctx.others = inputs
    ctx.save_for_backward(grad, weight, P)


def _backward_input_grad(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight, P = ctx.saved_tensors
    to_grad = forward(g, weight, P, *ctx.others) if ctx.needs_input_grad[0] else None
    to_elements = _to_elements(ctx.needs_input_grad, grad, g, weight, P, ctx.others)
    return (to_grad, *to_elements, None, *(None,) * len(ctx.others))


def _to_elements(
    wanted: tuple[bool, ...], grad: Tensor, input: Tensor, weight: Tensor, P: Tensor, others: list[Any]
) -> tuple[Tensor | None, Tensor | None]:
    if not (wanted[1] or wanted[2]):
        return None, None
    to_weight, to_P = kernel_grad(grad, input, weight, P, *others)
    return to_weight if wanted[1] else None, to_P if wanted[2] else None


_KERNEL = "int[] size, int[] axes, bool normalise, bool right_slope, int[] stride, SymInt[] padding"

forward = define(
    f"dcls_sparse_depthwise_conv2d(Tensor input, Tensor weight, Tensor P, {_KERNEL}) -> Tensor",
    dcls_sparse_depthwise_conv2d_ref,
    fake=_fake,
    flops=_flops,
    setup_context=_setup,
    backward=_backward,
)

input_grad = define(
    "dcls_sparse_depthwise_conv2d_input_grad"
    f"(Tensor grad, Tensor weight, Tensor P, SymInt[] input_size, {_KERNEL}) -> Tensor",
    dcls_sparse_depthwise_conv2d_input_grad_ref,
    fake=_fake_input_grad,
    flops=_flops_input_grad,
    setup_context=_setup_input_grad,
    backward=_backward_input_grad,
)

kernel_grad = define(
    "dcls_sparse_depthwise_conv2d_kernel_grad"
    f"(Tensor grad, Tensor input, Tensor weight, Tensor P, {_KERNEL}) -> (Tensor, Tensor)",
    dcls_sparse_depthwise_conv2d_kernel_grad_ref,
    fake=_fake_kernel_grad,
    flops=_flops_kernel_grad,
)
