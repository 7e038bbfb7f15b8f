"""Carrying out a plan: building the new layers and putting them in the convolutions' places."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .conv_classes import plain_conv
from .errors import ConvswapError, ModelError
from .plan import Step
from .targets import get_target
from .throwaway import untouched_randomness


def build_layers(steps: Iterable[Step], seed: int | Mapping[str, int]) -> dict[int, nn.Module]:
    """The new layers of the steps that swap, by the identity of the convolution that each takes the place of.

    A layer's random start depends on the seed (one for all, or by name) and its name alone: not on the device, the rank
    or the other steps.

    Raises:
        ConvswapError: if a target's ``build`` fails, naming the convolution.
    """
    layers: dict[int, nn.Module] = {}
    swaps = [step for step in steps if step.action == "swap"]
    with untouched_randomness():  # for layers that draw from the global generator all the same
        for step in swaps:
            name, conv = step.site.name, step.site.module
            own_seed = _layer_seed(seed if isinstance(seed, int) else seed[name], name)
            generator = torch.Generator().manual_seed(own_seed)
            _seed_global_generators(own_seed)
            try:
                layer = get_target(str(step.target)).build(plain_conv(conv), step.options, generator)
            except (ValueError, RuntimeError) as error:  # of torch, also for lack of memory
                raise ConvswapError(f"{name or 'the model'} cannot be converted to {step.target}: {error}") from error
            layers[id(conv)] = _apart_from(conv, layer).train(conv.training)
    _tie(swaps, layers)
    return layers


def copy_with(model: nn.Module, layers: dict[int, nn.Module]) -> nn.Module:
    """A deep copy of ``model`` that has ``layers`` in place of convolutions, whose weights are not copied.

    Raises:
        ModelError: if the model cannot be deep-copied.
    """
    memo: dict[int, Any] = dict(layers)
    for module in model.modules():
        for value in module.__dict__.values():
            if isinstance(value, Tensor) and not value.is_leaf:  # a result kept from some forward pass
                memo[id(value)] = value.detach().clone()
    try:
        copied: nn.Module = copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be deep-copied ({type(error).__name__}: {error}). convert_ converts it in "
            "place, without a copy of it."
        ) from error
    return copied


def put_in_place(model: nn.Module, layers: dict[int, nn.Module]) -> None:
    """Put ``layers`` in place of the convolutions of ``model`` itself.

    Raises:
        ModelError: if the model is itself a convolution to be replaced.
    """
    if id(model) in layers:
        raise ModelError("the model is itself a convolution and cannot replace itself: use new = convert(model, ...)")
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if id(child) in layers:
                module._modules[name] = layers[id(child)]
        for name, value in module.__dict__.items():
            if name not in _MODULE_STATE:
                module.__dict__[name] = _replace_inside(value, layers)


_MODULE_STATE = frozenset(nn.Module().__dict__)


def _replace_inside(value: Any, layers: dict[int, nn.Module]) -> Any:
    """``value`` with the convolutions replaced that it refers to directly or from within lists, tuples and dicts."""
    if id(value) in layers:
        return layers[id(value)]
    if type(value) is list:
        value[:] = [_replace_inside(item, layers) for item in value]
    elif type(value) is dict:
        value.update({key: _replace_inside(item, layers) for key, item in value.items()})
    elif type(value) is tuple:
        items = tuple(_replace_inside(item, layers) for item in value)
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    return value


def _tie(swaps: list[Step], layers: dict[int, nn.Module]) -> None:
    """Let layers share the parameters that were carried over from a shared parameter."""
    first: dict[int, nn.Parameter] = {}
    for step in swaps:
        layer = layers[id(step.site.module)]
        for name, parameter in step.site.module._parameters.items():
            carried = layer._parameters.get(name)
            if parameter is None or carried is None:
                continue
            shared = first.setdefault(id(parameter), carried)
            if shared is not carried:
                layer._parameters[name] = shared


def _apart_from(conv: nn.Module, layer: nn.Module) -> nn.Module:
    """``layer``, or a copy if it holds on to tensors of ``conv``, which belong to the original model."""
    originals = {id(tensor) for tensor in (*conv.parameters(), *conv.buffers())}
    holds = any(id(tensor) in originals for tensor in (*layer.parameters(), *layer.buffers()))
    return copy.deepcopy(layer) if holds else layer


def _layer_seed(seed: int, name: str) -> int:
    return zlib.crc32(f"{seed} {name}".encode())  # of a seed, torch's CPU generator uses 32 bits


def _seed_global_generators(seed: int) -> None:
    """Seed them without the queued call that ``torch.manual_seed`` leaves behind for a CUDA that is not in use yet."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
