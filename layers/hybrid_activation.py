"""The functional form of the activation of hybrid dense layers."""

from __future__ import annotations

import torch
from torch import Tensor

from .ops._load import want_ops
from .ops.hybrid_activation import forward, hybrid_activation_ref

torch.fx.wrap("hybrid_activation")


def hybrid_activation(z: Tensor, muls: Tensor, powers: Tensor) -> Tensor:
    """Raise each channel to a power of its own (Keep-up-sharma, Dynamic-Layers, ``HybridDense``).

    ``h = muls (relu(z) + 1e-8)^clip(powers, -10, 10)``, where NaN becomes 0 and infinities the largest finite number of
    the dtype, and the result is ``copysign(h, z)``: only |muls| matters, and where z < 0 (almost) nothing of z passes.
    Where the result saturates its derivatives are 0, and in the backward pass those of first order are never infinite;
    in forward mode, under the transforms of ``torch.func`` and of higher order they may be. For the backward pass z
    alone is kept.

    Args:
        z: (N, C, *any), or (C). The result is channels_last where it is.
        muls, powers: (C); they are cast to the dtype of z, which is what autocast computes in.

    Returns:
        A tensor of the shape of z.

    Raises:
        ValueError: if the shapes do not fit together, or z has no floating-point numbers.
    """
    wide = z.unsqueeze(0) if z.dim() == 1 else z
    if wide.dim() < 2 or not z.is_floating_point():
        raise ValueError(f"z must be floating-point numbers (N, C, *any) or (C), got {z.dtype} {tuple(z.shape)}")
    for name, value in (("muls", muls), ("powers", powers)):
        if value.dim() != 1 or value.shape[0] != wide.shape[1]:
            raise ValueError(f"{name} must be ({wide.shape[1]},) for z {tuple(z.shape)}, got {tuple(value.shape)}")
    activate = forward if want_ops(wide) else hybrid_activation_ref
    y: Tensor = activate(wide, muls.to(z.dtype), powers.to(z.dtype))
    return y.squeeze(0) if z.dim() == 1 else y
