"""Explicit boundary handling as a target (Innamorati et al. 2018, arXiv 1805.03106)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..layers import ExplicitBoundaryConv2d
from ..sites import ConvSite
from .base import Fidelity
from .bordered_base import BorderedTarget, widest


@dataclass(frozen=True)
class ExplicitBoundaryOptions:
    """``to="explicit_boundary"`` has no options."""


class ExplicitBoundary(BorderedTarget):
    """A kernel and a bias for each distance of a window to the interior, with zeros beyond the border."""

    name = "explicit_boundary"
    summary = "a kernel and bias for each distance to the border"
    options = ExplicitBoundaryOptions
    layers: ClassVar[Mapping[int, Any]] = {2: ExplicitBoundaryConv2d}

    def fidelity(self, site: ConvSite, options: ExplicitBoundaryOptions) -> Fidelity:
        return "exact" if site.plain.padding_mode == "zeros" else "interior"

    def note(self, site: ConvSite, options: ExplicitBoundaryOptions) -> str | None:
        distances = [before + after + 1 for before, after in widest(site.plain)]
        shape = "×".join(map(str, distances))
        return f"{math.prod(distances)} kernels, one for each of {shape} distances to the interior, each with its bias"
