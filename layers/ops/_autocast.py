"""What autocast does to the tensors of a convolution."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_like_conv(value: Tensor) -> Tensor:
    """``value`` in the dtype that autocast gives to the arguments of a convolution; as it is where there is none."""
    if value.is_meta or value.dtype == torch.float64 or not value.is_floating_point():
        return value
    if not torch.is_autocast_enabled(value.device.type):
        return value
    return value.to(torch.get_autocast_dtype(value.device.type))
