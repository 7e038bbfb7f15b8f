"""The activation of hybrid dense layers: a power with a learned exponent and factor for each channel.

``h = muls (relu(z) + 1e-8)^clip(powers, -10, 10)``, NaN -> 0, infinities -> the largest finite number, and
``y = copysign(h, z)``. Half precision is computed in single.

Where the value saturates or is no number, its derivatives are 0. Elsewhere a derivative that is too great is the
largest finite number, and so are its product with a gradient and the sum of such products. For backward nothing but z
is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._exporting import is_exporting
from .._geometry import memory_format
from ._define import define

LEAST = 1e-8
"""Added to what a power is taken of."""

MOST_POWER = 10.0


def hybrid_activation_ref(z: Tensor, muls: Tensor, powers: Tensor) -> Tensor:
    """z (N, C, *any), muls and powers (C), to the shape of z."""
    most = torch.finfo(z.dtype).max
    wide, factor, power = _widened(z, muls, powers)
    base = wide.relu() + LEAST
    with torch.no_grad():
        size = factor.abs() * base**power
        fits = size <= most
        fixed = torch.full_like(size, most).masked_fill_(size.isnan(), 0)
        steep = fits & (wide > 0) & ((size * (power / base)).abs() > most)
    if torch.is_grad_enabled():  # where it is too steep, a straight line of the greatest slope takes its place
        size = factor.abs() * _raised(torch.where(steep, base.detach(), base), power, fits)
        size = size + torch.where(steep, wide - wide.detach(), 0) * (power.detach().sign() * most)
    value = torch.where(fits, size, fixed)
    if is_exporting():  # ONNX has no copysign
        negative = (wide < 0) | (1 / wide < 0)  # -0 as well
        return torch.where(negative, -value, value).to(z.dtype)
    return torch.copysign(value, wide).to(z.dtype)


def hybrid_activation_backward_ref(
    grad: Tensor, z: Tensor, muls: Tensor, powers: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients to z, muls and powers, from that to the activation, which has the shape of z."""
    most = torch.finfo(z.dtype).max
    wide, factor, power = _widened(z, muls, powers)
    g = grad.to(wide.dtype)
    base = wide.relu() + LEAST
    with torch.no_grad():
        fits = factor.abs() * base**power <= most
    raised = _raised(base, power, fits)
    base = torch.where(fits, base, 1)
    size, sign = factor.abs() * raised, torch.copysign(torch.ones_like(wide), wide)

    def times(derivative: Tensor, where: Tensor) -> Tensor:
        finite = torch.where(where, derivative, 0).nan_to_num(0).clamp(-most, most)
        return (g * finite).clamp(-most, most)

    axes = [i for i in range(z.dim()) if i != 1]
    inside = (powers.abs() <= MOST_POWER).view(power.shape)
    z_grad = times(size * (power / base), fits & (wide > 0)).to(z.dtype)
    muls_grad = _bounded_sum(times(sign * factor.sign() * raised, fits), axes, muls)
    powers_grad = _bounded_sum(times(sign * size * base.log(), fits & inside), axes, powers)
    return z_grad.contiguous(memory_format=memory_format(z)), muls_grad, powers_grad


def _widened(z: Tensor, muls: Tensor, powers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All in single precision at least, muls and the clipped powers to be combined with z."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    shape = (1, -1, *(1,) * (z.dim() - 2))
    power = powers.to(dtype)
    clipped = power.detach().clamp(
        -MOST_POWER, MOST_POWER
    )  # its derivative at the clips differs among versions of torch
    power = torch.where(power.abs() <= MOST_POWER, power, clipped)
    return z.to(dtype), muls.to(dtype).view(shape), power.view(shape)


def _raised(base: Tensor, power: Tensor, fits: Tensor) -> Tensor:
    """``base^power`` where that fits; elsewhere 1, lest its derivatives be infinite."""
    raised: Tensor = torch.where(fits, base, 1) ** power
    return raised


def _bounded_sum(value: Tensor, axes: list[int], like: Tensor) -> Tensor:
    """The sum over ``axes`` in the dtype of ``like``; one that is too large is the largest finite number."""
    most = torch.finfo(like.dtype).max
    scale = 2.0**-64 if value.dtype == torch.float64 else 1.0  # so that part of a sum is not infinite
    total = (value * scale).sum(axes, dtype=torch.float64) / scale
    return total.clamp(-most, most).to(like.dtype)


def _fake(z: Tensor, muls: Tensor, powers: Tensor) -> Tensor:
    return torch.empty(z.shape, dtype=z.dtype, device=z.device, memory_format=memory_format(z))


def _fake_backward(grad: Tensor, z: Tensor, muls: Tensor, powers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _fake(z, muls, powers), muls.new_empty(muls.shape), powers.new_empty(powers.shape)


def _flops(*_: Any, **__: Any) -> int:
    return 0  # torch counts matrix products and convolutions, of which there are none


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    gradients: tuple[Tensor, ...] = backward(g, *ctx.saved_tensors)
    return gradients


forward = define(
    "hybrid_activation(Tensor z, Tensor muls, Tensor powers) -> Tensor",
    hybrid_activation_ref,
    fake=_fake,
    flops=_flops,
    setup_context=_setup,
    backward=_backward,
)

backward = define(
    "hybrid_activation_backward(Tensor grad, Tensor z, Tensor muls, Tensor powers) -> (Tensor, Tensor, Tensor)",
    hybrid_activation_backward_ref,
    fake=_fake_backward,
    flops=_flops,
)
