"""The inputs that a model has got in addition to those of its class, because they guide layers of it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConvswapError
from .generated_forward import further_inputs
from .guide_nodes import further_input
from .layers.hypernet_conv import HypernetConv2d

Call = tuple[tuple[Any, ...], dict[str, Any]]


def with_further_inputs(model: nn.Module, call: Call, generator: torch.Generator | None = None) -> Call:
    """``call`` with a standard normal tensor for every further input that it lacks.

    Each has the channels that its layers want, and the batch and size of the first tensor in ``call``.
    """
    args, kwargs = call
    missing = [name for name in further_inputs(model) if name not in _bound(model, call)]
    if not missing:
        return call
    like = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    if like is None or like.dim() < 3:
        return call
    drawn = {}
    for name in missing:
        size = (like.shape[0], _channels(model, name), *like.shape[2:])
        if like.is_meta:
            drawn[name] = like.new_empty(size)
        else:
            drawn[name] = torch.randn(size, generator=generator, device="cpu").to(like)
    return args, {**kwargs, **drawn}


def without_further_inputs(model: nn.Module, call: Call, original: nn.Module) -> Call:
    """``call`` of a guided ``model`` as its ``original`` takes it, which has not all of the further inputs."""
    names = set(further_inputs(model)) - set(further_inputs(original))
    bound = _bound(model, call)
    if not any(name in bound for name in names):
        return call
    return (), {name: value for name, value in bound.items() if name not in names}


def _bound(model: nn.Module, call: Call) -> dict[str, Any]:
    """The arguments of ``call`` by name, as far as they fit."""
    args, kwargs = call
    try:
        return dict(inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments)
    except TypeError as error:
        raise ConvswapError(f"{type(model).__name__} does not take this input: {error}") from error


def _channels(model: nn.Module, name: str) -> int:
    for module in model.modules():
        if isinstance(module, HypernetConv2d) and module.guide is not None and further_input(module.guide) == name:
            return int(module.guide_channels)
    raise ConvswapError(f"nothing in {type(model).__name__} reads its input {name!r}")
