"""Partial convolution based padding as a target (Liu et al. 2018, arXiv 1811.11718)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..layers import PartialConv2d
from .bordered_base import BorderedTarget


@dataclass(frozen=True)
class PartialOptions:
    """``to="partial"`` has no options."""


class Partial(BorderedTarget):
    """Outputs at the border are made of the pixels that are there, and scaled by how many are not."""

    name = "partial"
    summary = "outputs at the border scaled up for what is missing"
    options = PartialOptions
    layers: ClassVar[Mapping[int, Any]] = {2: PartialConv2d}
