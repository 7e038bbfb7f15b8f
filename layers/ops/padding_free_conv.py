"""Convolution of an image that is extended by polynomials, of which only image and kernel are kept for backward.

The op and its two gradients are bilinear and each other's derivatives. The extended image is made where it is needed,
and never kept; that is what the ops are for. What they compute with are the kernels of `extrapolate_pad` and the
convolutions of torch, or those of `large_depthwise_conv2d` where they are faster.

With ``keep_img_grad`` false, outputs at the border pass no gradient to the image: its derivative, and all further ones
through it, are those of the interior outputs alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._geometry import effective_size, memory_format, output_size, split_outputs
from ..large_depthwise import MAX_STRIDE, large_depthwise_pays
from . import extrapolate_pad, large_depthwise_conv2d
from ._define import define


def padding_free_conv_ref(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    order: list[int],
    keep_img_grad: bool,
) -> Tensor:
    """Input (B, C, *size), weight (O, C / groups, *kernel); padding and order before and after each axis."""
    padded = extrapolate_pad.forward(input, padding, order)
    if _as_large_depthwise(padded, weight, stride, dilation, groups, False):
        y = large_depthwise_conv2d.forward(padded, weight, bias, stride, [0] * 4)
    else:
        y = torch.convolution(padded, weight, bias, stride, [0], dilation, False, [0], groups)
    result: Tensor = y.contiguous(memory_format=_format(input, weight))
    return result


def padding_free_conv_input_grad_ref(
    grad: Tensor,
    weight: Tensor,
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    order: list[int],
    keep_img_grad: bool,
) -> Tensor:
    """The gradient to the input, (B, *input_size), ``input_size`` being C and the sizes of the axes."""
    format = _format(grad, weight)
    if not keep_img_grad:
        interior = _Interior(input_size[1:], weight.shape[2:], stride, padding, dilation)
        if interior.is_empty:
            return grad.new_zeros(grad.shape[0], *input_size).contiguous(memory_format=format)
        inner = _transposed(interior.outputs(grad), weight, interior.pixels_read, stride, dilation, groups)
        return F.pad(inner, interior.other_pixels).contiguous(memory_format=format)
    padded_size = [size + before + after for size, (before, after) in zip(input_size[1:], _pairs(padding), strict=True)]
    padded = _transposed(grad, weight, padded_size, stride, dilation, groups).contiguous(memory_format=format)
    return extrapolate_pad.folded(padded, padding, order)


def padding_free_conv_weight_grad_ref(
    grad: Tensor,
    input: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    order: list[int],
    keep_img_grad: bool,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients to the weight, (O, C / groups, *kernel_size), and to the bias, (O), or (0) where there is none."""
    padded = extrapolate_pad.forward(input, padding, order)
    return _weight_grad(grad, padded, kernel_size, stride, dilation, groups, bias)


def _transposed(
    grad: Tensor, weight: Tensor, size: Sequence[int], stride: list[int], dilation: list[int], groups: int
) -> Tensor:
    """The gradient to an image of this size that is convolved without padding."""
    shape = (grad.shape[0], groups * weight.shape[1], *size)
    if groups == 1 and max(dilation) == 1:
        rest = [
            n - (out - 1) * step - k
            for n, out, step, k in zip(size, grad.shape[2:], stride, weight.shape[2:], strict=True)
        ]
        return torch.convolution(grad, weight, None, stride, [0], dilation, True, rest, groups)
    # The way that knows more special cases. The image is not read: on the CPU it takes no memory either.
    image = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=_format(grad, weight))
    if _as_large_depthwise(image, weight, stride, dilation, groups, True):
        own: Tensor = large_depthwise_conv2d.input_grad(grad, weight, list(shape[1:]), stride, [0] * 4)
        return own
    nothing, mask = [0] * len(size), [True, False, False]
    gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        grad, image, weight, None, stride, nothing, dilation, False, nothing, groups, mask
    )
    return gradients[0]


