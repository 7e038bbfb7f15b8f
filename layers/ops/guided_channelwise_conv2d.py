"""A generated kernel for each sample, pixel and channel: one pass over the kernels, where unfolding takes nine.

Three trilinear ops that are each other's derivatives. Results that are images are channels_last where the first
argument is, else contiguous; generated kernels are always contiguous.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._geometry import memory_format, windows
from ._guided import check_fit, define_guided, padded, precise, scattered


def guided_channelwise_conv2d_ref(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """Input (B, C, H, W), weight (B, m C, taps, Ho, Wo), bias (B, m C), zeros around: top, bottom, left, right.

    Raises:
        RuntimeError: if there are kernels for other samples, taps or pixels than the input has.
    """
    geometry = kernel_size, stride, padding, dilation
    leading = input.shape[0], weight.shape[1], math.prod(kernel_size)
    check_fit("weight", weight.shape, leading, input.shape[2:], *geometry)
    channels, multiple = input.shape[1], _multiple(weight.shape[1], input.shape[1])
    y: Tensor | None = None
    pixels = windows(padded(input, padding), weight.shape[3:], kernel_size, stride, dilation)
    for tap, window in enumerate(pixels):
        own = precise(weight[:, :, tap]).unflatten(1, (channels, multiple))
        seen = precise(window).unsqueeze(2)
        y = own * seen if y is None else torch.addcmul(y, own, seen)
    assert y is not None
    y = y.flatten(1, 2)
    if bias is not None:
        y = y + precise(bias)[:, :, None, None]
    return y.to(input.dtype).contiguous(memory_format=memory_format(input))


def guided_channelwise_conv2d_input_grad_ref(
    grad: Tensor,
    weight: Tensor,
    input_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """The gradient to the input, (B, *input_size), ``input_size`` being C, H, W."""
    geometry = kernel_size, stride, padding, dilation
    check_fit("grad", grad.shape, grad.shape[:2], input_size[1:], *geometry)
    check_fit("weight", weight.shape, (*grad.shape[:2], math.prod(kernel_size)), input_size[1:], *geometry)
    channels, multiple = input_size[0], _multiple(weight.shape[1], input_size[0])
    summed = precise(grad)

    def part(tap: int) -> Tensor:
        own: Tensor = (precise(weight[:, :, tap]) * summed).unflatten(1, (channels, multiple))
        return own.sum(2)

    return scattered(part, grad, input_size, *geometry)


def guided_channelwise_conv2d_weight_grad_ref(
    grad: Tensor,
    input: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """The gradient to the weight, (B, m C, taps, Ho, Wo)."""
    leading = input.shape[0], grad.shape[1]
    check_fit("grad", grad.shape, leading, input.shape[2:], kernel_size, stride, padding, dilation)
    channels, multiple = input.shape[1], _multiple(grad.shape[1], input.shape[1])
    gradient = _fake_weight_grad(grad, input, kernel_size)
    own = grad.unflatten(1, (channels, multiple))
    pixels = windows(padded(input, padding), grad.shape[2:], kernel_size, stride, dilation)
    for tap, window in enumerate(pixels):
        gradient[:, :, tap] = (own * window.unsqueeze(2)).flatten(1, 2)
    return gradient


def _multiple(outputs: int, channels: int) -> int:
    return outputs // channels if channels else 1


def _fake_weight_grad(grad: Tensor, input: Tensor, kernel_size: list[int], *_: list[int]) -> Tensor:
    return grad.new_empty(*grad.shape[:2], math.prod(kernel_size), *grad.shape[2:])


forward, input_grad, weight_grad = define_guided(
    "guided_channelwise_conv2d",
    "",
    (
        guided_channelwise_conv2d_ref,
        guided_channelwise_conv2d_input_grad_ref,
        guided_channelwise_conv2d_weight_grad_ref,
    ),
    _fake_weight_grad,
)
