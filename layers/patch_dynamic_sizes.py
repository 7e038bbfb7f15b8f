"""What the tensors of a published `PatchDynamicConv2d` tell about it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._geometry import IntOrInts, per_axis


@dataclass(frozen=True)
class PublishedSizes:
    """What a `PatchDynamicConv2d` is made with, as far as its tensors tell."""

    outputs: int
    hidden: int
    kernel_size: tuple[int, ...]
    groups: int
    similar_conv: bool
    bias: bool
    device: torch.device
    dtype: torch.dtype


def published_sizes(
    own: Mapping[str, Any], prefix: str, in_channels: int, kernel_size: IntOrInts | None
) -> PublishedSizes:
    """Read the sizes off ``own``, a state dict without its ``prefix``.

    Raises:
        TypeError: if an entry is no tensor.
        ValueError: if an entry that tells a size is missing or does not fit, or has no floating-point numbers.
    """
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1, got {in_channels}")
    for name, value in own.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{prefix}{name} must be a tensor, got {type(value).__name__}")
        if not (value.is_floating_point() or name.endswith("num_batches_tracked")):
            raise ValueError(f"{prefix}{name} must have floating-point numbers, got {value.dtype}")
    numbers = {int(found[1]) for name in own if (found := re.match(r"predictors\.([0-9]+)\.", name))}
    if not numbers:
        raise ValueError(f"there is no {prefix}predictors.0.0.weight: is {prefix!r} the prefix of the layer's names?")
    outputs = len(numbers)
    gap = next((o for o in range(outputs) if o not in numbers), None)
    if gap is not None:
        raise ValueError(f"there is a {prefix}predictors.{max(numbers)} and no {prefix}predictors.{gap}")
    first = _matrix(own, prefix, "predictors.0.0.weight")
    hidden, features = first.shape
    similar = own.get("similar_conv.weight")
    groups = 1
    if similar is not None:
        if similar.dim() != 4 or similar.shape[1] < 1 or in_channels % similar.shape[1]:
            raise ValueError(
                f"{prefix}similar_conv.weight must be (outputs, inputs, kh, kw) for in_channels={in_channels}, "
                f"got {tuple(similar.shape)}"
            )
        groups, own_size = in_channels // similar.shape[1], tuple(similar.shape[2:])
        if kernel_size is not None and per_axis(kernel_size, 2, "kernel_size") != own_size:
            raise ValueError(f"kernel_size is {kernel_size}, and {prefix}similar_conv.weight has {own_size}")
        kernel_size = own_size
    if kernel_size is None:
        side = math.isqrt(features // in_channels)
        if side * side * in_channels != features:
            raise ValueError(
                f"patches have {features} numbers ({prefix}predictors.0.0.weight {tuple(first.shape)}), "
                f"which is no square kernel of in_channels={in_channels}: give kernel_size="
            )
        kernel_size = side
    window = per_axis(kernel_size, 2, "kernel_size")
    needed = in_channels // groups * math.prod(window)
    if needed != features:
        raise ValueError(
            f"a kernel of {window} over {in_channels // groups} channels has {needed} numbers, and "
            f"{prefix}predictors.0.0.weight {tuple(first.shape)} has patches of {features}"
        )
    bias = "similar_conv.bias" in own
    return PublishedSizes(outputs, hidden, window, groups, similar is not None, bias, first.device, first.dtype)


def _matrix(own: Mapping[str, Tensor], prefix: str, name: str) -> Tensor:
    value = own.get(name)
    if value is None:
        raise ValueError(f"{prefix}{name} is missing")
    if value.dim() != 2 or not value.numel():
        raise ValueError(f"{prefix}{name} must be a matrix, got {tuple(value.shape)}")
    return value
