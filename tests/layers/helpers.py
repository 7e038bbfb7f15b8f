"""Random convolutions and the plain way to compute them, independent of what is tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

few_examples = settings(deadline=None, max_examples=25)
CONV_CLASSES: tuple[type[Any], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONV_FUNCTIONS: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)

seeds = st.integers(0, 2**31 - 1)


@dataclass(frozen=True)
class Geometry:
    """All about a convolution and its input but the numbers in them."""

    size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    in_channels: int
    out_channels: int
    bias: bool
    seed: int

    @property
    def dims(self) -> int:
        return len(self.size)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def conv(self, dtype: torch.dtype = torch.float64) -> Any:
        """An ``nn.ConvNd`` of this geometry. Where its padding is "same" with a stride, it cannot run itself."""
        conv = CONV_CLASSES[self.dims - 1](
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            0,
            self.dilation,
            self.groups,
            self.bias,
            self.padding_mode,
            dtype=dtype,
        )
        conv.padding = self.padding
        generator = self.generator()
        with torch.no_grad():
            for parameter in conv.parameters():
                parameter.copy_(normal(generator, *parameter.shape))
        return conv

    def input(self, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
        return normal(self.generator(), batch, self.in_channels, *self.size).to(dtype)


@st.composite
def geometries(draw: Any, dims: Any = None, channels: int = 2, min_size: int = 7, taps: Any = None) -> Geometry:
    """Convolutions that run on their input; ``min_size`` above the paddings, so that every padding mode can."""
    axes = draw(st.sampled_from((1, 2, 3))) if dims is None else dims

    def each(numbers: Any) -> tuple[int, ...]:
        return tuple(draw(numbers) for _ in range(axes))

    groups, depthwise = draw(st.sampled_from((1, 2, 3))), draw(st.booleans())
    return Geometry(
        size=each(st.integers(min_size, min_size + 3)),
        kernel_size=each(st.integers(1, 4 if axes < 3 else 3) if taps is None else taps),
        stride=each(st.sampled_from((1, 1, 2, 3))),
        padding=draw(st.sampled_from(("same", "valid", each(st.integers(0, 3))))),
        dilation=each(st.sampled_from((1, 1, 2))),
        groups=groups,
        padding_mode=draw(st.sampled_from(("zeros", "reflect", "replicate", "circular"))),
        in_channels=groups * (1 if depthwise else draw(st.integers(1, channels))),
        out_channels=groups * draw(st.integers(1, channels)),
        bias=draw(st.booleans()),
        seed=draw(seeds),
    )


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def plain_conv(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    """Pad as TensorFlow's SAME or by numbers, then the convolution of torch."""
    widths: list[int] = []
    for axis in reversed(range(g.dims)):
        if g.padding == "same":
            outputs = -(-g.size[axis] // g.stride[axis])
            span = (outputs - 1) * g.stride[axis] + g.dilation[axis] * (g.kernel_size[axis] - 1) + 1
            missing = max(span - g.size[axis], 0)
            widths += [missing // 2, missing - missing // 2]
        else:
            widths += [0 if g.padding == "valid" else g.padding[axis]] * 2
    padded = F.pad(x, widths, "constant" if g.padding_mode == "zeros" else g.padding_mode)
    return CONV_FUNCTIONS[g.dims - 1](padded, weight, bias, g.stride, 0, g.dilation, g.groups)


def relative_error(value: Tensor, expected: Tensor, least: float = 1e-30) -> float:
    """Greatest difference, as a part of the greatest expected value (or of ``least``, where all should be small)."""
    assert value.shape == expected.shape
    if not expected.numel():
        return 0.0
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).abs().max() / expected.abs().max().clamp_min(least))


def is_channels_last(value: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return value.is_contiguous(memory_format=formats[value.dim()])


def interior(y: Tensor, g: Geometry) -> Tensor:
    """The outputs (…, *out) whose windows lie in the image, from their first tap to their last."""
    for axis in range(g.dims):
        extent = g.dilation[axis] * (g.kernel_size[axis] - 1) + 1
        outputs, before = y.shape[axis - g.dims], 0
        if g.padding == "same":
            before = max((outputs - 1) * g.stride[axis] + extent - g.size[axis], 0) // 2
        elif g.padding != "valid":
            before = g.padding[axis]
        starts = [i * g.stride[axis] - before for i in range(outputs)]
        inside = [i for i, start in enumerate(starts) if start >= 0 and start + extent <= g.size[axis]]
        y = y.index_select(axis - g.dims, torch.tensor(inside, dtype=torch.long))
    return y
