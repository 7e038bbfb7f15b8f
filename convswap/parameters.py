"""Telling apart the parameters that a conversion added from those that it carried over."""

from __future__ import annotations

from torch import nn

from .layers import ConvLayer


def new_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of ``model`` that plain convolutions do not have, by qualified name.

    To train those alone: ``model.requires_grad_(False)``, then set ``requires_grad`` on these again.
    """
    return {
        f"{name}.{own}" if name else own: parameter
        for name, module in model.named_modules()
        if isinstance(module, ConvLayer)
        for own, parameter in module.new_parameters().items()
    }
