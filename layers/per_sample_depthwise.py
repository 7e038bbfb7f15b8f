"""Depthwise convolution of each sample with kernels of its own, on the kernels of `large_depthwise_conv2d`."""

from __future__ import annotations

import torch
from torch import Tensor

from ._geometry import is_channels_last
from .large_depthwise import large_depthwise_pays
from .ops import large_depthwise_conv2d
from .ops._autocast import autocast_like_conv
from .ops._load import use_kernels


def depthwise(
    x: Tensor, kernels: Tensor, bias: Tensor | None, stride: tuple[int, ...], widths: list[tuple[int, int]]
) -> Tensor:
    """All samples' channels as those of one image, or sample by sample where the image is channels_last.

    Args:
        x: (B, C, H, W) or (B, C, L).
        kernels: (B, O, 1, kh, kw) or (B, O, 1, k), O a multiple of C.
        bias: (B, O) or None.
        stride: one number for each axis, up to `MAX_STRIDE`.
        widths: pixels of zeros before and after each axis.

    Returns:
        (B, O, *out).
    """
    if kernels.dim() == 4:  # an image of one row
        return depthwise(x.unsqueeze(2), kernels.unsqueeze(3), bias, (1, *stride), [(0, 0), *widths]).squeeze(2)
    x, kernels = autocast_like_conv(x), autocast_like_conv(kernels)
    bias = None if bias is None else autocast_like_conv(bias)
    ref = large_depthwise_conv2d.large_depthwise_conv2d_ref
    convolve = large_depthwise_conv2d.forward if use_kernels(x) else ref
    geometry = list(stride), [width for pair in widths for width in pair]
    if is_channels_last(x) and not torch.compiler.is_compiling():
        biases = [None] * x.shape[0] if bias is None else bias.unbind()
        samples = zip(x.split(1), kernels.unbind(), biases, strict=True)
        return torch.cat([convolve(one, kernel, own, *geometry) for one, kernel, own in samples])
    whole: Tensor = convolve(
        x.reshape(1, -1, *x.shape[2:]), kernels.flatten(0, 1), None if bias is None else bias.flatten(), *geometry
    )
    return whole.view(x.shape[0], -1, *whole.shape[2:])


def depthwise_pays(x: Tensor, weight: Tensor, pixels: int) -> bool:
    """Whether `depthwise` is the one to take where a convolution with a group for each channel computes the same.

    Of small images with small kernels it is not: a row of such an image is shorter than a vector.

    Args:
        x: as in `depthwise`.
        weight: the kernels of one sample, or any of their shape, dtype and requires_grad.
        pixels: of an output.
    """
    on_cpu = x.device.type == "cpu"
    if on_cpu and is_channels_last(x) and torch.compiler.is_compiling():
        x = x.contiguous()
    if weight.dim() == 3:
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
    small = on_cpu and not is_channels_last(x) and pixels < 512 and weight.shape[2:].numel() < 25
    return not small and large_depthwise_pays(x, weight)
