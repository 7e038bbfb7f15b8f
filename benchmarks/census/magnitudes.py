"""Errors as numbers that can be compared: NaN, which is neither above nor below any limit, counts as infinite."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable

from torch import Tensor


def number(error: float) -> float:
    """The magnitude of ``error``, infinite for NaN."""
    return math.inf if math.isnan(error) else abs(error)


def greatest(errors: Iterable[float]) -> float:
    """The greatest magnitude of ``errors``, infinite if there is NaN among them; 0 if there are none."""
    return max(map(number, errors), default=0.0)


def greatest_of(values: Tensor) -> float:
    """The greatest magnitude in a tensor, infinite for NaN; 0 if it is empty."""
    return values.abs().nan_to_num(nan=math.inf).max().item() if values.numel() else 0.0


def rounded(error: float) -> float:
    """Three digits; JSON has no more than the greatest number for what overflows or is NaN."""
    error = number(error)
    return float(f"{error:.2e}") if error <= 1e308 else sys.float_info.max
