"""A dense layer with a learned power for each of its outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .finite_gradients import with_finite_gradients
from .hybrid_activation import hybrid_activation

torch.fx.wrap("hybrid_dense")


def hybrid_dense(input: Tensor, weight: Tensor, bias: Tensor | None, muls: Tensor, powers: Tensor) -> Tensor:
    """``hybrid_activation(input weight^T + bias, muls, powers)``.

    In the backward pass what overflows in the products of the linear layer is the largest finite number, and 0 where
    infinities of both signs meet.

    Args:
        input: (*any, in_features).
        weight: (out_features, in_features).
        bias: (out_features) or None.
        muls, powers: (out_features).

    Returns:
        (*any, out_features).
    """
    z = F.linear(*with_finite_gradients(input, weight, *(() if bias is None else (bias,))))
    rows = z if z.dim() == 1 else z.flatten(0, -2)
    return hybrid_activation(rows, muls, powers).reshape(z.shape)


class HybridDense(nn.Linear):
    """An ``nn.Linear`` whose outputs are each raised to a learned power (Keep-up-sharma, Dynamic-Layers).

    ``z = x W^T + b``, ``h = muls (relu(z) + 1e-8)^clip(powers, -10, 10)``, ``y = copysign(h, z)``, where a NaN in h
    becomes 0 and an infinity the largest finite number: see `convswap.layers.functional.hybrid_activation`. Gradients
    are finite, however great; a NaN that comes in reaches those of powers and muls alone.

    Shape: (*any, in_features) to (*any, out_features).

    Args:
        in_features, out_features, bias, device, dtype: as in ``nn.Linear``.

    Parameters:
        weight (out_features, in_features), bias (out_features) or None: as in ``nn.Linear``.
        powers, muls (out_features): start at 1, where y is relu(z), but for 1e-8.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.powers = nn.Parameter(torch.ones(out_features, device=device, dtype=dtype))
        self.muls = nn.Parameter(torch.ones(out_features, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Draw weight and bias as ``nn.Linear`` does, and set powers and muls to 1."""
        super().reset_parameters()
        for name in ("powers", "muls"):  # not there yet while the base class is made
            if name in self._parameters:
                nn.init.ones_(getattr(self, name))

    def forward(self, input: Tensor) -> Tensor:
        return hybrid_dense(input, self.weight, self.bias, self.muls, self.powers)
