"""Copies of models with plain convolutions in the places of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .layers import DclsLayer
from .layers._geometry import is_channels_last
from .rewrite import carried_by, copy_with


def copy_with_convs(model: nn.Module, layers: Mapping[str, nn.Module], convs: Mapping[str, Any]) -> nn.Module:
    """A copy of ``model`` with ``convs`` in the places of its ``layers``, by name.

    Convolutions whose layers share parameters share theirs if these are the same, and they have the memory format that
    the model's weights show.
    """
    fit_in(model, layers, convs)
    return copy_with(model, {id(layers[name]): conv for name, conv in convs.items()})


def fit_in(model: nn.Module, layers: Mapping[str, nn.Module], convs: Mapping[str, Any]) -> None:
    """Let ``convs`` share what they can, and have the memory format of ``model``; see `copy_with_convs`."""
    _tie(layers, convs)
    for dim, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        of_dim = [conv for conv in convs.values() if conv.weight.dim() == dim]
        if of_dim and _is_channels_last(model, layers, dim):
            for conv in of_dim:
                conv.to(memory_format=memory_format)


def _tie(layers: Mapping[str, nn.Module], convs: Mapping[str, Any]) -> None:
    """Let convolutions share the parameters that are the same for all whose layers shared what they were made of."""
    first: dict[tuple[int, ...], nn.Parameter] = {}
    for name, layer in layers.items():
        for kind in ("weight", "bias"):
            held, made = carried_by(layer, kind), getattr(convs[name], kind)
            if not held or made is None:
                continue
            shared = first.setdefault(tuple(id(module._parameters[own]) for module, own in held), made)
            if shared.shape == made.shape and not made.is_meta and torch.equal(shared, made):
                setattr(convs[name], kind, shared)


def _is_channels_last(model: nn.Module, layers: Mapping[str, nn.Module], dim: int) -> bool:
    """Whether all the model's weights of so many axes whose format shows are channels_last; False if none shows.

    Weights of DCLS layers are no images, and have no format of their own.
    """
    dcls = {
        id(parameter)
        for module in (*model.modules(), *layers.values())
        if isinstance(module, DclsLayer)
        for parameter in module.parameters()
    }
    weights = [p for p in model.parameters() if p.dim() == dim and id(p) not in dcls]
    showing = [p for p in weights if p.shape[1] > 1 and p[0, 0].numel() > 1]
    return bool(showing) and all(is_channels_last(p) for p in showing)
