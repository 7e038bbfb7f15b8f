"""The report that a converted model carries with it, and those of its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from .guide_nodes import guide_in_whole
from .recipe import Recipe
from .report import Report

_ATTRIBUTE = "_convswap_report"


def attach_report(model: nn.Module, made: Report) -> None:
    """Let ``model`` carry its report; it is copied and pickled with it, and is no part of its state dict."""
    model.__dict__[_ATTRIBUTE] = made


def earlier_report(model: nn.Module) -> Report | None:
    """What has been done to ``model`` and to its parts, with the names that they have in it."""
    found: Report | None = None
    for name, module in model.named_modules():
        carried = module.__dict__.get(_ATTRIBUTE)
        if not isinstance(carried, Report):
            continue
        own = _prefixed(carried, name)
        if found is None:
            found = replace(own, model=type(model).__name__) if name else own
            continue
        known_names = {step.name for step in found.swaps}
        added = tuple(step for step in own.swaps if step.name not in known_names)
        kept = tuple(step for step in found.steps if step.name not in {new.name for new in added})
        recipe = tuple(step for step in own.recipe.steps if step.name not in known_names)
        found = replace(found, steps=(*kept, *added), recipe=Recipe((*found.recipe.steps, *recipe)))
    if found is None or _ATTRIBUTE in model.__dict__:
        return found
    return replace(found, parameters=_before(found, model))


def with_present_pictures(made: Report, model: nn.Module) -> Report:
    """The same report with the pictures of layers, which may have been trained, as they are in ``model`` now."""
    modules = dict(model.named_modules(remove_duplicate=False))
    pictures = {
        step.name: step.picture.at_present(modules[step.name])
        for step in made.swaps
        if step.picture is not None and step.name in modules
    }
    return made.with_pictures(pictures)


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
        verification=None,
    )
