"""The report that a converted model carries with it, and what its parts carry that were changed later."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from .guide_nodes import guide_in_whole
from .recipe import Recipe
from .report import Report, StepReport
from .report_making import converted_again, without_own_note

_ATTRIBUTE = "_convswap_report"


def attach_report(model: nn.Module, made: Report) -> None:
    """Let ``model`` carry its report; it is copied and pickled with it, and is no part of its state dict.

    It has taken in what parts carried, who lose theirs: what a part carries is always newer than what the whole does.
    """
    for part in model.modules():
        part.__dict__.pop(_ATTRIBUTE, None)
    model.__dict__[_ATTRIBUTE] = made


def earlier_report(model: nn.Module) -> Report | None:
    """What has been done to ``model`` and to its parts, with the names that they have in it."""
    found: Report | None = None
    for name, module in model.named_modules():
        carried = module.__dict__.get(_ATTRIBUTE)
        if not isinstance(carried, Report):
            continue
        own = _prefixed(carried, name)
        if found is not None:
            found = _followed_by(found, own)
        else:
            found = replace(own, model=type(model).__name__) if name else own
    if found is None or _ATTRIBUTE in model.__dict__:
        return found
    return replace(found, parameters=_before(found, model))


def with_present_pictures(made: Report, model: nn.Module) -> Report:
    """The same report with the pictures of layers, which may have been trained, as they are in ``model`` now."""
    modules = dict(model.named_modules(remove_duplicate=False))
    plain = made.plain()
    pictures = {
        step.name: step.picture.at_present(modules[step.name])
        for step in made.swaps
        if step.picture is not None and step.name in modules and step.name not in plain
    }
    return made.with_pictures(pictures)


def _followed_by(found: Report, later: Report) -> Report:
    """What is known, and what has been done to a part since, or to another one that has been put in its place."""
    last, first = found.recipe.last(), later.recipe.first()
    known = last.keys() & first.keys()
    # A part's first step that only makes plain is for what the whole has made, one that converts for what is plain.
    plain = {name for name in known if first[name].target is None and not last[name].plain}
    again = {name for name in known if first[name].target is not None and last[name].plain}
    other = known - plain - again
    recipe = Recipe(tuple(step for step in found.recipe.steps if step.name not in other))
    recipe = recipe.with_frozen({name for name in plain if first[name].frozen})
    recipe = recipe.with_reverted({name for name in plain if first[name].reverted})
    further = (step for step in later.recipe.steps if not (step.name in plain and step is first[step.name]))
    new = {step.name: step for step in later.swaps}
    at_last = later.recipe.last()

    def now(step: StepReport) -> StepReport:
        made = new.pop(step.name, None)
        if made is None or step.action == "keep" or step.name in other:
            return made or step
        if at_last[step.name].target is None:
            return replace(step, cost_after=made.cost_after)
        reverted = (first if step.name in plain else last)[step.name].reverted
        return converted_again(step, without_own_note(made) if step.name in plain else made, reverted)

    steps = tuple(map(now, found.steps))
    return replace(
        found,
        steps=(*steps, *new.values()),
        recipe=recipe.followed_by(Recipe(tuple(further))),
        verification=None,  # which was of the layers before
        borders=None,
        freezings=(*found.freezings, *later.freezings),
        reversions=(*found.reversions, *later.reversions),
    )


def _before(made: Report, model: nn.Module) -> int:
    """Parameters of ``model`` before its parts were converted."""
    now = sum(p.numel() for p in model.parameters() if not nn.parameter.is_lazy(p))
    return now - made.total("after").parameters + made.total("before").parameters


def _prefixed(made: Report, prefix: str) -> Report:
    """The report of a part with the names that things have in the whole."""
    if not prefix:
        return made

    def named(name: str) -> str:
        return f"{prefix}.{name}" if name else prefix

    def group(name: str | None) -> str | None:
        return None if name is None else named(name)

    def called(done: Any) -> Any:
        layers = tuple(replace(layer, name=named(layer.name)) for layer in done.layers)
        return replace(done, layers=layers, kept=tuple(replace(layer, name=named(layer.name)) for layer in done.kept))

    def options(of_part: Any) -> Any:
        guide = None if of_part is None else of_part.get("guide")
        return of_part if guide is None else {**of_part, "guide": guide_in_whole(guide, prefix)}

    return replace(
        made,
        steps=tuple(
            replace(
                s,
                name=named(s.name),
                aliases=tuple(map(named, s.aliases)),
                group=group(s.group),
                options=options(s.options),
            )
            for s in made.steps
        ),
        others=tuple(replace(other, name=named(other.name)) for other in made.others),
        recipe=Recipe(
            tuple(
                replace(s, name=named(s.name), group=group(s.group), options=options(s.options))
                for s in made.recipe.steps
            )
        ),
        freezings=tuple(map(called, made.freezings)),
        reversions=tuple(map(called, made.reversions)),
        verification=None,
        borders=None,
    )
