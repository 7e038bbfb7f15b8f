"""Turning layers back into plain convolutions, which compute the same for every input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .attention_batches import Batches, BatchRunner, Moments, watching, watching_attentions
from .carried_report import attach_report
from .errors import ConvswapError, NothingToSwapError, OptionError
from .formatting import shorten
from .freeze_reasons import reason_against, reason_in_itself
from .freeze_report import Distance, FreezeMode, Freezing, FrozenLayer, KeptLayer
from .frozen_report import with_freezing
from .layers import ConvLayer, DclsLayer
from .layers._geometry import is_channels_last
from .layers.attended import AttendedConv
from .modules import evaluation_mode
from .refusals import refuse_wrapped
from .rewrite import copy_with, take_over_attributes
from .sites import ConvSite
from .where import Where, matching


def freeze(model: nn.Module, data: Batches = None, *, mode: FreezeMode = "exact", where: Where = "*") -> nn.Module:
    """Turn layers of a copy of ``model`` into plain convolutions.

    Those whose kernel does not depend on the input keep their function: DCLS layers become their dense kernels, and
    padding-free ones, where no padding mode of torch's is the same, a convolution with an explicit pad in front. Those
    that mix kernels by attention (dynamic, CondConv, ODConv) become, with ``mode="mean"``, what they are at the mean
    attention over ``data``, which is close where their attention varies little. How close is measured on the same data,
    for each layer fed what it got, and at the model's output: `report` tells. The result can be saved, loaded and
    converted again.

    Args:
        model: any module with such layers; left as it is.
        data: one tensor, or an iterable of batches as `attention_statistics` takes them, which is gone through twice.
            With ``mode="exact"`` it is only used to measure.
        mode: ``"exact"`` leaves alone what depends on the input.
        where: which layers: a glob on the qualified name, ``re:…``, ``!…`` to exclude, a function of a `ConvSite`
            (whose ``module`` is the layer), or a list of these.

    Raises:
        NothingToSwapError: if no layer can be frozen, with the reasons.
        ConvswapError: if ``mode="mean"`` lacks data, or the model does not run on it.
        OptionError: for another mode.
        PatternError: if a pattern matches no layer.
        ModelError: if the model is wrapped, compiled or scripted, or cannot be copied.
    """
    if mode not in ("exact", "mean"):
        raise OptionError(f"mode must be 'exact' or 'mean', got {mode!r}")
    refuse_wrapped(model)
    chosen = _chosen(model, where)
    attended = {name: layer for name, layer in chosen.items() if isinstance(layer, AttendedConv)}
    runner = None if data is None else BatchRunner(model, data)
    means: dict[str, dict[str, Tensor]] = {}
    if mode == "mean" and attended:
        if runner is None:
            raise ConvswapError(
                "the mode 'mean' takes the mean attention over data: give some "
                f"({', '.join(list(attended)[:3])} attend to their input)"
            )
        means = _mean_attentions(runner, attended)
    kept = tuple(
        KeptLayer(name, type(layer).__name__, reason)
        for name, layer in chosen.items()
        if (reason := reason_against(name, layer, mode, means)) is not None
    )
    layers = {name: chosen[name] for name in chosen if name not in {layer.name for layer in kept}}
    if not layers:
        lines = "".join(f"\n  {layer.name or 'the model'}: {layer.reason}" for layer in kept[:8])
        raise NothingToSwapError(f"nothing to freeze: {type(model).__name__} has no layer that can be{lines}")
    frozen, convs = freeze_layers(model, layers, means)
    errors, at_output = ({}, None) if runner is None else _measured(runner, frozen, layers, convs)
    told = tuple(
        FrozenLayer(name, type(layer).__name__, fidelity_of(layer), errors.get(name)) for name, layer in layers.items()
    )
    freezing = Freezing(mode, told, kept, at_output, 0 if runner is None else runner.samples)
    attach_report(frozen, with_freezing(model, layers, convs, freezing))
    return frozen


def freeze_as_they_are(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """``model`` itself, or if there are names a copy where these layers are frozen, without data.

    Raises:
        ConvswapError: if one is no layer that can be frozen.
    """
    if not names:
        return model
    layers = {name: freezable(model, name) for name in names}
    frozen, convs = freeze_layers(model, layers, {})
    told = tuple(FrozenLayer(name, type(layer).__name__, fidelity_of(layer), None) for name, layer in layers.items())
    attended = any(isinstance(layer, AttendedConv) for layer in layers.values())
    freezing = Freezing("mean" if attended else "exact", told, (), None, 0)
    attach_report(frozen, with_freezing(model, layers, convs, freezing))
    return frozen


def freezable(model: nn.Module, name: str) -> nn.Module:
    """The layer of this name.

    Raises:
        ConvswapError: if it is none that can be.
    """
    layer: nn.Module | None = dict(model.named_modules()).get(name)
    if layer is None:
        raise ConvswapError(f"the recipe freezes {name!r}, which is not there")
    reason = reason_in_itself(layer)
    if reason is not None:
        raise ConvswapError(f"the recipe freezes {name!r}, which is a {type(layer).__name__}: {reason}")
    return layer


def refuse_unknown_means(model: nn.Module, names: Sequence[str]) -> None:
    """Make sure that no layer of ``model`` of these names would have to be frozen at a mean attention.

    Raises:
        ConvswapError: naming one that would, or that cannot be frozen.
    """
    attended = [name for name in names if isinstance(freezable(model, name), AttendedConv)]
    if attended:
        raise ConvswapError(
            f"the recipe freezes {shorten(attended)} of the architecture's own at a mean attention, which is not in "
            "it: freeze(model, data, mode='mean') finds that anew, and files of frozen models hold the result"
        )


def freeze_layers(
    model: nn.Module, layers: Mapping[str, nn.Module], means: Mapping[str, Mapping[str, Tensor]]
) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of ``model`` where ``layers``, by name, are plain convolutions, and these.

    Args:
        model: the model.
        layers: of it.
        means: attentions of those that attend to kernels; of those that are left out, at zero logits.
    """
    convs = {name: plain_layer(layer, means.get(name)) for name, layer in layers.items()}
    _tie(layers, convs)
    for dim, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        of_dim = [conv for conv in convs.values() if conv.weight.dim() == dim]
        if of_dim and _is_channels_last(model, layers, dim):
            for conv in of_dim:
                conv.to(memory_format=memory_format)
    return copy_with(model, {id(layers[name]): conv for name, conv in convs.items()}), convs


