"""The one verb: convert a model's convolutions."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from .border_report import borders_of
from .carried_report import attach_report, earlier_report
from .choice import Swap
from .decisions import Decision, split_groups
from .errors import ConvswapError, did_you_mean
from .freezing import freeze_as_they_are, refuse_unknown_means
from .graph_model import as_graph_model
from .inputs import ExampleInputs
from .kernel_errors import kernel_errors
from .options import code_named_by, make_options
from .plan import Plan, Step, keep_reason, make_steps, plan
from .position_pictures import start_picture
from .recipe import Recipe, make_recipe
from .replacing import put_in_place
from .report import Report
from .report_making import describe_geometry, make_report
from .reverting import revert_as_they_are
from .rewrite import build_layers, copy_with
from .routing import route_guides
from .sites import Trace
from .targets import get_target
from .trace import trace
from .verification import require_passed
from .verify import VerifyInputs, read_inputs, verify_on
from .where import Where

ModelT = TypeVar("ModelT", bound=nn.Module)


def convert(
    model: nn.Module,
    to: str | Swap | Sequence[Swap],
    where: Where = "*",
    *,
    example_inputs: ExampleInputs = None,
    seed: int = 0,
    verify: VerifyInputs = None,
    as_graph: bool = False,
    **options: Any,
) -> nn.Module:
    """Convert chosen convolutions of a copy of ``model``; its first forward pass gives what the model's gives.

    Class, methods, state-dict keys of all else, device, dtype, memory format, mode, ``requires_grad`` and sharing stay.

    Args:
        model: any torchvision, timm or own module; left as it is. If it is itself a convolution, the new layer is
            returned.
        to: name of a target (``"dynamic"``, ``"dcls"``, …), or a `Swap`, or several, of which the first that matches a
            convolution decides.
        where: which convolutions: a glob on the qualified name (``*`` crosses dots), ``re:…`` (full match), ``!…`` to
            exclude, a function of the `ConvSite`, or a list of these.
        example_inputs: see `trace`.
        seed: of the random starts. The global generators are left alone.
        verify: an input, the name of a file or a seed to compare both models with, see `verify`. None: not compared.
        as_graph: return the copy as a `GraphModel`, a ``torch.fx.GraphModule`` whose hypernets and layers are nodes of
            their own, for those who go on with other passes of torch.fx.
        options: the target's.

    Returns:
        The converted copy; `report` tells what was done.

    Raises:
        ConvswapError: as `plan` does, and if the model cannot be copied.
        VerificationError: if ``verify`` finds a layer that does not keep what its fidelity promises.
    """
    seed = _whole_number(seed)
    the_plan = plan(model, to, where, example_inputs=example_inputs, **options)
    converted = _carry_out(the_plan, model, seed, verify)
    return as_graph_model(converted) if as_graph else converted


def convert_(
    model: nn.Module,
    to: str | Swap | Sequence[Swap],
    where: Where = "*",
    *,
    example_inputs: ExampleInputs = None,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Convert chosen convolutions of ``model`` in place, and return it. Arguments as for `convert`.

    Everything is checked, and every layer built, before anything is changed.

    Raises:
        ConvswapError: as `plan` does, and if the model is itself a convolution.
    """
    seed = _whole_number(seed)
    the_plan = plan(model, to, where, example_inputs=example_inputs, **options)
    report = make_report(the_plan, make_recipe(the_plan.steps, seed), earlier_report(model))
    layers = build_layers(the_plan.steps, seed)
    report = _with_start_pictures(report, the_plan.steps, layers)
    put_in_place(model, layers)
    try:
        route_guides(model)
    except Exception:
        undo(model, the_plan.steps, layers)
        raise
    attach_report(model, report)
    return model


def apply(
    recipe: Plan | Recipe | Mapping[str, Any],
    model: nn.Module,
    *,
    seed: int = 0,
    as_graph: bool = False,
    trust_source: bool = False,
) -> nn.Module:
    """Do to a copy of ``model`` what a plan or a recipe says.

    Args:
        recipe: a `Plan` of this model; or a `Recipe`, as such or in its JSON form, for a model of the architecture it
            was made for. ``convswap.report(converted).recipe`` is one.
        model: its convolutions must have the names that the recipe has.
        seed: of the random starts, for a `Plan`; recipes bring their own.
        as_graph: see `convert`.
        trust_source: import functions that a recipe names as ``package.module:function``, which runs their code.

    Raises:
        ConvswapError: if the model lacks a convolution that the recipe names, or it must be kept; or if the recipe is
            to freeze the architecture's own layers at a mean attention, which files hold and recipes do not.
    """
    if isinstance(recipe, Plan):
        converted = _carry_out(_rebound(recipe, model), model, _whole_number(seed), None)
        return as_graph_model(converted) if as_graph else converted
    the_recipe = recipe if isinstance(recipe, Recipe) else Recipe.from_dict(recipe)
    converted = model
    for _, stage in the_recipe.stages() or ((0, the_recipe),):
        converted = _apply_stage(stage, converted, trust_source)
    return as_graph_model(converted) if as_graph else converted


