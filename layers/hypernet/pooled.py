"""One set of kernels for each sample."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .generator import SLOPE, Hypernet, as_image, check_channels, check_like, mean_over_space

torch.fx.wrap("as_image")
torch.fx.wrap("check_channels")
torch.fx.wrap("check_like")
torch.fx.wrap("mean_over_space")


class PooledHypernet(Hypernet):
    """Kernels for each sample from the mean of the guide over space: mean -> reduce -> leaky ReLU -> expand.

    Of a body of the user's own the features are averaged instead.

    Shape: (B, G, H, W) or (B, G) to (B, *weight_shape), and with ``bias_channels`` also (B, bias_channels).

    Args:
        guide_channels: G.
        weight_shape: of the kernels of one sample, the output channels last: (Ci / groups, taps, Co) or
            (Ci / groups, Co). Rows of ``expand`` are in the order of a convolution's own weight, the output channels
            first, and what is returned is a permuted view.
        hidden, bias_channels, bias_start, body, generator, device, dtype: as in `Hypernet`.
    """

    spatial: ClassVar[bool] = False

    def __init__(self, guide_channels: int, weight_shape: tuple[int, ...], hidden: int = 8, **options: Any) -> None:
        super().__init__(guide_channels, math.prod(weight_shape), hidden, **options)
        self.weight_shape = tuple(weight_shape)

    def forward(self, guide: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.reduce is not None:
            guide = check_channels(guide, self.guide_channels, "the guide", "guide_channels")
            guide = check_like(guide, self.reduce.weight)
            features = F.leaky_relu(self.reduce(mean_over_space(guide)), SLOPE)
        else:
            features = mean_over_space(self._features(as_image(guide)))
        *others, out = self.weight_shape
        kernels: Tensor = self.expand(features).unflatten(1, (out, *others)).movedim(1, -1)
        return kernels if self.expand_bias is None else (kernels, self.expand_bias(features))
