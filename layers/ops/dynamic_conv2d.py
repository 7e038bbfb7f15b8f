"""Convolution of each sample with its own weighted sum of K kernels, mixed block by block while it is multiplied with.

Three multilinear ops that are each other's derivatives, so that derivatives of every order run on the same kernels.
With ``C_b`` the gradient to the kernel of sample b, the gradient to the kernels is ``sum_b a_bk C_b`` and the one to
the attention ``<W_k, C_b>``: the derivatives of both are convolutions with 2 K kernels. Neither a sample's kernel nor
``C_b`` is held whole by the compiled kernels; the plain forms hold one at a time. Results that are images are
channels_last where the first argument is, else contiguous; the gradient to the weight has the weight's format.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from .._geometry import effective_size, memory_format, output_size
from ._define import define
from ._guided import padded, precise

GEOMETRY = "int[] stride, SymInt[] padding, int[] dilation, int groups"


def dynamic_conv2d_ref(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    attention: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """``y_b = (sum_k attention_bk W_k) * x_b + bias_b``, with zeros around the input: top, bottom, left, right.

    Input (B, C, H, W), weight (K * O, C / groups, kh, kw) with kernel k at rows ``[k * O : (k + 1) * O]``, attention
    (B, K), bias (B, O): to (B, O, Ho, Wo).

    Raises:
        RuntimeError: if the attention is for other samples, or for a number of kernels that the weight does not have.
    """
    _check(input.shape[0], weight, attention)
    image = padded(input, padding)
    samples = []
    for b, kernel in enumerate(_mixed(weight, attention)):
        own_bias = None if bias is None else bias[b]
        samples.append(F.conv2d(image[b : b + 1], kernel.to(input.dtype), own_bias, stride, 0, dilation, groups))
    y = torch.cat(samples) if samples else _fake(input, weight, bias, attention, stride, padding, dilation, groups)
    return y.contiguous(memory_format=memory_format(input))


def dynamic_conv2d_input_grad_ref(
    grad: Tensor,
    weight: Tensor,
    attention: Tensor,
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """The gradient to the input, (B, *input_size), ``input_size`` being C, H, W."""
    _check(grad.shape[0], weight, attention)
    top, bottom, left, right = padding
    channels, height, width = input_size
    size = [1, channels, height + top + bottom, width + left + right]
    own = precise(grad)
    samples = []
    for b, kernel in enumerate(_mixed(weight, attention)):
        image: Tensor = conv2d_input(size, kernel, own[b : b + 1], stride, 0, dilation, groups)
        samples.append(image.narrow(2, top, height).narrow(3, left, width).to(grad.dtype))
    found = torch.cat(samples) if samples else grad.new_empty(0, *input_size)
    return found.contiguous(memory_format=memory_format(grad))


def dynamic_conv2d_weight_grad_ref(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    attention: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """The gradients to the weight (K * O, C / groups, kh, kw) and to the attention (B, K)."""
    _check(grad.shape[0], weight, attention)
    image, own, shares = precise(padded(input, padding)), precise(grad), precise(attention)
    kernels = precise(weight).unflatten(0, (attention.shape[1], -1))
    size = kernels.shape[1:]
    to_weight, to_attention = torch.zeros_like(kernels), [shares[:0]]
    for b in range(grad.shape[0]):
        found = conv2d_weight(image[b : b + 1], size, own[b : b + 1], stride, 0, dilation, groups)
        to_weight = to_weight + shares[b, :, None, None, None, None] * found
        to_attention.append((kernels * found).sum((1, 2, 3, 4))[None])
    stacked = to_weight.flatten(0, 1).to(weight.dtype).contiguous(memory_format=memory_format(weight))
    return stacked, torch.cat(to_attention).to(attention.dtype)


def _mixed(weight: Tensor, attention: Tensor) -> Iterator[Tensor]:
    """The kernel of each sample, one after the other, in single precision at least."""
    kernels = precise(weight).unflatten(0, (attention.shape[1], -1))
    return (torch.tensordot(shares, kernels, 1) for shares in precise(attention).unbind())


def _check(batch: int, weight: Tensor, attention: Tensor) -> None:
    if attention.dim() != 2 or attention.shape[0] != batch or attention.shape[1] < 1:
        raise RuntimeError(f"attention must be (batch {batch}, kernels), got {tuple(attention.shape)}")
    if weight.shape[0] % attention.shape[1]:
        raise RuntimeError(
            f"weight must have a row for each output of {attention.shape[1]} kernels, got {tuple(weight.shape)}"
        )


def _fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    attention: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    top, bottom, left, right = padding
    window = effective_size(weight.shape[2:], dilation)
    pixels = output_size(input.shape[2:], ((top, bottom), (left, right)), window, stride)
    size = (input.shape[0], weight.shape[0] // attention.shape[1], *pixels)
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _fake_input_grad(grad: Tensor, weight: Tensor, attention: Tensor, input_size: list[int], *_: Any) -> Tensor:
    size = (grad.shape[0], *input_size)
    return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=memory_format(grad))


def _fake_weight_grad(grad: Tensor, input: Tensor, weight: Tensor, attention: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    kernels = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device, memory_format=memory_format(weight))
    return kernels, attention.new_empty(attention.shape)


def _convolving(image: Sequence[int], weight: Sequence[int]) -> int:
    """Operations for as many outputs as ``image`` has, without those for mixing."""
    return 2 * math.prod(image) * math.prod(weight[1:])


def _mixing(weight: Sequence[int], attention: Sequence[int]) -> int:
    return 2 * attention[0] * math.prod(weight)


def _flops(input: Any, weight: Any, bias: Any, attention: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return _convolving(out_shape, weight) + _mixing(weight, attention)


def _flops_input_grad(grad: Any, weight: Any, attention: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return _convolving(grad, weight) + _mixing(weight, attention)


def _flops_weight_grad(grad: Any, input: Any, weight: Any, attention: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Each sample's gradient is added to those of all kernels, and multiplied with all kernels."""
    return _convolving(grad, weight) + 2 * _mixing(weight, attention)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _, attention, *ctx.geometry = inputs
    ctx.save_for_backward(input, weight, attention)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, attention = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    to_input = input_grad(g, weight, attention, list(input.shape[1:]), *ctx.geometry) if wanted[0] else None
    to_weight, to_attention = _weight_grad_if(wanted[1], wanted[3], g, input, weight, attention, ctx.geometry)
    return to_input, to_weight, g.sum((2, 3)) if wanted[2] else None, to_attention, *(None for _ in ctx.geometry)


