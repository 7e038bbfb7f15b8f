"""What all hypernets have in common: from the guide to features, and from features to numbers."""

from __future__ import annotations

from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..own_net import NetFactory
from .init import check_init, draw_linear, hyperfan_in_, hyperfan_out_, leaky_relu_mean_square, zero_linear

HypernetFactory: TypeAlias = NetFactory
"""From the numbers of guide channels and of features to a net of one's own: (B, guide channels, H, W) to
(B, features) or (B, features, h, w)."""

torch.fx.wrap("check_channels")
torch.fx.wrap("check_like")
torch.fx.wrap("over_channels")

SLOPE = 0.01
"""Of the leaky ReLU between the two linear maps."""


class Hypernet(nn.Module):
    """Base of the generators of kernels: guide -> ``reduce`` -> leaky ReLU -> ``expand`` -> numbers of a kernel.

    ``reduce`` and ``expand`` are ``nn.Linear``, applied to the channels of each pixel where the guide has pixels. A
    ``body`` of the user's own takes the place of ``reduce`` and the activation. A new one generates zeros: the kernel
    that it starts from and the weights of ``expand`` are for `HypernetConv2d` to set.

    Args:
        guide_channels: G.
        numbers: outputs of ``expand``.
        hidden: number of features.
        bias_channels: outputs of ``expand_bias``, which generates a bias as well, or None.
        bias_start: whether ``expand_bias`` has a start of its own, for convolutions without a bias parameter.
        body: a net from (B, G, H, W) to (B, hidden) or (B, hidden, h, w).
        generator: a CPU generator for the random start; the global one by default.

    Raises:
        ValueError: if a number is less than 1.
    """

    spatial: ClassVar[bool]
    """Whether there are numbers for each pixel."""

    outputs: int
    """Number of tensors (or pairs) that a call returns."""

    def __init__(
        self,
        guide_channels: int,
        numbers: int,
        hidden: int = 8,
        *,
        bias_channels: int | None = None,
        bias_start: bool = True,
        body: nn.Module | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("guide_channels", guide_channels), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.guide_channels = guide_channels
        self.hidden = hidden
        self.bias_channels = bias_channels
        self.outputs = 1 if bias_channels is None else 2
        self.body = body
        self.reduce = None if body is not None else zero_linear(guide_channels, hidden, True, device, dtype)
        self.expand = zero_linear(hidden, numbers, True, device, dtype)
        self.expand_bias = (
            None if bias_channels is None else zero_linear(hidden, bias_channels, bias_start, device, dtype)
        )
        if self.reduce is not None:
            draw_linear(self.reduce, generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw ``reduce`` as ``nn.Linear`` does and zero the last maps. A body of the user's own is left alone."""
        if self.reduce is not None:
            draw_linear(self.reduce, generator)
        for name, child in self.named_children():
            if name.startswith("expand"):
                for parameter in child.parameters():
                    nn.init.zeros_(parameter)

    def carried(self) -> tuple[tuple[nn.Module, str], ...]:
        """The (module, parameter name) that hold the kernel at zero guide contribution."""
        return ((self.expand, "bias"),)

    def generated_numbers(self, pixels: int) -> int:
        """How many numbers are held at once for one sample whose output has so many pixels."""
        numbers = self.expand.out_features * (pixels if self.spatial else 1)
        return numbers + (self.bias_channels or 0)

    def hyperfan(
        self, init: str, fan_in: int, fan_out: int, relu: bool, generator: torch.Generator | None = None
    ) -> None:
        """Draw the last maps by `hyperfan_in_` (``init="fan_in"``) or `hyperfan_out_` (``"fan_out"``).

        Raises:
            ValueError: for another ``init``.
        """
        check_init(init)
        if self.expand.weight.is_meta:  # nothing to draw
            return
        bias_generated = self.expand_bias is not None
        self._hyperfan(self.expand, init, (fan_in, fan_out), self.mean_square(), relu, bias_generated, generator)
        self._hyperfan_of_bias(relu, generator)

    def _hyperfan_of_bias(self, relu: bool, generator: torch.Generator | None) -> None:
        if self.expand_bias is not None:
            self._hyperfan(self.expand_bias, "fan_in", (1, 1), self.mean_square(pooled=True), relu, True, generator)

    def _hyperfan(
        self,
        linear: nn.Linear,
        init: str,
        fans: tuple[int, int],
        mean_square: float,
        relu: bool,
        bias_generated: bool,
        generator: torch.Generator | None,
    ) -> None:
        if init == "fan_in":
            hyperfan_in_(linear.weight, fans[0], mean_square, relu, bias_generated, generator)
        else:
            hyperfan_out_(linear.weight, fans[1], mean_square, relu, generator)

    @torch.no_grad()
    def mean_square(self, pooled: bool = False) -> float:
        """E[e^2] of the features for a guide of unit-normal numbers.

        How much is left of them in a mean over space depends on how alike the pixels of a guide are, which is unknown
        here. A net that averages its guide is taken to get one whose means are unit-normal; one that averages features
        of pixels, for a bias or for the second of two factors, a guide that is the same everywhere. Of a guide that
        varies over space less than this remains.

        Computed in closed form; for a body of the user's own, in evaluation mode, estimated from samples of 16x16
        pixels that are always the same.

        Args:
            pooled: of the features' mean over space, where there are features of pixels.

        Raises:
            RuntimeError: if the body of the user's own fails on such samples.
        """
        if self.reduce is not None:
            weight, bias = self.reduce.weight.double(), self.reduce.bias.double()
            return leaky_relu_mean_square(bias, weight.square().sum(1), SLOPE).mean().item()
        features = self._probe_body()
        features = mean_over_space(features) if pooled or not self.spatial else features
        return features.double().square().mean().item()

    def _probe_body(self) -> Tensor:
        """Features that the user's own body makes of sample guides."""
        assert self.body is not None
        generator = torch.Generator().manual_seed(0)
        # Of pixels that are alike or averaged each sample counts as one.
        shape = max(32, min(256, 2**14 // self.guide_channels)) if self.pools else 32, self.guide_channels
        guide = torch.randn(*shape, 16, 16, generator=generator)
        if not self.spatial:
            guide += torch.randn(*shape, 1, 1, generator=generator)
        elif self.pools:
            guide = torch.randn(*shape, 1, 1, generator=generator).expand_as(guide)
        modes = [(module, module.training) for module in self.body.modules()]
        try:
            features = self.body.eval()(guide.to(self.expand.weight))
        except Exception as error:
            raise RuntimeError(
                f"the hypernet's body failed on a guide of shape {tuple(guide.shape)}, on which the size of its "
                f"features was to be found: {error}; with_hypernet needs a body that takes guides of 16x16 pixels, "
                "from_conv does not"
            ) from error
        finally:
            for module, mode in modes:
                module.training = mode
        return self._checked(features)

    @property
    def pools(self) -> bool:
        """Whether something is made of a mean over space."""
        return not self.spatial or self.expand_bias is not None

    def _features(self, guide: Tensor) -> Tensor:
        """(B, G, H, W) to (B, hidden, H, W), or to what a body of the user's own makes of H and W."""
        guide = check_channels(guide, self.guide_channels, "the guide", "guide_channels")
        if self.body is not None:
            return self._checked(self.body(guide))
        assert self.reduce is not None
        guide = check_like(guide, self.reduce.weight)
        return F.leaky_relu(over_channels(guide, self.reduce.weight, self.reduce.bias), SLOPE)

    def _checked(self, features: Tensor) -> Tensor:
        return check_channels(features, self.hidden, "the features that the hypernet's body returns", "hidden")

    def extra_repr(self) -> str:
        return f"{self.guide_channels}, hidden={self.hidden}"


def over_channels(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear map of the channels of each pixel: (B, n, H, W) to a contiguous (B, m, H, W)."""
    maps = weight.expand(x.shape[0], -1, -1)
    made: Tensor = torch.baddbmm(bias.unsqueeze(1), maps, x.flatten(2)).unflatten(2, x.shape[2:])
    return made


def mean_over_space(value: Tensor) -> Tensor:
    """(B, n, H, W) to (B, n); what has no space is left.

    Raises:
        ValueError: if there are no pixels.
    """
    if value.dim() == 2:
        return value
    if 0 in value.shape[2:]:
        raise ValueError(f"a guide must have pixels to be averaged over, got {tuple(value.shape)}")
    return value.flatten(2).mean(2)


def check_channels(value: Tensor, channels: int, what: str, name: str) -> Tensor:
    """``value`` itself.

    Raises:
        ValueError: unless it is (B, channels) or (B, channels, H, W).
    """
    if value.dim() not in (2, 4) or value.shape[1] != channels:
        raise ValueError(f"{what} must have {name}={channels} channels on axis 1, got {tuple(value.shape)}")
    return value


def check_like(guide: Tensor, weight: Tensor) -> Tensor:
    """The guide itself.

    Raises:
        ValueError: unless it has the device and, where autocast gives everything one, the dtype of the hypernet.
    """
    alike = guide.dtype == weight.dtype
    if not alike and guide.is_floating_point() and not weight.is_meta:
        alike = torch.is_autocast_enabled(weight.device.type)
    if guide.device != weight.device or not alike:
        raise ValueError(
            f"the guide must have the dtype and device of the hypernet, {weight.dtype} on {weight.device}, "
            f"got {guide.dtype} on {guide.device}"
        )
    return guide


def as_image(value: Tensor) -> Tensor:
    """(B, n) as (B, n, 1, 1); an image itself."""
    return value[..., None, None] if value.dim() == 2 else value
