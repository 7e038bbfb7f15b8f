"""Making a report of a plan, and of what has been done to the model before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from .conv_classes import Conv
from .factories import described
from .modules import within
from .options import options_to_dict
from .plan import Plan, Step
from .recipe import Recipe
from .report import Report, StepReport


def make_report(plan: Plan, recipe: Recipe, earlier: Report | None) -> Report:
    """The report of a plan; what an ``earlier`` conversion of the same model did is taken over into it."""
    made = set() if earlier is None else {step.name for step in earlier.swaps}
    own = (step for step in plan.steps if step.site.inside is None or not within(step.site.name, made))
    steps = [_describe(step) for step in own]  # without the parts of what is in place of a convolution
    parameters = plan.trace.parameters
    if earlier is not None:
        steps = _after(earlier, steps)
        recipe = earlier.recipe.followed_by(recipe)
        parameters = earlier.parameters
    return Report(
        model=plan.trace.model,
        parameters=parameters,
        steps=tuple(steps),
        others=plan.trace.others,
        input_shape=plan.trace.input_shape,
        unknown_shapes=plan.trace.unknown_shapes,
        recipe=recipe,
        versions=make_versions(),
        freezings=() if earlier is None else earlier.freezings,
        reversions=() if earlier is None else earlier.reversions,
    )


def make_versions() -> dict[str, str]:
    """Those that a report names."""
    from . import __version__  # which this is a part of

    return {"convswap": __version__, "torch": torch.__version__}


def converted_again(before: StepReport, step: StepReport, reverted: bool) -> StepReport:
    """``step``, of the convolution that the layer of the step ``before`` has become, as one of the original.

    It was frozen to that, or ``reverted``.
    """
    done = "reverted" if reverted else "frozen"
    was = _own_note(before.kind, done)
    if before.options is not None:
        was = f"was converted to {before.target} and {done} before"
    note = "; ".join(filter(None, (was, step.note)))
    return replace(step, kind=before.kind, geometry=before.geometry, before=before.before, note=note)


def without_own_note(step: StepReport) -> StepReport:
    """``step`` without what `converted_again` says of a layer that nothing was known of, but what became of it."""
    note = step.note or ""
    for done in ("frozen", "reverted"):
        note = note.removeprefix(_own_note(step.kind, done))
    return replace(step, note=note.removeprefix("; ") or None)


def _own_note(kind: str, done: str) -> str:
    return f"was a {kind} of the model's own and {done} before"


def _after(earlier: Report, steps: Sequence[StepReport]) -> list[StepReport]:
    """Both, each name once: what was made plain is a convolution again, kept or converted as any other."""
    now, last = {step.name: step for step in steps}, earlier.recipe.last()
    merged = []
    for before in earlier.swaps:
        step = now.pop(before.name, None)
        if step is not None and step.action == "swap":
            before = converted_again(before, step, before.name in last and last[before.name].reverted)
        merged.append(before)
    return [*merged, *now.values()]


def _describe(step: Step) -> StepReport:
    return StepReport(
        name=step.site.name,
        aliases=step.site.aliases,
        kind=step.site.kind,
        geometry=describe_geometry(step.site.module),
        action=step.action,
        reason=step.reason,
        target=step.target,
        options=None if step.options is None else _options_in_words(step.options),
        fidelity=step.fidelity,
        before=step.before,
        cost_after=step.cost_after,
        note=step.note,
        group=step.group,
    )


def _options_in_words(options: Any) -> dict[str, Any]:
    return {name: described(value) if callable(value) else value for name, value in options_to_dict(options).items()}


def describe_geometry(conv: Conv) -> str:
    """A convolution's geometry in short: ``64→128 3×3 stride 2 groups 4``."""
    parts = [f"{conv.in_channels}→{conv.out_channels}", "×".join(map(str, conv.kernel_size))]
    for name in ("stride", "dilation"):
        values = getattr(conv, name)
        if any(value != 1 for value in values):
            parts.append(f"{name} {_short(values)}")
    if conv.groups > 1:
        parts.append("depthwise" if conv.groups == conv.in_channels == conv.out_channels else f"groups {conv.groups}")
    return " ".join(parts)


def _short(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "×".join(map(str, values))