def _apply_stage(stage: Recipe, model: nn.Module, trust_source: bool) -> nn.Module:
    """Do to a copy of ``model`` what the steps of one stage of a recipe say."""
    refuse_unknown_means(model, [step.name for step in stage.steps if step.target is None and step.frozen])
    steps, found = recipe_steps(stage, model, trust_source)
    layers = build_layers(steps, {step.name: step.seed for step in stage.steps})
    groups = {step.site.name: step.group for step in steps}
    done = Recipe(
        tuple(
            replace(step, group=groups.get(step.name, step.group), frozen=False, reverted=False, stage=0)
            for step in stage.steps
            if step.target is not None
        )
    )
    converted = model
    if done.steps or not stage.steps:
        report = _with_start_pictures(make_report(Plan(found, steps), done, earlier_report(model)), steps, layers)
        converted = copy_with(model, layers)
        route_guides(converted)
        attach_report(converted, report)
    converted = freeze_as_they_are(converted, [step.name for step in stage.steps if step.frozen])
    return revert_as_they_are(converted, [step.name for step in stage.steps if step.reverted])


def undo(model: nn.Module, steps: Sequence[Step], layers: Mapping[int, nn.Module]) -> None:
    """Put the convolutions of ``steps`` back where ``layers``, by their identities, have taken their places."""
    convs = {id(step.site.module): step.site.module for step in steps}
    put_in_place(model, {id(layer): convs[conv] for conv, layer in layers.items()})


def recipe_steps(recipe: Recipe, model: nn.Module, trust_source: bool) -> tuple[tuple[Step, ...], Trace]:
    """The steps that ``recipe`` has for ``model``, and the trace they are based on.

    Args:
        recipe: one stage of a recipe of any origin.
        model: a model of the architecture that it is for.
        trust_source: whether functions that it names may be imported.

    Raises:
        ConvswapError: if the model lacks a convolution that the recipe names, or it must be kept.
    """
    found = trace(model)
    wanted = {step.name: step for step in recipe.steps if step.target is not None}
    known = {site.name for site in found.sites}
    missing = [name for name in wanted if name not in known]
    if missing:
        raise ConvswapError(
            f"the recipe converts {missing[0]!r}, and {found.model} has no convolution of that name."
            f"{did_you_mean(missing[0], known)} ({len(missing)} of {len(wanted)} names are missing)"
        )
    decisions: list[Decision] = []
    for site in found.sites:
        step = wanted.get(site.name)
        if step is None:
            decisions.append(Decision(site, "not in the recipe"))
            continue
        reason = keep_reason(site)
        if reason is not None:
            raise ConvswapError(f"the recipe converts {site.name!r}, which must be kept: {reason}")
        target = get_target(str(step.target))
        code = code_named_by(target.name, step.options)
        if code is not None and not trust_source:
            raise ConvswapError(
                f"the recipe of {site.name!r} names {code}, which would be imported and run: if you trust it, "
                "give trust_source=True"
            )
        options = make_options(target, step.options)
        decisions.append(Decision(site, "in the recipe", target, options, step.group))
    return make_steps(split_groups(decisions)), found


def _rebound(the_plan: Plan, model: nn.Module) -> Plan:
    """``the_plan`` for ``model``, which may be another one of the same architecture than it was made for."""
    sites = {site.name: site for site in trace(model)}
    steps = []
    for step in the_plan.steps:
        site, planned = sites.get(step.site.name), step.site
        if (
            site is None
            or (site.kind, site.aliases, site.tied) != (planned.kind, planned.aliases, planned.tied)
            or describe_geometry(site.module) != describe_geometry(planned.module)
        ):
            raise ConvswapError(f"the plan was made for another model: {planned.name!r} is not the same there")
        reason = keep_reason(site) if step.action == "swap" else None
        if reason is not None:
            raise ConvswapError(f"the plan converts {site.name!r}, which must be kept: {reason}")
        steps.append(replace(step, site=replace(planned, module=site.module)))
    return replace(the_plan, steps=_regrouped(steps))


def _regrouped(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The same steps where their groups can be kept; otherwise new ones, with groups that can be."""
    targets = [None if step.target is None else get_target(step.target) for step in steps]
    decisions = [
        Decision(step.site, step.reason, target, step.options, step.group)
        for step, target in zip(steps, targets, strict=True)
    ]
    split = split_groups(decisions)
    if [decision.group for decision in split] == [step.group for step in steps]:
        return tuple(steps)
    return tuple(replace(made, note=step.note) for made, step in zip(make_steps(split), steps, strict=True))


def _whole_number(seed: Any) -> int:
    try:
        return operator.index(seed)
    except TypeError:
        raise ConvswapError(f"seed must be a whole number, got {seed!r}") from None


def _carry_out(the_plan: Plan, model: nn.Module, seed: int, inputs: VerifyInputs) -> nn.Module:
    report = make_report(the_plan, make_recipe(the_plan.steps, seed), earlier_report(model))
    layers = build_layers(the_plan.steps, seed)
    report = _with_start_pictures(report, the_plan.steps, layers)
    converted = copy_with(model, layers)
    route_guides(converted)
    attach_report(converted, report)
    if inputs is not None:
        read = read_inputs(model, inputs)
        verification = verify_on(model, converted, read)
        require_passed(verification)
        attach_report(converted, report.with_verification(verification, borders_of(the_plan.steps, read)))
    return converted


def _with_start_pictures(report: Report, steps: Sequence[Step], layers: Mapping[int, nn.Module]) -> Report:
    made = {step.site.name: layers[id(step.site.module)] for step in steps if step.action == "swap"}
    pictured = report.with_pictures({name: start_picture(layer) for name, layer in made.items()})
    return pictured.with_kernel_errors(kernel_errors(steps, layers))
