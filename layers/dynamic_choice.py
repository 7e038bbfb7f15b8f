"""Which of the equal formulas of a dynamic convolution is cheapest, and which are for a convolution at all."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ._exporting import is_exporting
from ._geometry import memory_format
from .large_depthwise import MAX_STRIDE
from .ops._load import use_kernels
from .per_sample_depthwise import depthwise_pays

Formula = Literal["grouped", "loop", "matmul", "stacked", "fused", "depthwise"]


def choose_formula(x: Tensor, weight: Tensor, kernels: int, groups: int, pixels: int, plain: bool = True) -> Formula:
    """The cheapest formula for these shapes, calibrated on the CPU by ``benchmarks/dynamic_formulas.py``.

    Mixing kernels first moves each sample's kernel through memory, which costs as much as convolving some number of
    output pixels with it (`_mixing_cost_in_pixels`); convolving with all kernels costs ``kernels - 1`` further
    convolutions of every pixel. Where maps are small neither is worth it: ``"fused"`` does without both. Depthwise
    kernels are too small for mixing to cost anything.

    A group or a turn for each sample cannot be exported with a dynamic batch; ``"stacked"`` can. Turns are unrolled by
    a compiler, into a new graph for each size of the batch.

    Args:
        x, weight: as for `dynamic_conv`.
        kernels, groups: K, and the groups of each kernel.
        pixels: of an output.
        plain: whether the formula ``"depthwise"`` may be taken, if the kernels are depthwise.
    """
    batch = x.shape[0]
    if is_exporting() or batch == 0:
        return "stacked"
    depthwise = weight.shape[1] == 1
    if depthwise and plain and weight.dim() <= 4 and depthwise_pays(x, weight[: weight.shape[0] // kernels], pixels):
        return "depthwise"
    if batch == 1:
        return "loop"
    on_cpu = x.device.type == "cpu"
    point = weight[0, 0].numel() == 1
    if not depthwise and weight.dim() <= 4 and _fused_pays(x, weight, kernels, groups, pixels):
        return "fused"
    if not point and not depthwise and (kernels - 1) * pixels < _mixing_cost_in_pixels(batch, on_cpu):
        return "stacked"
    turns = on_cpu and not torch.compiler.is_compiling()
    if turns and output_format(x, weight) != torch.contiguous_format:
        return "loop"  # the others would have to leave channels_last and come back
    if point and not depthwise:
        return "matmul"
    return "loop" if turns and groups == 1 else "grouped"


def _mixing_cost_in_pixels(batch: int, on_cpu: bool) -> int:
    """Output pixels whose convolution takes as long as mixing the kernel: on the CPU rather more in large batches.

    Elsewhere not measured; a higher value, since there arithmetic is cheaper next to moving memory.
    """
    return 128 + 2 * min(batch, 32) if on_cpu else 512


_FUSED_LANES = 16
"""Outputs of a group that the fused kernels compute side by side: with fewer they do not pay."""


def _fused_pays(x: Tensor, weight: Tensor, kernels: int, groups: int, pixels: int) -> bool:
    """Whether the kernels that mix while they multiply are in use, and faster than mixing first.

    Elsewhere than on the CPU not measured: there a mixed number is written and read for each sample, which takes as
    long as its products with some hundreds of pixels do at the full rate of half precision (3 TB/s against 1000
    TFLOP/s are 600 pixels). The fused kernels are counted as half as fast as the library's convolutions.
    """
    if not use_kernels(x) or weight.shape[0] < kernels * groups * _FUSED_LANES:
        return False
    if (kernels - 1) * pixels < 2 * kernels:  # the products are no more work than mixing
        return False
    if x.device.type != "cpu":
        return pixels <= 256
    dtype = x.dtype
    if dtype != torch.float64 and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    if dtype in (torch.float64, torch.float16):  # which F.conv2d has no fast code for
        return True
    if dtype == torch.bfloat16 and weight.numel() < kernels << 20:  # which it multiplies faster, and mixes as fast
        return False
    return pixels <= (256 if weight.shape[2:].numel() == 1 else 144)


def output_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """The memory format that a plain convolution of these tensors gives its result."""
    own = memory_format(x)
    return own if own != torch.contiguous_format else memory_format(weight)


def check_formula(
    formula: Formula,
    weight: Tensor,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding_mode: str,
) -> None:
    """Check that the formula is for such a convolution.

    Raises:
        ValueError: if it is not.
    """
    taps, dims = tuple(weight.shape[2:]), weight.dim() - 2
    if formula == "matmul" and weight[0, 0].numel() != 1:
        raise ValueError(f'formula "matmul" is for 1x1 kernels, got {taps}')
    if formula in ("fused", "depthwise") and dims == 3:
        raise ValueError(f'formula "{formula}" is for one or two dimensions, got kernels of {taps}')
    if formula != "depthwise":
        return
    if weight.shape[1] != 1:
        raise ValueError(f'formula "depthwise" is for groups of one channel, got {groups} of {weight.shape[1]}')
    if padding_mode != "zeros" or max(dilation) > 1 or max(stride) > MAX_STRIDE:
        raise ValueError(
            f'formula "depthwise" is for padding_mode "zeros", dilation 1 and strides up to {MAX_STRIDE}, '
            f"got {padding_mode!r}, dilation {dilation} and stride {stride}"
        )