def _weight_grad(
    grad: Tensor,
    image: Tensor,
    kernel_size: Sequence[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients to a kernel that an image is convolved with without padding, and to a bias."""
    weight = grad.new_empty(grad.shape[1], image.shape[1] // groups, *kernel_size)
    if _as_large_depthwise(image, weight, stride, dilation, groups, True):
        to_weight = large_depthwise_conv2d.weight_grad(grad, image, list(kernel_size), stride, [0] * 4)
        return to_weight, grad.sum((0, 2, 3)) if bias else grad.new_empty(0)
    nothing, mask = [0] * len(kernel_size), [False, True, bias]
    _, to_weight, to_bias = torch.ops.aten.convolution_backward(
        grad, image, weight, grad.shape[1:2], stride, nothing, dilation, False, nothing, groups, mask
    )
    return to_weight.contiguous(), to_bias if bias else grad.new_empty(0)


def _as_large_depthwise(
    image: Tensor, weight: Tensor, stride: list[int], dilation: list[int], groups: int, training: bool
) -> bool:
    return (
        image.dim() == 4
        and weight.shape[1] == 1
        and image.shape[1] == groups
        and max(dilation) == 1
        and max(stride) <= MAX_STRIDE
        and image.numel() > 0
        and large_depthwise_pays(image, weight, training)
    )


class _Interior:
    """The outputs whose windows, first tap to last, lie in the image, and the pixels that these read."""

    def __init__(
        self, size: Sequence[int], kernel: Sequence[int], stride: list[int], padding: list[int], dilation: list[int]
    ) -> None:
        spans = effective_size(kernel, dilation)
        outs = output_size(size, _pairs(padding), spans, stride)
        self.first: list[int] = []  # output of each axis
        self.count: list[int] = []
        self.pixels_read: list[int] = []
        self.other_pixels: list[int] = []  # after and before, last axis first, as `F.pad` has it
        self.other_outputs: list[int] = []
        self.begin: list[int] = []  # pixel
        for n, span, step, width, out in zip(size, spans, stride, _pairs(padding), outs, strict=True):
            first, count, behind = split_outputs(n, width, span, step, out)
            begin, read = first * step - width[0], (count - 1) * step + span
            self.first.append(first)
            self.count.append(count)
            self.begin.append(begin)
            self.pixels_read.append(read)
            self.other_pixels[:0] = [begin, n - begin - read]
            self.other_outputs[:0] = [first, behind]
        self.is_empty = min(self.count) == 0

    def outputs(self, value: Tensor) -> Tensor:
        return _narrowed(value, self.first, self.count)

    def pixels(self, image: Tensor) -> Tensor:
        return _narrowed(image, self.begin, self.pixels_read)


def _narrowed(value: Tensor, first: list[int], count: list[int]) -> Tensor:
    for axis, (begin, length) in enumerate(zip(first, count, strict=True), 2):
        value = value.narrow(axis, begin, length)
    return value


def _pairs(sides: list[int]) -> list[tuple[int, int]]:
    return list(zip(sides[::2], sides[1::2], strict=True))


def _format(image: Tensor, weight: Tensor) -> torch.memory_format:
    """As torch's convolutions have it: channels_last where the image or the kernel is."""
    format = memory_format(image)
    return memory_format(weight) if format == torch.contiguous_format else format


def _fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    order: list[int],
    keep_img_grad: bool,
) -> Tensor:
    spans = effective_size(weight.shape[2:], dilation)
    size = (input.shape[0], weight.shape[0], *output_size(input.shape[2:], _pairs(padding), spans, stride))
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=_format(input, weight))


def _fake_input_grad(grad: Tensor, weight: Tensor, input_size: list[int], *_: Any) -> Tensor:
    size = (grad.shape[0], *input_size)
    return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=_format(grad, weight))


