"""Distribution padding as a target (Nguyen et al. 2019, "Distribution Padding in Convolutional Neural Networks")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..layers import RandomPadConv2d
from ..sites import ConvSite
from .bordered_base import BorderedTarget


@dataclass(frozen=True)
class RandomPadOptions:
    """``to="random_pad"`` has no options."""


class RandomPad(BorderedTarget):
    """Padding is noise with the mean and standard deviation of the pixels at the border."""

    name = "random_pad"
    summary = "padding with noise like the pixels at the border"
    options = RandomPadOptions
    layers: ClassVar[Mapping[int, Any]] = {2: RandomPadConv2d}

    def note(self, site: ConvSite, options: RandomPadOptions) -> str | None:
        return "padding is drawn anew in each call, in evaluation mode too"