def plain_layer(layer: Any, attentions: Mapping[str, Tensor] | None = None) -> Any:
    """The convolution that ``layer`` freezes to, with what others have noted on the layer."""
    conv = layer.freeze() if attentions is None else layer.freeze(attentions)
    take_over_attributes(layer, conv)
    return conv


def fidelity_of(layer: nn.Module) -> Any:
    """What freezing it promises."""
    return "approximate" if isinstance(layer, AttendedConv) else "exact"


def _chosen(model: nn.Module, where: Where) -> dict[str, ConvLayer]:
    """The layers of ours that ``where`` chooses, by their first names; those that are parts of others left out.

    Raises:
        NothingToSwapError: if there are none at all.
    """
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ConvLayer):
            names.setdefault(id(module), []).append(name)
    found: dict[str, ConvLayer] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{owner}.") or (name and not owner) for owner in found)
        if isinstance(module, ConvLayer) and not inside:
            found[name] = module
    if not found:
        raise NothingToSwapError(f"nothing to freeze: {type(model).__name__} has no layer of convswap's")
    sites = [
        ConvSite(name, layer, index, aliases=tuple(other for other in names[id(layer)] if other != name))  # type: ignore[arg-type]
        for index, (name, layer) in enumerate(found.items())
    ]
    wanted = matching(where, sites)
    return {name: layer for name, layer in found.items() if name in wanted}


def _mean_attentions(runner: BatchRunner, layers: Mapping[str, AttendedConv]) -> dict[str, dict[str, Tensor]]:
    """The mean of each attention over all samples and calls, of the layers that the data reaches.

    Raises:
        ConvswapError: if one is not finite.
    """
    moments: dict[str, dict[str, Moments]] = {}

    def note(name: str, _: tuple[int, ...], attentions: Mapping[str, Tensor]) -> None:
        for what, value in attentions.items():
            moments.setdefault(name, {}).setdefault(what, Moments()).add(value)

    with watching_attentions(runner, layers, note):
        runner.run()
    return {name: {what: found.mean for what, found in of_layer.items()} for name, of_layer in moments.items()}


def _measured(
    runner: BatchRunner, frozen: nn.Module, layers: Mapping[str, nn.Module], convs: Mapping[str, nn.Module]
) -> tuple[dict[str, Distance], Distance]:
    """How far each frozen layer is from the layer it was, and the model's output from what it was."""
    distances: dict[str, _Distances] = {}
    at_output = _Distances()

    def compare(name: str, input: Tensor, output: Tensor) -> None:
        if output.numel():
            distances.setdefault(name, _Distances()).add(output, convs[name](input))

    def each(call: Any, output: Any) -> None:
        torch.set_rng_state(runner.random_state)  # both see the same random numbers, if they draw any
        try:
            actual = frozen(*call[0], **call[1])
        except Exception as error:  # whatever the code around the layers raises
            raise ConvswapError(
                f"the code around a layer does not work with the convolution that it was frozen to: {error}"
            ) from error
        for one, other in zip(tree_leaves(output), tree_leaves(actual), strict=True):
            if isinstance(one, Tensor) and one.is_floating_point():
                at_output.add(one, other)

    with evaluation_mode(frozen), watching(layers, compare):
        runner.run(each)
    return {name: found.result() for name, found in distances.items()}, at_output.result()


class _Distances:
    """Adds up how far tensors are from others, batch by batch."""

    def __init__(self) -> None:
        self.greatest = self.magnitude = self.differences = self.values = 0.0

    def add(self, expected: Tensor, actual: Tensor) -> None:
        if expected.shape != actual.shape:
            self.greatest = self.differences = math.inf
            return
        if not expected.numel():
            return
        wide = torch.promote_types(expected.dtype, torch.float32)
        finite = expected.isfinite()  # where it overflows there is nothing to compare with
        expected, actual = (torch.where(finite, value, 0).to(wide) for value in (expected, actual))
        difference = (actual - expected).nan_to_num(nan=math.inf)
        self.greatest = max(self.greatest, difference.abs().max().item())
        self.magnitude = max(self.magnitude, expected.abs().max().item())
        self.differences = math.hypot(self.differences, difference.norm().item())
        self.values = math.hypot(self.values, expected.norm().item())

    def result(self) -> Distance:
        return Distance(
            self.greatest / self.magnitude if self.magnitude else self.greatest,
            self.differences / self.values if self.values else self.differences,
        )


def _tie(layers: Mapping[str, nn.Module], convs: Mapping[str, Any]) -> None:
    """Let convolutions share the parameters that are the same for all whose layers shared what they were made of."""
    first: dict[int, nn.Parameter] = {}
    for name, layer in layers.items():
        for kind in ("weight", "bias"):
            held, made = layer._parameters.get(kind), getattr(convs[name], kind)
            if held is None or made is None:
                continue
            shared = first.setdefault(id(held), made)
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
