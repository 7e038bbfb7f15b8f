"""Undoing conversions: layers become the convolutions again that they were made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from torch import nn

from .attention_batches import Batches, BatchRunner
from .carried_report import attach_report, earlier_report
from .chosen_layers import chosen_layers, nothing_to
from .costs import parameters_of
from .distances import Measured, measured
from .errors import ConvswapError
from .frozen_report import with_reversion
from .layers.reverted import Lost
from .own_calls import own_calls
from .plain_report import KeptLayer
from .refusals import refuse_wrapped
from .report import Report
from .revert_copies import copy_with_reverted
from .revert_reasons import lost_by, reversion_of, reverted_or_reason
from .revert_report import Reversion, RevertedLayer
from .rewrite import take_over_attributes
from .where import Where


def revert(model: nn.Module, where: Where = "*", *, data: Batches = None) -> nn.Module:
    """Turn the layers that conversions put into a copy of ``model`` back into plain convolutions.

    They have the geometry of those that they were made from, padding mode included, and of the weights what the layers
    have now: the kernel at neutral attention; the part of generated and predicted kernels that is the same for all
    inputs; the taps of a DCLS kernel, if there is nothing beside them. So a layer that was not trained reverts to the
    convolution that it was made from, but for what the conversion itself could only approximate; and up to rounding
    (in float16 some 1e-4 of the weights) where a kernel is mixed or multiplied together from several. What is lost is
    in the `report`: in words, in parameters, and measured if there is data. `freeze` keeps the function instead.

    What is reverted can be saved, loaded and converted again. Where the last layer of a part that a guide was routed to
    is reverted, that part has its own class and ``forward`` back; further inputs that nothing is guided by are gone.
    A layer that the model's own code hands more than its input, such as a mask, is kept. Convolutions are channels_last
    where the weights that show a format are; those that guided layers hold may show none.

    Args:
        model: any module with such layers; left as it is.
        where: which layers: a glob on the qualified name, ``re:…``, ``!…`` to exclude, a function of a `ConvSite`,
            or a list of these. Its ``module`` is the layer, which has the geometry (``kernel_size`` and so on); it has
            the names and ``kind`` too, but nothing from tracing (``calls`` is empty), and no ``plain``.
        data: one tensor, or an iterable of batches as `attention_statistics` takes them, to measure on how far each
            convolution is from the layer that it was, and the model's output from what it was.

    Raises:
        NothingToSwapError: if no layer can be reverted, with the reasons.
        ConvswapError: if the model does not run on the data.
        PatternError: if a pattern matches no layer.
        ModelError: if the model is wrapped, compiled or scripted, or cannot be copied.
    """
    refuse_wrapped(model, averages=True)
    known = earlier_report(model)
    chosen = chosen_layers(model, where, "revert", _converted(known))
    calls = own_calls(model, chosen)
    found = {name: reversion_of(layer, calls.get(name)) for name, layer in chosen.items()}
    kept = tuple(
        KeptLayer(name, type(chosen[name]).__name__, reason)
        for name, reason in found.items()
        if isinstance(reason, str)
    )
    pairs = {name: pair for name, pair in found.items() if not isinstance(pair, str)}
    if not pairs:
        raise nothing_to("revert", model, kept)
    layers = {name: chosen[name] for name in pairs}
    convs = {name: conv for name, (conv, _) in pairs.items()}
    for name, layer in layers.items():
        take_over_attributes(layer, convs[name])
    made = copy_with_reverted(model, layers, convs)
    runner = None if data is None else BatchRunner(model, data)
    apart = Measured() if runner is None else measured(runner, model, made, layers, convs)
    told = _told(model, layers, convs, {name: lost for name, (_, lost) in pairs.items()}, known)
    told = tuple(replace(layer, error=apart.layers.get(layer.name)) for layer in told)
    reversion = Reversion(told, kept, apart.output, apart.samples)
    attach_report(made, with_reversion(model, layers, convs, reversion))
    return made


def revert_as_they_are(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """``model`` itself, or if there are names a copy where these layers are reverted, whatever is lost.

    Raises:
        ConvswapError: if one is no layer that can be reverted.
    """
    if not names:
        return model
    known = earlier_report(model)
    found = dict(zip(names, revertible(model, names), strict=True))
    layers = {name: layer for name, (layer, _, _) in found.items()}
    convs = {name: conv for name, (_, conv, _) in found.items()}
    made = copy_with_reverted(model, layers, convs)
    told = _told(model, layers, convs, {name: lost for name, (_, _, lost) in found.items()}, known)
    attach_report(made, with_reversion(model, layers, convs, Reversion(told, ())))
    return made


def revertible(model: nn.Module, names: Sequence[str]) -> list[tuple[nn.Module, nn.Module, Lost]]:
    """The layers of these names, the convolutions that they revert to, and what is lost.

    Raises:
        ConvswapError: if one is not there, or cannot be.
    """
    modules = dict(model.named_modules(remove_duplicate=False)) if names else {}
    calls = own_calls(model, {name: modules[name] for name in names if name in modules})
    found = []
    for name in names:
        layer = modules.get(name)
        if layer is None:
            raise ConvswapError(f"the recipe reverts {name!r}, which is not there")
        conv, reason = reverted_or_reason(layer, calls.get(name))
        if conv is None:
            raise ConvswapError(f"the recipe reverts {name!r}, which is a {type(layer).__name__}: {reason}")
        take_over_attributes(layer, conv)
        found.append((layer, conv, lost_by(layer, calls.get(name))))
    return found


def _converted(known: Report | None) -> Collection[str]:
    """Names of the layers that conversions have put there, whatever their classes."""
    last = {} if known is None else known.recipe.last()
    return {name for name, step in last.items() if step.target is not None and not step.plain}


def _told(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    convs: Mapping[str, nn.Module],
    lost: Mapping[str, Lost],
    known: Report | None,
) -> tuple[RevertedLayer, ...]:
    """What is to be said of each layer."""
    gone = {id(part) for layer in layers.values() for part in layer.modules()}
    counted = {id(p) for part in model.modules() if id(part) not in gone for p in part._parameters.values()}
    conversions = {} if known is None else {step.name: step for step in known.swaps}
    told = []
    for name, layer in layers.items():
        dropped = parameters_of(layer, counted)[0] - parameters_of(convs[name], counted)[0]
        words = [*lost[name].words]
        step = conversions.get(name)
        if step is not None and "StdConv" in step.kind:
            words.append("the weight standardisation, folded into the weights at the conversion")
        if step is not None and step.kernel_error is not None and step.kernel_error.relative > 0:
            words.append(
                f"what the conversion to {step.target} could only approximate of the convolution's own kernel "
                f"(relative error {step.kernel_error.relative:.1e})"
            )
        told.append(
            RevertedLayer(
                name, type(layer).__name__, lost[name].fidelity, tuple(words), dropped, lost[name].kernel_error
            )
        )
    return tuple(told)
