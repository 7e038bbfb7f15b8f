"""The report of a model with frozen layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from .carried_report import earlier_report, with_present_pictures
from .costs import Cost
from .freeze_report import Freezing
from .recipe import Recipe
from .report import Report, StepReport
from .report_making import describe_geometry, make_versions


def with_freezing(
    model: nn.Module, layers: Mapping[str, nn.Module], convs: Mapping[str, Any], freezing: Freezing
) -> Report:
    """What has been done to ``model``, and that ``layers``, by name, have become ``convs``."""
    earlier = earlier_report(model)
    if earlier is None:
        parameters = sum(p.numel() for p in model.parameters() if not nn.parameter.is_lazy(p))
        unknown = "the model was not traced"
        earlier = Report(type(model).__name__, parameters, (), (), None, unknown, Recipe(()), versions=make_versions())
    # Pictures as they are now: of a plain convolution nothing could be said later.
    earlier = with_present_pictures(earlier, model)
    known = {step.name for step in earlier.swaps}
    steps = [
        replace(step, cost_after=_cost(layers[step.name], convs[step.name], step.before))
        if step.action == "swap" and step.name in layers
        else step
        for step in earlier.steps
    ]
    fidelities = {layer.name: layer.fidelity for layer in freezing.layers}
    for name, layer in layers.items():
        if name not in known:
            before = Cost(*_parameters(layer), None, None, 0)
            steps.append(
                StepReport(
                    name=name,
                    aliases=(),
                    kind=type(layer).__name__,
                    geometry=describe_geometry(layer),  # type: ignore[arg-type]
                    action="swap",
                    reason="frozen",
                    target=type(convs[name]).__name__,
                    options=None,
                    fidelity=fidelities[name],
                    before=before,
                    cost_after=Cost(*_parameters(convs[name]), None, None, 0),
                    note=None,
                )
            )
    return replace(
        earlier,
        verification=None,  # which was of the layers
        steps=tuple(steps),
        recipe=earlier.recipe.with_frozen(list(layers)),
        freezings=(*earlier.freezings, freezing),
    )


def _cost(layer: Any, conv: Any, before: Cost) -> Cost:
    """Of the convolution that takes the place of ``layer``, which took that of one that cost ``before``."""
    taps, of_original = math.prod(conv.kernel_size), math.prod(layer.kernel_size)
    known = before.multiply_adds
    return Cost(*_parameters(conv), None if known is None else known * taps // of_original, before.activation_bytes, 0)


def _parameters(module: nn.Module) -> tuple[int, int]:
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)
