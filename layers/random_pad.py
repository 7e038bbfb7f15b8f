"""Convolution of an image that goes on beyond its border as noise (Nguyen et al. 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._geometry import IntOrInts, Padding
from .bordered import BorderedConv
from .noise_source import NoiseSource
from .random_padding import random_pad_conv2d

torch.fx.wrap("random_pad_conv2d")


class RandomPadConv2d(BorderedConv):
    """Convolution whose padding is drawn anew for each input, distributed as the pixels next to the border are.

    "Distribution Padding in Convolutional Neural Networks" (Nguyen et al. 2019); see `random_pad2d` for what is drawn.
    It is so in evaluation mode too: two outputs for one input differ at the border, unless the generator is set back.

    Shape: (B, in_channels, H, W) to (B, out_channels, Ho, Wo), or both without B, as in ``nn.Conv2d``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in ``nn.Conv2d``;
            ``padding="same"`` is allowed with any stride.
        noise_generator: draws the noise, wherever the layer is; by default the global generator of the input's device
            does. A copy of the layer has a copy of it. ``torch.compile`` breaks its graph at a generator, and
            ``torch.export`` takes one in the versions of torch that can hold it; without one both take the layer whole.
            ``torch.utils.checkpoint`` sets back the global generators alone: what it computes anew with another one is
            other noise.

    Parameters:
        weight (out_channels, in_channels / groups, kh, kw) and bias (out_channels) or None.

    Raises:
        ValueError: for arguments that fit no convolution.
        TypeError: if ``noise_generator`` is no ``torch.Generator``.
    """

    dims = 2
    beneath = "random"

    noise: NoiseSource | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: Padding = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        noise_generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry: Any = in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        super().__init__(*geometry, device=device, dtype=dtype)
        self.noise_generator = noise_generator

    @property
    def noise_generator(self) -> torch.Generator | None:
        """The generator that draws the noise; None is the global one. It can be set."""
        return None if self.noise is None else self.noise.generator

    @noise_generator.setter
    def noise_generator(self, generator: torch.Generator | None) -> None:
        self.noise = None if generator is None else NoiseSource(generator)

    def forward(self, input: Tensor) -> Tensor:
        return random_pad_conv2d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, self.noise
        )
