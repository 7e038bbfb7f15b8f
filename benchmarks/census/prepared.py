"""Models that can be compared: like trained ones, without randomness, and in double precision throughout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SEED = 0
"""Of what is drawn: weights, samples, random starts."""

_RATES = ("p", "prob", "drop", "drop_path", "drop_path_rate", "drop_prob", "drop_rate", "dropout", "patch_drop_rate")
"""What torch, torchvision and timm call the rates of dropout, drop-path, drop-block and patch dropout."""


@torch.no_grad()
def as_if_trained(model: nn.Module) -> nn.Module:
    """Give norms, biases and layer scales ordinary values: libraries start some at 0, which hides what comes before."""
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.named_parameters():
        if parameter.dim() <= 1 or "scale" in name or "gamma" in name:
            parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.1, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_(0, 0.1, generator=generator)
            if module.running_var is not None:
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def without_randomness(model: nn.Module) -> nn.Module:
    """All rates of dropout, drop-path and their like at 0."""
    for module in model.modules():
        for rate in _RATES:
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return model


@contextmanager
def in_double() -> Iterator[None]:
    """Code that asks for single precision gets double: models cast what must not overflow or be rounded in half."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _SingleIsDouble():
            yield
    finally:
        torch.set_default_dtype(default)


class _SingleIsDouble(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        given = {name: _double(value) for name, value in (kwargs or {}).items()}
        return func(*map(_double, args), **given)


def _double(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
