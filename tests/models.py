"""Models for the tests: small ones of our own, and library ones with the statistics of trained weights."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torchvision
from torch import Tensor, nn


class TwoConvs(nn.Sequential):
    """conv → norm → ReLU → conv → pool → linear."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.head = nn.Linear(channels, 5)


def library_model(name: str, **args: Any) -> nn.Module:
    """``torchvision:<name>`` or ``timm:<name>`` with random weights that look trained."""
    library, _, model = name.partition(":")
    torch.manual_seed(0)
    if library == "torchvision":
        built: nn.Module = torchvision.models.get_model(model, weights=None, **args)
    else:
        built = importlib.import_module("timm").create_model(model, pretrained=False, **args)
    return as_if_trained(built)


@torch.no_grad()
def as_if_trained(model: nn.Module) -> nn.Module:
    """Give norms, biases and layer scales ordinary values: libraries start some at 0, which blocks all gradients."""
    for name, parameter in model.named_parameters():
        if parameter.dim() <= 1 or "scale" in name or "gamma" in name:
            start = 0.0 if name.endswith("bias") else 1.0
            nn.init.normal_(parameter, start, 0.1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def without_randomness(model: nn.Module) -> nn.Module:
    """Dropout and drop-path at 0, so that training mode is a function."""
    for module in model.modules():
        for attribute in ("p", "drop_prob", "drop_rate"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    return model


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Greatest difference over greatest magnitude."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()
