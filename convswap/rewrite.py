"""Carrying out a plan: building the new layers and putting them in the convolutions' places."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .conv_classes import CONVS, plain_conv
from .decisions import placement
from .errors import ConvswapError, ModelError
from .formatting import shorten
from .freeze_reasons import reason_in_itself
from .layers import ConvLayer, GuidedConv2d, HypernetConv2d, PatchDynamicConv2d
from .plan import Step
from .revert_reasons import reverted_or_reason
from .targets import get_target
from .throwaway import untouched_randomness


def build_layers(
    steps: Iterable[Step], seed: int | Mapping[str, int], outlines: Mapping[str, nn.Module] | None = None
) -> dict[int, nn.Module]:
    """The new layers of the steps that swap, by the identity of the convolution that each takes the place of.

    A layer's random start depends on the seed (one for all, or by name) and its name, or its group's name, alone: not
    on the device, the rank or the other steps.

    Of the names in ``outlines`` it is what there is.

    Raises:
        ConvswapError: if a target's ``build`` fails, naming the convolution.
    """
    layers: dict[int, nn.Module] = {}
    swaps = [step for step in steps if step.action == "swap"]
    made_before = outlines or {}
    layers.update(
        {id(step.site.module): made_before[step.site.name] for step in swaps if step.site.name in made_before}
    )
    # Weights that are to be trained must not become inference tensors, nor be fitted in half precision.
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(untouched_randomness())  # for layers that draw from the global generator all the same
        for group in _groups([step for step in swaps if step.site.name not in made_before]):
            seed_of_group = seed if isinstance(seed, int) else seed[group[0].site.name]
            convs = [step.site.module for step in group]
            made = _apart_from(convs, _build(group, _layer_seed(seed_of_group, group[0].group or group[0].site.name)))
            for conv, layer in zip(convs, made, strict=True):
                layers[id(conv)] = layer.train(conv.training)
                take_over_attributes(conv, layer)
    _tie(swaps, layers)
    return layers


def plain_outline(step: Step, reverted: bool) -> nn.Module:
    """The convolution that the layer of a step freezes or reverts to, on the meta device.

    Raises:
        ConvswapError: if the layer does not.
    """
    layer: Any = get_target(str(step.target)).build(step.site.plain, step.options, None)
    conv, reason = reverted_or_reason(layer) if reverted else (None, reason_in_itself(layer))
    if reason is not None:
        done = "reverted" if reverted else "frozen"
        raise ConvswapError(
            f"{step.site.name} is said to be {done}, which a layer of the target {step.target!r} cannot be: {reason}"
        )
    if conv is None:
        conv = layer.freeze()
    take_over_attributes(step.site.module, conv)
    return conv.train(step.site.module.training)


def _groups(swaps: Iterable[Step]) -> list[list[Step]]:
    """The steps whose layers are built together; where a model's parts are on several devices, for each of them."""
    groups: dict[Any, list[Step]] = {}
    for step in swaps:
        key: Any = step.site.name if step.group is None else (step.target, step.group, placement(step.site))
        groups.setdefault(key, []).append(step)
    return list(groups.values())


def _build(group: list[Step], seed: int) -> Sequence[nn.Module]:
    """The layers of steps that are built together.

    Raises:
        ConvswapError: if that fails, or the steps have not the same options.
    """
    first, target = group[0], get_target(str(group[0].target))
    names = shorten([step.site.name or "the model" for step in group])
    if any(step.options != first.options for step in group):
        raise ConvswapError(f"{names} are to share parameters, and have not the same options")
    generator = torch.Generator().manual_seed(seed)
    _seed_global_generators(seed)
    try:
        convs = [plain_conv(step.site.module) for step in group]
        if first.group is None:
            return [target.build(convs[0], first.options, generator)]
        return target.build_group(convs, first.options, generator)
    except (ValueError, RuntimeError) as error:  # of torch, also for lack of memory
        raise ConvswapError(f"{names} cannot be converted to {first.target}: {error}") from error


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


def take_over_attributes(old: nn.Module, new: nn.Module) -> None:
    """Give ``new`` what others have noted on the convolution or layer: attributes that its class does not set."""
    kind: Any = type(old)
    own = _own_attributes(kind)
    if own is None:
        return
    for name, value in old.__dict__.items():
        if name not in own and not hasattr(new, name) and not hasattr(kind, name):
            new.__dict__[name] = value


@cache
def _own_attributes(kind: Any) -> frozenset[str] | None:
    """The names of the attributes that a class of torch's convolutions, or of our layers, sets; None of others."""
    if kind not in CONVS and not issubclass(kind, ConvLayer):
        return None
    try:
        if issubclass(kind, HypernetConv2d):
            return frozenset(GuidedConv2d.from_conv(nn.Conv2d(1, 1, 1, device="meta")).__dict__)
        return frozenset(kind(1, 1, 1, device="meta").__dict__)
    except (TypeError, ValueError):
        return None


def _tie(swaps: list[Step], layers: dict[int, nn.Module]) -> None:
    """Let layers share the parameters that were carried over from a shared parameter."""
    first: dict[tuple[int, int], nn.Parameter | None] = {}
    for step in swaps:
        layer = layers[id(step.site.module)]
        for name, parameter in step.site.module._parameters.items():
            if parameter is None:
                continue
            for place, (module, own_name) in enumerate(carried_by(layer, name)):
                carried = module._parameters[own_name]
                shared = first.setdefault((id(parameter), place), carried)
                if shared is not carried and (shared is None or carried is None or shared.shape == carried.shape):
                    module._parameters[own_name] = shared


def carried_by(layer: nn.Module, name: str) -> tuple[tuple[nn.Module, str], ...]:
    """The modules that hold what was carried over from a convolution's parameter of this name, and its names there."""
    if isinstance(layer, HypernetConv2d | PatchDynamicConv2d):
        return layer.carried_parameters().get(name, ())
    return ((layer, name),) if layer._parameters.get(name) is not None else ()


def _apart_from(convs: Sequence[nn.Module], layers: Sequence[nn.Module]) -> Sequence[nn.Module]:
    """``layers``, or copies if one holds on to tensors of ``convs``, which belong to the original model."""
    originals = _tensors(convs)
    return copy.deepcopy(layers) if originals & _tensors(layers) else layers


def _tensors(modules: Iterable[nn.Module]) -> set[int]:
    return {id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}


def _layer_seed(seed: int, name: str) -> int:
    return zlib.crc32(f"{seed} {name}".encode())  # of a seed, torch's CPU generator uses 32 bits


def _seed_global_generators(seed: int) -> None:
    """Seed them without the queued call that ``torch.manual_seed`` leaves behind for a CUDA that is not in use yet."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
