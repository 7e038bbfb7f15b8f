"""A generated kernel for each sample and pixel, across channels: one pass over the kernels, without unfolding.

Three trilinear ops that are each other's derivatives. Results that are images are channels_last where the first
argument is, else contiguous; generated kernels are always contiguous.
"""

from __future__ import annotations

import math

from torch import Tensor

from .._geometry import memory_format, windows
from ._guided import check_fit, define_guided, padded, precise, scattered


def guided_local_conv2d_ref(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Input (B, C, H, W), weight (B, C/g, taps, Co, Ho, Wo), bias (B, Co), zeros around: top, bottom, left, right.

    Raises:
        RuntimeError: if there are kernels for other samples, taps or pixels than the input has.
    """
    geometry = kernel_size, stride, padding, dilation
    leading = input.shape[0], input.shape[1] // groups, math.prod(kernel_size), weight.shape[3]
    check_fit("weight", weight.shape, leading, input.shape[2:], *geometry)
    inputs, outputs = weight.shape[1], weight.shape[3] // groups
    y: Tensor | None = None
    pixels = windows(padded(input, padding), weight.shape[4:], kernel_size, stride, dilation)
    for tap, window in enumerate(pixels):
        own = precise(weight[:, :, tap]).unflatten(2, (groups, outputs))
        seen = precise(window).unflatten(1, (groups, inputs)).transpose(1, 2)
        part = (own * seen.unsqueeze(3)).sum(1)
        y = part if y is None else y + part
    assert y is not None
    y = y.flatten(1, 2)
    if bias is not None:
        y = y + precise(bias)[:, :, None, None]
    return y.to(input.dtype).contiguous(memory_format=memory_format(input))


def guided_local_conv2d_input_grad_ref(
    grad: Tensor,
    weight: Tensor,
    input_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """The gradient to the input, (B, *input_size), ``input_size`` being C, H, W."""
    geometry = kernel_size, stride, padding, dilation
    check_fit("grad", grad.shape, grad.shape[:2], input_size[1:], *geometry)
    leading = grad.shape[0], input_size[0] // groups, math.prod(kernel_size), grad.shape[1]
    check_fit("weight", weight.shape, leading, input_size[1:], *geometry)
    outputs = grad.shape[1] // groups
    own = precise(grad).unflatten(1, (groups, outputs)).unsqueeze(1)

    def part(tap: int) -> Tensor:
        kernels = precise(weight[:, :, tap]).unflatten(2, (groups, outputs))
        summed: Tensor = (kernels * own).sum(3)
        return summed.transpose(1, 2).flatten(1, 2)

    return scattered(part, grad, input_size, *geometry)


def guided_local_conv2d_weight_grad_ref(
    grad: Tensor,
    input: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """The gradient to the weight, (B, C/g, taps, Co, Ho, Wo)."""
    leading = input.shape[0], grad.shape[1]
    check_fit("grad", grad.shape, leading, input.shape[2:], kernel_size, stride, padding, dilation)
    inputs, outputs = input.shape[1] // groups, grad.shape[1] // groups
    gradient = _fake_weight_grad(grad, input, kernel_size, stride, padding, dilation, groups)
    own = grad.unflatten(1, (groups, outputs)).unsqueeze(1)
    pixels = windows(padded(input, padding), grad.shape[2:], kernel_size, stride, dilation)
    for tap, window in enumerate(pixels):
        seen = window.unflatten(1, (groups, inputs)).transpose(1, 2)
        gradient[:, :, tap] = (own * seen.unsqueeze(3)).flatten(2, 3)
    return gradient


def _fake_weight_grad(
    grad: Tensor,
    input: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    batch, outputs, height, width = grad.shape
    return grad.new_empty(batch, input.shape[1] // groups, math.prod(kernel_size), outputs, height, width)


forward, input_grad, weight_grad = define_guided(
    "guided_local_conv2d",
    ", int groups",
    (guided_local_conv2d_ref, guided_local_conv2d_input_grad_ref, guided_local_conv2d_weight_grad_ref),
    _fake_weight_grad,
)
