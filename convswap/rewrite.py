"""Carrying out a plan: building the new layers and putting them in the convolutions' places."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .conv_classes import CONVS, plain_conv
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
    # Weights that are to be trained must not become inference tensors, nor be fitted in half precision.
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(untouched_randomness())  # for layers that draw from the global generator all the same
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
            _take_over_attributes(conv, layers[id(conv)])
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
        with torch.inference_mode(False):
            copied: nn.Module = copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be deep-copied ({type(error).__name__}: {error}). Remove what cannot be "
            "copied from the model's attributes first."
        ) from error
    _check_copy(model, copied, layers)
    return copied


def _check_copy(model: nn.Module, copied: nn.Module, layers: dict[int, nn.Module]) -> None:
    """Make sure that the new layers are where they should be, and that every part is in the mode it was in.

    Parts with a ``__deepcopy__`` of their own may have rebuilt what is in them, and graph modules forget their mode.

    Raises:
        ModelError: if a convolution is still there.
    """
    for name, module in model.named_modules(remove_duplicate=False):
        try:
            part = copied.get_submodule(name)
        except AttributeError:
            part = None
        if id(module) in layers and part is not layers[id(module)]:
            raise ModelError(
                f"{name!r} is still a convolution in the copy, because a module around it copies itself in its own way "
                "(__deepcopy__): use convert_ on a copy of yours"
            )
        if id(module) in layers:
            layers[id(module)].train(module.training)
        elif part is not None:
            part.training = module.training


def _take_over_attributes(conv: nn.Module, layer: nn.Module) -> None:
    """Give ``layer`` what others have noted on the convolution: attributes that torch's own do not have."""
    if type(conv) not in CONVS:
        return
    for name, value in conv.__dict__.items():
        if name not in _CONV_ATTRIBUTES and not hasattr(layer, name):
            layer.__dict__[name] = value


_CONV_ATTRIBUTES = frozenset(nn.Conv2d(1, 1, 1, device="meta").__dict__)


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
