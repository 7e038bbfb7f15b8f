"""Hypernets: small nets from a guide to the kernels of a guided convolution (Ha et al. 2016, arXiv 1609.09106)."""

from .fit import fit_guide
from .generator import Hypernet, HypernetFactory
from .init import hyperfan_in_, hyperfan_out_
from .low_rank import LowRankHypernet
from .pooled import PooledHypernet
from .separable import SeparableHypernet
from .spatial import SpatialHypernet

__all__ = [
    "Hypernet",
    "HypernetFactory",
    "LowRankHypernet",
    "PooledHypernet",
    "SeparableHypernet",
    "SpatialHypernet",
    "fit_guide",
    "hyperfan_in_",
    "hyperfan_out_",
]
