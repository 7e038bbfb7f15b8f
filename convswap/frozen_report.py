"""The report of a model with layers that have become plain convolutions: frozen or reverted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from .carried_report import earlier_report, with_present_pictures
from .conv_classes import CONVS
from .costs import Cost, parameters_of
from .freeze_report import Freezing
from .layers import ConvLayer
from .recipe import Recipe
from .report import Report, StepReport
from .report_making import describe_geometry, make_versions
from .revert_report import Reversion


def with_freezing(
    model: nn.Module, layers: Mapping[str, nn.Module], convs: Mapping[str, Any], freezing: Freezing
) -> Report:
    """What has been done to ``model``, and that ``layers``, by name, have been frozen to ``convs``."""
    fidelities = {layer.name: layer.fidelity for layer in freezing.layers}
    made = _with_plain(model, layers, convs, fidelities, "frozen")
    return replace(made, recipe=made.recipe.with_frozen(list(layers)), freezings=(*made.freezings, freezing))


def with_reversion(
    model: nn.Module, layers: Mapping[str, nn.Module], convs: Mapping[str, Any], reversion: Reversion
) -> Report:
    """What has been done to ``model``, and that ``layers``, by name, have been reverted to ``convs``."""
    fidelities = {layer.name: layer.fidelity for layer in reversion.layers}
    made = _with_plain(model, layers, convs, fidelities, "reverted")
    recipe = made.recipe.with_reverted(list(layers))
    return replace(made, recipe=recipe, borders=None, reversions=(*made.reversions, reversion))


def _with_plain(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    convs: Mapping[str, Any],
    fidelities: Mapping[str, Any],
    done: str,
) -> Report:
    earlier = earlier_report(model)
    if earlier is None:
        parameters = sum(p.numel() for p in model.parameters() if not nn.parameter.is_lazy(p))
        unknown = "the model was not traced"
        earlier = Report(type(model).__name__, parameters, (), (), None, unknown, Recipe(()), versions=make_versions())
    # Pictures as they are now: of a plain convolution nothing could be said later.
    earlier = with_present_pictures(earlier, model)
    known = {step.name for step in earlier.swaps}
    count = _group_counter(model, layers)
    steps = [
        step
        if step.action == "keep"
        else replace(step, cost_after=_cost(layers[step.name], convs[step.name], step))
        if step.name in layers
        else count(step)
        for step in earlier.steps
    ]
    for name, layer in layers.items():
        if name not in known:
            before = Cost(*parameters_of(layer), None, None, 0)
            steps.append(
                StepReport(
                    name=name,
                    aliases=(),
                    kind=type(layer).__name__,
                    geometry=describe_geometry(layer),  # type: ignore[arg-type]
                    action="swap",
                    reason=done,
                    target=type(convs[name]).__name__,
                    options=None,
                    fidelity=fidelities[name],
                    before=before,
                    cost_after=Cost(*parameters_of(convs[name]), None, None, 0),
                    note=None,
                )
            )
    return replace(
        earlier,
        verification=None,  # which was of the layers
        steps=tuple(steps),
    )


def _group_counter(model: nn.Module, layers: Mapping[str, nn.Module]) -> Callable[[StepReport], StepReport]:
    """Counts what the rest of a group shares for the first of those that are left, in the order of calls."""
    modules = dict(model.named_modules(remove_duplicate=False))
    owned = {id(parameter) for layer in layers.values() for parameter in layer.parameters()}
    counted: set[int] = set()

    def count(step: StepReport) -> StepReport:
        layer = modules.get(step.name)
        if step.group is None or layer is None or not any(id(p) in owned for p in layer.parameters()):
            return step
        numbers, size = parameters_of(layer, counted)
        return replace(step, cost_after=replace(step.after, parameters=numbers, parameter_bytes=size))

    return count


def _cost(layer: Any, conv: Any, step: StepReport) -> Cost:
    """Of the convolution that takes the place of ``layer``, which took that of the one that ``step`` is about."""
    multiply_adds, activation_bytes = step.before.multiply_adds, step.before.activation_bytes
    if multiply_adds is not None and describe_geometry(conv) != step.geometry:
        # Layers of ours keep the size of the output, and show the kernel of the convolution that they were made from.
        taps, before = math.prod(conv.kernel_size), math.prod(layer.kernel_size) if isinstance(layer, ConvLayer) else 0
        multiply_adds = multiply_adds * taps // before if before else None
    if not (step.kind in _PLAIN and _keeps_its_input(conv, layer)):
        activation_bytes = None
    return Cost(*parameters_of(conv), multiply_adds, activation_bytes, 0)


_PLAIN = tuple(kind.__name__ for kind in CONVS)


def _keeps_its_input(conv: Any, layer: Any) -> bool:
    """Whether ``conv``, and what ``layer`` was made from, keep their input and nothing more for the backward pass.

    With padding other than zeros, what is kept is a padded copy, of a size that would have to be found out.
    """
    replaced = getattr(layer, "replaced_padding_mode", getattr(layer, "padding_mode", "zeros"))
    return type(conv) in CONVS and {conv.padding_mode, replaced} == {"zeros"} and not isinstance(conv.padding, str)
