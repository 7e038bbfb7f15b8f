"""Deciding, for every convolution, whether it is swapped and for what, before anything is changed."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from .conv_classes import conversion_note, unknown_class_reason
from .costs import Cost, CostOnDemand, conv_cost, known
from .decisions import Decision, group_label, name_groups, placement, resolve_rules
from .errors import ConvswapError, GuideError, NothingToSwapError, OptionError
from .guide_nodes import further_input
from .guides import Guides
from .inputs import ExampleInputs, default_input_shape
from .options import make_options, options_to_dict
from .sites import ConvSite, Trace
from .targets import Target, get_target
from .targets.base import Fidelity
from .trace import trace
from .where import Where, matching


@dataclass(frozen=True, init=False)
class Swap:
    """A rule: convert the convolutions that ``where`` chooses ``to`` a target with these options.

    Attributes:
        where: a glob on the qualified name (``*`` crosses dots), ``re:…``, ``!…`` to exclude, a function of the
            `ConvSite`, or a list of these.
        to: name of a target.
        options: the target's options by their names.
    """

    where: Where
    to: str
    options: Mapping[str, Any]

    def __init__(self, where: Where, to: str, **options: Any) -> None:
        object.__setattr__(self, "where", where)
        object.__setattr__(self, "to", to)
        object.__setattr__(self, "options", options)


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
        to: name of a target, or a `Swap`, or several, of which the first that matches a convolution decides.
        where: which convolutions; only with the name of a target.
        example_inputs: see `trace`. Without inputs, shapes and multiply-adds are unknown. Where options go by the order
            of execution, and the model's path by the data, a copy of the model is run on them.
        options: the target's; only with the name of a target.

    Raises:
        NothingToSwapError: if every convolution would be kept, with the reasons.
        PatternError: if a pattern matches nothing.
        UnknownNameError, OptionError: for targets and options that do not exist, values that are not allowed.
        ModelError: if the model is wrapped, compiled or scripted.
    """
    rules = _as_rules(to, where, options)
    _resolved(rules)  # what is wrong with them is told before anything else is done
    return plan_traced(trace(model, example_inputs), model, rules, example_inputs)


def plan_traced(found: Trace, model: nn.Module, rules: Sequence[Swap], example_inputs: ExampleInputs = None) -> Plan:
    """What `plan` decides for a model that ``found`` is the trace of, with these inputs."""
    resolved = _resolved(rules)
    if any(target.lacks_order(found.sites, values) for target, values in resolved):
        found = _with_order(found, model, example_inputs)
    if not found.sites:
        others = "".join(f"\n  {other.name}: {other.reason}" for other in found.others[:5])
        raise NothingToSwapError(f"{found.model} has no convolution to convert.{others}")
    chosen = [matching(rule.where, found.sites) for rule in rules]
    guides = Guides(model, example_inputs)
    decided = []
    for site in found.sites:
        rule = next((i for i, names in enumerate(chosen) if site.name in names), None)
        if rule is None:
            decided.append(Decision(site, "not chosen by where"))
        else:
            decided.append(_decide(site, *resolved[rule], rule, guides))
    steps = make_steps(name_groups(resolve_rules(decided)))
    if not any(step.action == "swap" for step in steps):
        raise NothingToSwapError(_nothing_to_swap(found, steps))
    return Plan(found, steps)


def _resolved(rules: Sequence[Swap]) -> list[tuple[Target, Any]]:
    """The target of each rule, and its options."""
    targets = [get_target(rule.to) for rule in rules]
    return [(target, make_options(target, rule.options)) for target, rule in zip(targets, rules, strict=True)]


def _with_order(found: Trace, model: nn.Module, example_inputs: ExampleInputs) -> Trace:
    """``found``, or the trace with a real pass if that tells more of the order of execution."""
    if example_inputs is None and default_input_shape(model) is None:
        return found
    real = trace(model, example_inputs, real_pass=True)
    known, then_known = (sum(site.ordered for site in made.sites) for made in (found, real))
    return real if then_known > known else found


def make_steps(decisions: Sequence[Decision]) -> tuple[Step, ...]:
    """Steps of decided sites, with their costs."""
    costs: dict[Any, CostOnDemand] = {}
    groups: set[Any] = set()
    steps = []
    for decision in decisions:
        group = (decision.target, decision.group, placement(decision.site)) if decision.group is not None else None
        steps.append(_step(decision, costs, shares=group in groups))
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


def _as_rules(to: str | Swap | Sequence[Swap], where: Where, options: Mapping[str, Any]) -> list[Swap]:
    if isinstance(to, str):
        return [Swap(where, to, **options)]
    if options or where != "*":
        raise ConvswapError("where and options belong into the Swap rules when rules are given")
    rules: list[Swap] = [to] if isinstance(to, Swap) else list(to) if isinstance(to, list | tuple) else []
    if not rules or not all(isinstance(rule, Swap) for rule in rules):
        raise ConvswapError(f"to must be the name of a target, a Swap or a list of Swaps, got {to!r}")
    return rules


def _decide(site: ConvSite, target: Target, options: Any, rule: int, guides: Guides) -> Decision:
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
    group = group_label(site, target, options, rule)
    return Decision(site, "chosen by where", target, options, group, rule=rule)


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


def _step(decision: Decision, costs: dict[Any, CostOnDemand], shares: bool) -> Step:
    site, target, options = decision.site, decision.target, decision.options
    before = conv_cost(site)
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
    geometry = (
        *(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation),
        *(conv.groups, conv.padding_mode, conv.bias is None, conv.weight.dtype, conv.weight.requires_grad),
    )
    key = (target.name, repr(options_to_dict(options)), geometry, site.calls, site.batch, shares)
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


def _nothing_to_swap(found: Trace, steps: Sequence[Step]) -> str:
    reasons = Counter(step.reason for step in steps)
    lines = [f"  {count} x {reason}" for reason, count in reasons.most_common(8)]
    return f"nothing to swap: all {len(steps)} convolutions of {found.model} are kept\n" + "\n".join(lines)
