"""A target of one's own: convolutions whose outputs are mixed by a learned matrix afterwards.

``to="mixed"`` puts a 1x1 convolution behind every convolution. It starts as the identity, so the function is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

import convswap
from convswap.conv_classes import Conv
from convswap.sites import ConvSite
from convswap.targets import Fidelity, Target


class MixedConv2d(nn.Module):
    """A convolution and a 1x1 convolution that mixes its outputs."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        identity = torch.eye(conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype)
        self.mixture = nn.Parameter(identity[..., None, None])

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(self.conv(x), self.mixture)


@dataclass(frozen=True)
class MixedOptions:
    """Options of ``to="mixed"``: convolutions with fewer groups are kept."""

    min_groups: int = 1


class Mixed(Target):
    """A learned mixture of the outputs behind each convolution."""

    name = "mixed"
    summary = "a 1x1 mixture of the outputs behind each convolution"
    options = MixedOptions

    def unsupported_reason(self, site: ConvSite, options: MixedOptions) -> str | None:
        if site.dims != 2 or site.plain.padding == "same":
            return "only nn.Conv2d with padding numbers is taken"
        if site.plain.groups < options.min_groups:
            return f"it has fewer than {options.min_groups} groups"
        return None

    def fidelity(self, site: ConvSite, options: MixedOptions) -> Fidelity:
        return "exact"

    def build(self, conv: Conv, options: MixedOptions, generator: torch.Generator | None) -> nn.Module:
        assert isinstance(conv, nn.Conv2d)
        return MixedConv2d(conv)


def main() -> None:
    """Register the target and convert with it."""
    convswap.register(Mixed())
    model = torchvision.models.mobilenet_v3_small()
    print(convswap.report(convswap.convert(model, to="mixed", min_groups=2, verify=0)))


if __name__ == "__main__":
    main()
