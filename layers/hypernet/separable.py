"""The two factors of a separable guided convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .generator import SLOPE, mean_over_space, over_channels
from .init import check_init, leaky_relu_samples, zero_linear
from .spatial import SpatialHypernet

torch.fx.wrap("mean_over_space")
torch.fx.wrap("over_channels")


class SeparableHypernet(SpatialHypernet):
    """Kernels for each pixel and channel, and a matrix that mixes channels for each sample, from the same features.

    ``expand`` makes the first of each pixel's features, ``expand_depth`` the second of their mean over space.

    Shape: (B, G, H, W) to (B, C, taps, H, W) and (B, Ci / groups, Co), and with ``bias_channels`` (B, bias_channels).

    Args:
        guide_channels: G.
        weight_shape: (C, taps).
        depth_shape: (Ci / groups, Co). Rows of ``expand_depth`` have the output channels first, as a 1x1 convolution's
            weight has, and what is returned is a permuted view.
        hidden, bias_channels, bias_start, body, generator, device, dtype: as in `Hypernet`.
    """

    def __init__(
        self,
        guide_channels: int,
        weight_shape: tuple[int, ...],
        depth_shape: tuple[int, int],
        hidden: int = 8,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(guide_channels, weight_shape, hidden, device=device, dtype=dtype, **options)
        self.depth_shape = tuple(depth_shape)
        self.expand_depth = zero_linear(hidden, depth_shape[0] * depth_shape[1], True, device, dtype)
        self.outputs += 1

    def carried(self) -> tuple[tuple[nn.Module, str], ...]:
        return (*super().carried(), (self.expand_depth, "bias"))

    def generated_numbers(self, pixels: int) -> int:
        return super().generated_numbers(pixels) + self.expand_depth.out_features

    def hyperfan(
        self,
        init: str,
        fan_in: int,
        fan_out: int,
        relu: bool,
        generator: torch.Generator | None = None,
        inner_relu: bool = False,
    ) -> None:
        """As of `Hypernet`, for the two factors together; ``inner_relu`` says whether a ReLU stands between them."""
        check_init(init)
        if self.expand.weight.is_meta:
            return
        taps = self.weight_shape[1]
        self._hyperfan(self.expand, init, (taps, taps), self.mean_square(), False, False, generator)
        # Of what the first factor gives, a ReLU leaves half to the second. The first could not make up for that: a norm
        # between the two would take it away again.
        left = self.joint_mean_square() / (2 if inner_relu else 1)
        bias_generated = self.expand_bias is not None
        fans = fan_in // taps, fan_out // taps
        self._hyperfan(self.expand_depth, init, fans, left, relu, bias_generated, generator)
        self._hyperfan_of_bias(relu, generator)

    @torch.no_grad()
    def joint_mean_square(self) -> float:
        """E[|e|^2 |m|^2] / (n E[|e|^2]) for the n features e of a pixel and their mean m over space.

        It takes the place of E[m^2] in the second factor: both factors are large for the same guides, so that the
        second moment of their product is more than the product of theirs. As `mean_square` it is of a guide of
        unit-normal numbers that is the same everywhere, and is estimated from samples that are always the same.
        """
        if self.reduce is not None:
            features = leaky_relu_samples(self.reduce.weight, self.reduce.bias, SLOPE)
        else:
            features = self._probe_body().double()
        pixels, means = features.square().sum(1), mean_over_space(features).square().sum(1)
        pixels = pixels.flatten(1).mean(1) if pixels.dim() > 1 else pixels
        return ((pixels * means).mean() / (self.hidden * pixels.mean())).item()

    @property
    def pools(self) -> bool:
        return True

    def forward(self, guide: Tensor) -> Any:
        features = self._pixel_features(guide)
        pooled = mean_over_space(features)
        kernels = over_channels(features, self.expand.weight, self.expand.bias).unflatten(1, self.weight_shape)
        matrix = self.expand_depth(pooled).unflatten(1, self.depth_shape[::-1]).movedim(1, -1)
        return (kernels, matrix) if self.expand_bias is None else (kernels, matrix, self.expand_bias(pooled))
