"""Attention over kernels: the small net of a dynamic convolution that weighs its kernels for each sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KernelAttention(nn.Module):
    """``softmax(fc2(relu(fc1(mean of x over space))) / temperature)`` (Chen et al. 2020, arXiv 1912.03458, eq. 3).

    Shape: x (B, C, *size) to (B, kernels).

    Args:
        in_channels: C.
        kernels: number of kernels to weigh.
        hidden: width of the hidden layer.
        dims: number of spatial axes of x.
        temperature: divisor of the logits, kept as a buffer. High values make the weights nearly uniform.

    Half of the hidden units start as the negatives of the others, so that for every input some unit is alive: of a few
    independent ones, all fed with the non-negative means that follow a ReLU, often none is.
    """

    temperature: Tensor

    def __init__(
        self,
        in_channels: int,
        kernels: int,
        hidden: int,
        dims: int,
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.axes = tuple(range(-dims, 0))
        self.fc1 = nn.Linear(in_channels, hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, kernels, device=device, dtype=dtype)
        self.register_buffer("temperature", torch.full((), temperature, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights: uniform within one over the root of the fan-in, as ``nn.Linear`` does."""
        for linear in (self.fc1, self.fc2):
            bound = linear.in_features**-0.5
            for parameter in (linear.weight, linear.bias):
                if not parameter.is_meta:
                    start = torch.empty(parameter.shape, dtype=torch.float32, device="cpu").uniform_(
                        -bound, bound, generator=generator
                    )
                    with torch.no_grad():
                        parameter.copy_(start)
        half = self.fc1.out_features // 2
        with torch.no_grad():
            for parameter in (self.fc1.weight, self.fc1.bias):
                parameter[half : 2 * half] = -parameter[:half]

    def make_uniform(self) -> None:
        """Zero the last layer: every kernel then has weight 1 / kernels, whatever the input and the temperature."""
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.fc2(F.relu(self.fc1(x.mean(self.axes))))
        return torch.softmax(logits / self.temperature, dim=-1)

    def extra_repr(self) -> str:
        return f"kernels={self.fc2.out_features}"
