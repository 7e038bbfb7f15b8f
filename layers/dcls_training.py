"""Training layers with learned positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .dcls_base import DclsLayer


def clamp_after_step(optimizer: torch.optim.Optimizer, model: nn.Module) -> RemovableHandle:
    """Clamp the positions of all DCLS layers of a model to their grids after each step of an optimiser.

    Layers are looked for at each step: those that come later are clamped as well.

    Returns:
        A handle whose ``remove()`` ends it.

    Raises:
        ValueError: if the model has no such layer.
    """
    if not any(isinstance(module, DclsLayer) for module in model.modules()):
        raise ValueError(f"there is no DCLS layer in this {type(model).__name__}, so no positions to clamp")

    def clamp(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for module in model.modules():
            if isinstance(module, DclsLayer):
                module.clamp_positions()

    return optimizer.register_step_post_hook(clamp)
