"""An identity whose gradients are always finite numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._exporting import is_exporting


class _FiniteGradients(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if grad is None else grad.nan_to_num() for grad in grads)


def with_finite_gradients(*values: Tensor) -> tuple[Tensor, ...]:
    """``values``, to which infinite gradients flow as the largest finite number of their dtype, and NaN as 0.

    Derivatives in forward mode, and backward passes within it, are as they are.
    """
    # What is exported needs no gradient; a Function that has a rule for forward mode is none that torch.compile takes.
    if not torch.is_grad_enabled() or is_exporting() or forward_ad._current_level >= 0:
        return values
    guarded: tuple[Tensor, ...] = _FiniteGradients.apply(*values)
    return guarded
