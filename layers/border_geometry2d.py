"""The geometry of the convolutions with a border of their own that are there in two dimensions only."""

from __future__ import annotations

from torch import Tensor

from ._geometry import IntOrInts, Padding
from .border_geometry import BorderConv, resolve_border_conv


def resolve_border_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrInts,
    padding: Padding,
    dilation: IntOrInts,
    groups: int,
) -> BorderConv:
    """`resolve_border_conv` of input (B, C, H, W) or (C, H, W) with weight (O, C / groups, kh, kw).

    Raises:
        ValueError: for a weight of other axes, and as there.
    """
    if weight.dim() != 4:
        raise ValueError(f"weight must be (O, C / groups, kh, kw), got {tuple(weight.shape)}")
    return resolve_border_conv(input, weight, bias, stride, padding, dilation, groups)
