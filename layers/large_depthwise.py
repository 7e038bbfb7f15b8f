"""The functional form of depthwise convolution with large kernels, and when it is the faster one."""

from __future__ import annotations

import torch
from torch import Tensor

from ._geometry import IntOrInts, Padding, is_channels_last, normalise_padding, pad_widths, per_axis
from .ops._autocast import autocast_like_conv
from .ops._load import use_kernels
from .ops.large_depthwise_conv2d import forward, large_depthwise_conv2d_ref

torch.fx.wrap("large_depthwise_conv2d")

_WIDE_VECTORS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
_LANES = 16

MAX_STRIDE = 64
"""Beyond it there is nothing large about the kernel that the steps between outputs see, and memory is wasted."""


def large_depthwise_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: IntOrInts = 1, padding: Padding = 0
) -> Tensor:
    """Convolve each channel with kernels of its own, as ``F.conv2d`` with ``groups=C`` does, by kernels made for it.

    The gain grows with the kernel: RepLKNet (Ding et al. 2022, arXiv 2203.06717) measured how far usual
    implementations are from what the multiply-adds need. Derivatives of every order run on the same kernels. Under
    autocast the tensors are cast as those of ``F.conv2d`` are.

    Args:
        input: (B, C, H, W), or (C, H, W). The result is channels_last where it is.
        weight: (m * C, 1, kh, kw), m >= 1: output channel o reads input channel o // m.
        bias: (m * C) or None.
        stride: one number or two, vertical first.
        padding: pixels of zeros around the input: one number, two, ``"valid"`` or ``"same"``, with any stride.

    Returns:
        (B, m * C, Ho, Wo), or (m * C, Ho, Wo).

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or the kernel is larger than the padded input.
    """
    if input.dim() == 3:
        widened = input.unsqueeze(0)
    elif input.dim() == 4:
        widened = input
    else:
        raise ValueError(f"input must be (B, C, H, W) or (C, H, W), got {tuple(input.shape)}")
    widened, weight = autocast_like_conv(widened), autocast_like_conv(weight)
    bias = None if bias is None else autocast_like_conv(bias)
    _check(widened, weight, bias)
    steps = per_axis(stride, 2, "stride")
    if min(steps) < 1:
        raise ValueError(f"stride must be at least 1, got {steps}")
    kernel, size = weight.shape[2:], widened.shape[2:]
    rows, columns = pad_widths(normalise_padding(padding, 2), kernel, steps, size)
    if kernel[0] > size[0] + sum(rows) or kernel[1] > size[1] + sum(columns):
        raise ValueError(
            f"the kernel {tuple(kernel)} is larger than the input {tuple(size)} padded by {rows} and {columns}: "
            "take more padding or a smaller kernel"
        )
    geometry = list(steps), [*rows, *columns]
    convolve = forward if max(steps) <= MAX_STRIDE and use_kernels(widened) else large_depthwise_conv2d_ref
    y: Tensor = convolve(widened, weight, bias, *geometry)
    return y.squeeze(0) if input.dim() == 3 else y


def large_depthwise_pays(input: Tensor, weight: Tensor, training: bool | None = None) -> bool:
    """Whether `large_depthwise_conv2d` is the one to take where ``F.conv2d`` computes the same.

    On the CPU as measured by ``python -m benchmarks.large_depthwise --all``. On GPUs from 11x11 on, unless the image is
    channels_last: the size from which RepLKNet reports usual implementations to fall behind. False where the kernels
    are not in use.

    Args:
        input: (B, C, H, W) or (C, H, W).
        weight: (m * C, 1, kh, kw).
        training: whether gradients will be taken; by default whether they are being recorded.
    """
    if not use_kernels(input):
        return False
    taps = weight.shape[2] * weight.shape[3]
    if input.device.type != "cpu":
        return taps >= 121 and not is_channels_last(input)
    if training is None:
        training = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
    if not _WIDE_VECTORS:
        return taps >= 25 if training else taps >= 121 and not is_channels_last(input)
    if input.dtype in (torch.float64, torch.float16):  # which F.conv2d has no fast code for
        return True
    if not is_channels_last(input) or weight.shape[0] != input.shape[-3]:
        return taps >= 9
    if training:
        return taps >= 25
    return taps >= 81 and input.shape[-3] >= _LANES


def _check(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    channels = input.shape[1]
    if channels < 1:
        raise ValueError(f"input must have channels, got {tuple(input.shape)}")
    if weight.dim() != 4 or weight.shape[1] != 1 or min(weight.shape[2:]) < 1:
        raise ValueError(f"weight must be (m * C, 1, kh, kw), got {tuple(weight.shape)}")
    outputs = weight.shape[0]
    if outputs < 1 or outputs % channels:
        raise ValueError(
            f"weight must have a multiple of the input's {channels} channels, got {outputs}: {tuple(weight.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise ValueError(f"bias must be ({outputs},), got {tuple(bias.shape)}")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and (value.dtype != input.dtype or value.device != input.device):
            raise ValueError(
                f"{name} must have the dtype and device of the input, {input.dtype} on {input.device}, "
                f"got {value.dtype} on {value.device}"
            )
