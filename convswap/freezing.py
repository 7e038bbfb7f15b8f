"""Turning layers back into plain convolutions, which compute the same for every input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .attention_batches import Batches, BatchRunner, Moments, watching_attentions
from .carried_report import attach_report
from .chosen_layers import chosen_layers, nothing_to
from .distances import Measured, measured
from .errors import ConvswapError, OptionError
from .formatting import shorten
from .freeze_reasons import reason_against, reason_in_itself
from .freeze_report import FreezeMode, Freezing, FrozenLayer
from .frozen_report import with_freezing
from .layers.attended import AttendedConv
from .plain_copies import copy_with_convs
from .plain_report import KeptLayer
from .refusals import refuse_wrapped
from .rewrite import take_over_attributes
from .where import Where


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
        where: which layers: a glob on the qualified name, ``re:…``, ``!…`` to exclude, a function of a `ConvSite`,
            or a list of these. Its ``module`` is the layer, which has the geometry (``kernel_size`` and so on); it has
            the names and ``kind`` too, but nothing from tracing (``calls`` is empty), and no ``plain``.

    Raises:
        NothingToSwapError: if no layer can be frozen, with the reasons.
        ConvswapError: if ``mode="mean"`` lacks data, or the model does not run on it.
        OptionError: for another mode.
        PatternError: if a pattern matches no layer.
        ModelError: if the model is wrapped, compiled or scripted, or cannot be copied.
    """
    if mode not in ("exact", "mean"):
        raise OptionError(f"mode must be 'exact' or 'mean', got {mode!r}")
    refuse_wrapped(model, averages=True)
    chosen = chosen_layers(model, where, "freeze")
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
        raise nothing_to("freeze", model, kept)
    frozen, convs = freeze_layers(model, layers, means)
    apart = Measured() if runner is None else measured(runner, model, frozen, layers, convs)
    told = tuple(
        FrozenLayer(name, type(layer).__name__, fidelity_of(layer), apart.layers.get(name))
        for name, layer in layers.items()
    )
    freezing = Freezing(mode, told, kept, apart.output, apart.samples)
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
    return copy_with_convs(model, layers, convs), convs


def plain_layer(layer: Any, attentions: Mapping[str, Tensor] | None = None) -> Any:
    """The convolution that ``layer`` freezes to, with what others have noted on the layer."""
    conv = layer.freeze() if attentions is None else layer.freeze(attentions)
    take_over_attributes(layer, conv)
    return conv


def fidelity_of(layer: nn.Module) -> Any:
    """What freezing it promises."""
    return "approximate" if isinstance(layer, AttendedConv) else "exact"


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