def _fake_weight_grad(
    grad: Tensor,
    input: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    order: list[int],
    keep_img_grad: bool,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    to_weight = grad.new_empty(grad.shape[1], input.shape[1] // groups, *kernel_size)
    return to_weight, grad.new_empty(grad.shape[1] if bias else 0)


def _flops(input: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return int(2 * math.prod(out_shape) * math.prod(weight[1:]))


def _flops_input_grad(grad: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return int(2 * math.prod(grad) * math.prod(weight[1:]))


def _flops_weight_grad(grad: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return int(2 * math.prod(grad) * math.prod(out_shape[0][1:]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _, *ctx.geometry = inputs
    ctx.save_for_backward(input, weight)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    # The kernel's gradient first: the extended image is gone before the gradient to it is made.
    to_input = to_weight = to_bias = None
    if wanted[1]:
        to_weight, with_it = weight_grad(g, input, list(weight.shape[2:]), *ctx.geometry, wanted[2])
        to_bias = with_it if wanted[2] else None
    elif wanted[2]:
        to_bias = g.sum((0, *range(2, g.dim())))
    if wanted[0]:
        to_input = input_grad(g, weight, list(input.shape[1:]), *ctx.geometry)
    return to_input, to_weight, to_bias, *(None,) * 6


def _setup_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, weight, ctx.input_size, *ctx.geometry = inputs
    ctx.save_for_backward(grad, weight)


def _backward_input_grad(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight = ctx.saved_tensors
    wanted, kernel_size = ctx.needs_input_grad, list(weight.shape[2:])
    stride, padding, dilation, groups, _, keep_img_grad = ctx.geometry
    to_grad = to_weight = None
    if keep_img_grad:
        to_weight = weight_grad(grad, g, kernel_size, *ctx.geometry, False)[0] if wanted[1] else None
        to_grad = forward(g, weight, None, *ctx.geometry) if wanted[0] else None
        return to_grad, to_weight, *(None,) * 7
    interior = _Interior(ctx.input_size[1:], kernel_size, stride, padding, dilation)
    if not interior.is_empty:
        read = interior.pixels(g)
        if wanted[1]:
            to_weight, _ = _weight_grad(interior.outputs(grad), read, kernel_size, stride, dilation, groups, False)
        if wanted[0]:
            inner = torch.convolution(read, weight, None, stride, [0], dilation, False, [0], groups)
            to_grad = F.pad(inner, interior.other_outputs)
    return to_grad, to_weight, *(None,) * 7


def _setup_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, input, _, *ctx.geometry, ctx.bias = inputs
    ctx.save_for_backward(grad, input)


def _backward_weight_grad(ctx: Any, g: Tensor, of_bias: Tensor) -> tuple[Tensor | None, ...]:
    grad, input = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    to_input = input_grad(grad, g, list(input.shape[1:]), *ctx.geometry) if wanted[1] else None
    to_grad = forward(input, g, of_bias if ctx.bias else None, *ctx.geometry) if wanted[0] else None
    return to_grad, to_input, *(None,) * 8


_GEOMETRY = "int[] stride, SymInt[] padding, int[] dilation, int groups, int[] order, bool keep_img_grad"

forward = define(
    f"padding_free_conv(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor",
    padding_free_conv_ref,
    fake=_fake,
    flops=_flops,
    setup_context=_setup,
    backward=_backward,
)

input_grad = define(
    f"padding_free_conv_input_grad(Tensor grad, Tensor weight, SymInt[] input_size, {_GEOMETRY}) -> Tensor",
    padding_free_conv_input_grad_ref,
    fake=_fake_input_grad,
    flops=_flops_input_grad,
    setup_context=_setup_input_grad,
    backward=_backward_input_grad,
)

weight_grad = define(
    "padding_free_conv_weight_grad"
    f"(Tensor grad, Tensor input, int[] kernel_size, {_GEOMETRY}, bool bias) -> (Tensor, Tensor)",
    padding_free_conv_weight_grad_ref,
    fake=_fake_weight_grad,
    flops=_flops_weight_grad,
    setup_context=_setup_weight_grad,
    backward=_backward_weight_grad,
)
