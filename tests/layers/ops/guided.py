"""Random guided convolutions, channelwise and local, and the sums that they are, written out index by index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from convswap.layers.ops import guided_channelwise_conv2d, guided_local_conv2d

DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest error in each dtype, relative to the largest value."""

FORMATS = (torch.contiguous_format, torch.channels_last)


@dataclass(frozen=True)
class Case:
    """``groups`` is None for the channelwise ops; ``outputs`` are those of a channel there, else those of a group."""

    batch: int
    groups: int | None
    inputs: int
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    bias: bool = False
    memory_format: torch.memory_format = torch.contiguous_format

    @property
    def ops(self) -> Any:
        return guided_channelwise_conv2d if self.groups is None else guided_local_conv2d

    @property
    def channels(self) -> int:
        return self.inputs * (self.groups or 1)

    @property
    def all_outputs(self) -> int:
        return self.outputs * (self.inputs if self.groups is None else self.groups)

    @property
    def input_size(self) -> list[int]:
        return [self.channels, *self.size]

    @property
    def output_size(self) -> tuple[int, ...]:
        before = self.padding[0] + self.padding[1], self.padding[2] + self.padding[3]
        axes = zip(self.size, before, self.kernel, self.stride, self.dilation, strict=True)
        return tuple((s + b - d * (k - 1) - 1) // step + 1 for s, b, k, step, d in axes)

    @property
    def geometry(self) -> tuple[Any, ...]:
        lists = tuple(list(v) for v in (self.kernel, self.stride, self.padding, self.dilation))
        return lists if self.groups is None else (*lists, self.groups)

    def tensors(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, weight, bias."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

        taps = self.kernel[0] * self.kernel[1]
        x = draw(self.batch, *self.input_size).to(memory_format=self.memory_format)
        if self.groups is None:
            weight = draw(self.batch, self.all_outputs, taps, *self.output_size)
        else:
            weight = draw(self.batch, self.inputs, taps, self.all_outputs, *self.output_size)
        return x, weight, draw(self.batch, self.all_outputs) if self.bias else None


@st.composite
def cases(draw: Any, local: bool, most_size: int = 24, most_kernel: int = 5) -> Case:
    if draw(st.booleans()):
        return draw(_of_same_size(local, most_size, most_kernel))
    padding = tuple(draw(st.integers(0, 4)) for _ in range(4))
    size = tuple(draw(st.integers(1, most_size)) for _ in range(2))
    room = size[0] + padding[0] + padding[1], size[1] + padding[2] + padding[3]
    kernel = tuple(draw(st.integers(1, min(most_kernel, r))) for r in room)
    dilation = tuple(
        draw(st.integers(1, min(3, (r - 1) // (k - 1) if k > 1 else 3))) for r, k in zip(room, kernel, strict=True)
    )
    return draw(_filled_in(local, size, kernel, padding, dilation, tuple(draw(st.integers(1, 3)) for _ in range(2))))


@st.composite
def _of_same_size(draw: Any, local: bool, most_size: int, most_kernel: int) -> Case:
    """As many outputs as inputs, but for a stride of rows, however the padding is split."""
    kernel, dilation = ((draw(st.integers(1, most)), draw(st.integers(1, most))) for most in (most_kernel, 3))
    around = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    before = [draw(st.integers(0, a)) for a in around]
    padding = before[0], around[0] - before[0], before[1], around[1] - before[1]
    size = draw(st.integers(1, most_size)), draw(st.integers(1, most_size))
    return draw(_filled_in(local, size, kernel, padding, dilation, (draw(st.sampled_from((1, 1, 2))), 1)))


@st.composite
def _filled_in(draw: Any, local: bool, size: Any, kernel: Any, padding: Any, dilation: Any, stride: Any) -> Case:
    return Case(
        batch=draw(st.integers(0, 3)),
        groups=draw(st.integers(1, 3)) if local else None,
        inputs=draw(st.integers(1, 4)),
        outputs=draw(st.sampled_from((1, 2, 3, 9) if local else (1, 1, 2, 3))),
        size=size,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        bias=draw(st.booleans()),
        memory_format=draw(st.sampled_from(FORMATS)),
    )


def by_index(x: Tensor, weight: Tensor, bias: Tensor | None, case: Case) -> Tensor:
    """Each output pixel is the sum over what its own kernel sees, zeros outside the image. Differentiable.

    With everything that a tap reads gathered by index, not by slices: (B, C, taps, Ho, Wo).
    """
    (kh, kw), (height, width) = case.kernel, case.output_size
    tap = torch.arange(kh * kw)
    rows = torch.arange(height) * case.stride[0] - case.padding[0] + (tap // kw * case.dilation[0])[:, None]
    columns = torch.arange(width) * case.stride[1] - case.padding[2] + (tap % kw * case.dilation[1])[:, None]
    inside = ((rows >= 0) & (rows < case.size[0]))[:, :, None] & ((columns >= 0) & (columns < case.size[1]))[:, None]
    rows, columns = rows.clamp(0, case.size[0])[:, :, None], columns.clamp(0, case.size[1])[:, None]
    seen = F.pad(x, (0, 1, 0, 1))[:, :, rows, columns] * inside  # so that there is a pixel to take in any image
    if case.groups is None:
        y = (weight * seen.repeat_interleave(case.outputs, 1)).sum(2)
    else:
        shape = case.batch, case.inputs, kh * kw, case.groups, case.outputs, height, width
        seen = seen.view(case.batch, case.groups, case.inputs, kh * kw, height, width)
        y = torch.einsum("bitgoyx,bgityx->bgoyx", weight.view(shape), seen)
        y = y.flatten(1, 2)
    return y if bias is None else y + bias[:, :, None, None]
