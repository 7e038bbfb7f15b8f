"""Kernels for each sample and pixel."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from .fit import fit_size
from .generator import Hypernet, as_image, mean_over_space, over_channels

torch.fx.wrap("as_image")
torch.fx.wrap("features_of_size")
torch.fx.wrap("mean_over_space")
torch.fx.wrap("over_channels")


class SpatialHypernet(Hypernet):
    """Kernels for each pixel of the guide: reduce -> leaky ReLU -> expand, each a linear map of the pixel's channels.

    What a body of the user's own returns is brought to the guide's size.

    Shape: (B, G, H, W) to (B, *weight_shape, H, W), contiguous, and with ``bias_channels`` also (B, bias_channels)
    from the mean of the features over space.

    Args:
        guide_channels: G.
        weight_shape: of the kernels of one sample and pixel, as the layer takes them: (Ci / groups, taps, Co) or
            (Co, taps). It is also the order of the rows of ``expand``.
        hidden, bias_channels, bias_start, body, generator, device, dtype: as in `Hypernet`.
    """

    spatial: ClassVar[bool] = True

    def __init__(self, guide_channels: int, weight_shape: tuple[int, ...], hidden: int = 8, **options: Any) -> None:
        super().__init__(guide_channels, math.prod(weight_shape), hidden, **options)
        self.weight_shape = tuple(weight_shape)

    def forward(self, guide: Tensor) -> Any:
        features = self._pixel_features(guide)
        kernels = over_channels(features, self.expand.weight, self.expand.bias).unflatten(1, self.weight_shape)
        return kernels if self.expand_bias is None else (kernels, self.expand_bias(mean_over_space(features)))

    def _pixel_features(self, guide: Tensor) -> Tensor:
        guide = as_image(guide)
        features = self._features(guide)
        return features if self.body is None else features_of_size(features, guide)


def features_of_size(features: Tensor, guide: Tensor) -> Tensor:
    """Features of any size, or of none, at the size of the guide."""
    return fit_size(features, guide.shape[2:])