def _setup_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, weight, attention, _, *ctx.geometry = inputs
    ctx.save_for_backward(grad, weight, attention)


def _backward_input_grad(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight, attention = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    to_grad = forward(g, weight, None, attention, *ctx.geometry) if wanted[0] else None
    to_weight, to_attention = _weight_grad_if(wanted[1], wanted[2], grad, g, weight, attention, ctx.geometry)
    return to_grad, to_weight, to_attention, None, *(None for _ in ctx.geometry)


def _setup_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, input, weight, attention, *ctx.geometry = inputs
    ctx.save_for_backward(grad, input, weight, attention)


def _backward_weight_grad(ctx: Any, g_weight: Tensor | None, g_attention: Tensor | None) -> tuple[Tensor | None, ...]:
    """Of ``sum_b <C_b, sum_k (a_bk g_weight_k + g_attention_bk W_k)>``, which is linear in each tensor."""
    grad, input, weight, attention = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    along = torch.zeros_like(weight) if g_weight is None else g_weight
    shares = torch.zeros_like(attention) if g_attention is None else g_attention
    both, all_shares = torch.cat((along, weight)), torch.cat((attention, shares), 1)
    to_grad = forward(input, both, None, all_shares, *ctx.geometry) if wanted[0] else None
    size = list(input.shape[1:])
    to_input = input_grad(grad, both, all_shares, size, *ctx.geometry) if wanted[1] else None
    to_weight, to_attention = _weight_grad_if(wanted[2], wanted[3], grad, input, along, shares, ctx.geometry)
    return to_grad, to_input, to_weight, to_attention, *(None for _ in ctx.geometry)


def _weight_grad_if(
    weight_wanted: bool,
    attention_wanted: bool,
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    attention: Tensor,
    geometry: Sequence[Any],
) -> tuple[Tensor | None, Tensor | None]:
    if not (weight_wanted or attention_wanted):
        return None, None
    to_weight, to_attention = weight_grad(grad, input, weight, attention, *geometry)
    return to_weight if weight_wanted else None, to_attention if attention_wanted else None


forward = define(
    f"dynamic_conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor attention, {GEOMETRY}) -> Tensor",
    dynamic_conv2d_ref,
    fake=_fake,
    flops=_flops,
    setup_context=_setup,
    backward=_backward,
)

input_grad = define(
    "dynamic_conv2d_input_grad"
    f"(Tensor grad, Tensor weight, Tensor attention, SymInt[] input_size, {GEOMETRY}) -> Tensor",
    dynamic_conv2d_input_grad_ref,
    fake=_fake_input_grad,
    flops=_flops_input_grad,
    setup_context=_setup_input_grad,
    backward=_backward_input_grad,
)

weight_grad = define(
    "dynamic_conv2d_weight_grad"
    f"(Tensor grad, Tensor input, Tensor weight, Tensor attention, {GEOMETRY}) -> (Tensor, Tensor)",
    dynamic_conv2d_weight_grad_ref,
    fake=_fake_weight_grad,
    flops=_flops_weight_grad,
    setup_context=_setup_weight_grad,
    backward=_backward_weight_grad,
)
