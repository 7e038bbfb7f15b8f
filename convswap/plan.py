"""Deciding, for every convolution, whether it is swapped and for what, before anything is changed."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from .choice import Choice, Swap, as_rules, check_rules, choose, converted_layers, in_rule, kept_all_the_same
from .conv_classes import conversion_note, unknown_class_reason
from .costs import Cost, CostOnDemand, conv_cost, geometry, known
from .decisions import Decision, group_label, name_groups, placement, resolve_rules
from .errors import GuideError, NothingToSwapError, OptionError
from .formatting import shorten
from .guide_nodes import further_input
from .guides import Guides
from .inputs import ExampleInputs, default_inputs
from .options import options_to_dict
from .sites import ConvSite, Trace
from .targets import Target
from .targets.base import Fidelity
from .trace import trace
from .where import Where


@dataclass(frozen=True)
class Step:
    """What happens to one convolution.

    Attributes:
        site: the convolution.
        action: ``"swap"`` or ``"keep"``.
        reason: why it is kept, or which rule decided.
        target: name of the target, None if kept.
        options: the target's resolved options, None if kept.
        fidelity: what the new layer promises, None if kept.
        before: what the convolution costs.
        cost_after: where ``after``, the new layer's cost (or the convolution's, if kept), comes from. What a group
            shares is counted for its first layer only.
        note: what else there is to say about the conversion, or None.
        group: name of the first of the convolutions whose layers share parameters with this one's, or None.
    """

    site: ConvSite
    action: Literal["swap", "keep"]
    reason: str
    target: str | None
    options: Any
    fidelity: Fidelity | None
    before: Cost
    cost_after: Cost | CostOnDemand
    note: str | None = None
    group: str | None = None

    @property
    def after(self) -> Cost:
        """What the new layer costs; as before if the convolution is kept."""
        return known(self.cost_after)


@dataclass(frozen=True)
class Plan:
    """What a conversion would do: a step for every convolution of a model, and the trace it is based on."""

    trace: Trace
    steps: tuple[Step, ...]

    @property
    def swaps(self) -> tuple[Step, ...]:
        """The steps that swap."""
        return tuple(step for step in self.steps if step.action == "swap")

    @property
    def keeps(self) -> tuple[Step, ...]:
        """The steps that keep."""
        return tuple(step for step in self.steps if step.action == "keep")

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        from .report import report

        return str(report(self))


def plan(
    model: nn.Module,
    to: str | Swap | Sequence[Swap],
    where: Where = "*",
    *,
    example_inputs: ExampleInputs = None,
    **options: Any,
) -> Plan:
    """Decide what `convert` would do, without allocating a single weight.

    Args:
        model: any module; left as it is.
        to: name of a target, or a `Swap`, or several, of which the first that matches a convolution decides; see
            `read_rules` for rules from a file.
        where: which convolutions; only with the name of a target.
        example_inputs: see `trace`. Without inputs, shapes and multiply-adds are unknown. Where options go by the order
            of execution, and the model's path by the data, a copy of the model is run on them.
        options: the target's; only with the name of a target.

    Raises:
        NothingToSwapError: if every convolution would be kept, with the reasons.
        PatternError: if a pattern matches nothing, or rules before one take all that it matches.
        UnknownNameError, OptionError: for targets and options that do not exist, values that are not allowed.
        ModelError: if the model is wrapped, compiled or scripted.
    """
    rules = as_rules(to, where, options)
    check_rules(rules)  # what is wrong with them is told before anything else is done
    return plan_traced(trace(model, example_inputs), model, rules, example_inputs)


def plan_traced(found: Trace, model: nn.Module, rules: Sequence[Swap], example_inputs: ExampleInputs = None) -> Plan:
    """What `plan` decides for a model that ``found`` is the trace of, with these inputs."""
    checked = check_rules(rules)
    if any(target.lacks_order(found.sites, values) for target, values in filter(None, checked)):
        found = _with_order(found, model, example_inputs)
    if not found.sites:
        raise NothingToSwapError(_no_convolution(found, model))
    choices = choose(rules, found.sites, model)
    guides = Guides(model, example_inputs)
    decided = []
    for site, choice in zip(found.sites, choices, strict=True):
        to = None if choice.rule is None else checked[choice.rule]
        if choice.rule is None or to is None:
            decided.append(Decision(site, choice.reason))
            continue
        with in_rule(rules, choice.rule):
            decided.append(_decide(site, *to, choice, guides))
    decided = resolve_rules(decided, lambda rule: in_rule(rules, rule))
    decided = _with_rules_of_kept(decided, rules, choices)
    if all(decision.target is None for decision in decided):
        reasons = Counter(decision.reason for decision in decided)
        raise NothingToSwapError(_nothing_to_swap(found, reasons), reasons)
    return Plan(found, make_steps(name_groups(decided)))


def _with_rules_of_kept(
    decisions: Sequence[Decision], rules: Sequence[Swap], choices: Sequence[Choice]
) -> list[Decision]:
    """The same, with a word about its rule where a convolution that one is to convert must be kept."""
    pairs = list(zip(decisions, choices, strict=True))
    busy = {choice.rule for decision, choice in pairs if decision.target is not None}
    told = []
    for decision, choice in pairs:
        if decision.target is None and choice.rule is not None and not choice.keeps:
            reason = kept_all_the_same(rules, choice.rule, decision.reason, idle=choice.rule not in busy)
            decision = replace(decision, reason=reason)
        told.append(decision)
    return told


def _with_order(found: Trace, model: nn.Module, example_inputs: ExampleInputs) -> Trace:
    """``found``, or the trace with a real pass if that tells more of the order of execution."""
    if example_inputs is None and default_inputs(model) is None:
        return found
    real = trace(model, example_inputs, real_pass=True)
    known, then_known = (sum(site.ordered for site in made.sites) for made in (found, real))
    return real if then_known > known else found


def make_steps(decisions: Sequence[Decision]) -> tuple[Step, ...]:
    """Steps of decided sites, with their costs."""
    costs: dict[Any, CostOnDemand] = {}
    kept: dict[Any, int | None] = {}
    groups: set[Any] = set()
    steps = []
    for decision in decisions:
        group = (decision.target, decision.group, placement(decision.site)) if decision.group is not None else None
        steps.append(_step(decision, conv_cost(decision.site, kept), costs, shares=group in groups))
        if group is not None:
            groups.add(group)
    return tuple(steps)


def keep_reason(site: ConvSite) -> str | None:
    """Why a convolution is kept whatever the target, or None."""
    if site.inside is not None:
        return f"it is a part of {site.inside}, a layer that conversions put there"
    if not site.parametrised and nn.parameter.is_lazy(site.module.weight):
        return "it is lazy and has no weights yet: run a forward pass first"
    if site.parametrised:
        return (
            "its parameters are computed by torch.nn.utils.parametrize: remove the parametrisation first "
            "(torch.nn.utils.parametrize.remove_parametrizations)"
        )
    if site.hooked:
        return f"it has hooks that would be lost ({', '.join(site.hooked)}): remove them first"
    if site.read_outside is not None:
        reader = f"{site.read_outside!r}" if site.read_outside else "the model's own forward"
        return f"its parameters are used by {reader} too, outside of its own forward"
    if site.type_dependent:
        return "the code around it asks for its class and takes another path where it is no convolution of torch's"
    return unknown_class_reason(site.module)


def _decide(site: ConvSite, target: Target, options: Any, choice: Choice, guides: Guides) -> Decision:
    reason = keep_reason(site)
    if reason is None:
        reason = target.unsupported_reason(site, options)
    if reason is None and getattr(options, "guide", None) is not None:
        try:
            options = _with_guide_channels(site, options, guides)
        except GuideError as error:
            reason = str(error)
    if reason is not None:
        return Decision(site, reason)
    assert choice.rule is not None
    group = group_label(site, target, options, choice.rule)
    return Decision(site, choice.reason, target, options, group, choice.note, choice.rule)


def _with_guide_channels(site: ConvSite, options: Any, guides: Guides) -> Any:
    """``options`` with the channels of the guide that they name.

    Raises:
        GuideError: if it cannot guide this convolution, or has other channels than the options say.
    """
    channels = guides.channels(site, options.guide)
    if channels is None and options.guide_channels is None:
        instead = "" if further_input(options.guide) is not None else ", or example_inputs"
        raise GuideError(f"how many channels its guide {options.guide!r} has is unknown: give guide_channels{instead}")
    if channels is not None and options.guide_channels not in (None, channels):
        raise GuideError(f"its guide {options.guide!r} has {channels} channels, not {options.guide_channels}")
    return replace(options, guide_channels=channels or options.guide_channels)


def _step(decision: Decision, before: Cost, costs: dict[Any, CostOnDemand], shares: bool) -> Step:
    site, target, options = decision.site, decision.target, decision.options
    if target is None:
        return Step(site, "keep", decision.reason, None, None, None, before, before)
    return Step(
        site,
        "swap",
        decision.reason,
        target.name,
        options,
        target.fidelity(site, options),
        before,
        _cost_after(site, target, options, costs, shares),
        "; ".join(filter(None, (conversion_note(site.module), target.note(site, options), decision.note))) or None,
        None if decision.group is None else str(decision.group),
    )


def _cost_after(
    site: ConvSite, target: Target, options: Any, costs: dict[Any, CostOnDemand], shares: bool
) -> CostOnDemand:
    """The new layer's cost; sites alike in geometry and shapes are built, on the meta device, only once.

    Args:
        shares: whether it is a further layer of a group, which has the parameters that are shared already.
    """
    conv = site.plain
    key = (target.name, repr(options_to_dict(options)), geometry(conv), site.calls, site.batch, shares)
    if key not in costs:
        try:
            if shares:
                first, layer = target.build_group([conv, copy.deepcopy(conv)], options, None)
                costs[key] = CostOnDemand(layer, site.calls, site.batch, besides=first)
            else:
                costs[key] = CostOnDemand(target.build(conv, options, None), site.calls, site.batch)
        except (ValueError, TypeError, OverflowError, RuntimeError) as error:  # sizes that cannot be
            reason = str(error).partition("\n")[0]
            raise OptionError(f"{site.name or 'the model'} cannot be converted to {target.name}: {reason}") from error
    return costs[key]


def _no_convolution(found: Trace, model: nn.Module) -> str:
    message = f"{found.model} has no convolution to convert."
    layers = converted_layers(model)
    if layers:
        names = shorten([name or "the model itself" for name in layers], 3)
        message += f" To convert again what conversions put there ({names}), make it plain first (revert, freeze)."
    return message + "".join(f"\n  {other.name}: {other.reason}" for other in found.others[:5])


def _nothing_to_swap(found: Trace, reasons: Counter[str]) -> str:
    lines = [f"  {count} x {reason}" for reason, count in reasons.most_common(8)]
    return f"nothing to swap: all {reasons.total()} convolutions of {found.model} are kept\n" + "\n".join(lines)
