"""What is to become of each convolution, and which of them belong together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .conv_classes import plain_conv
from .errors import OptionError
from .sites import ConvSite
from .targets import Target


@dataclass(frozen=True)
class Decision:
    """What is to become of a convolution.

    Attributes:
        site: the convolution.
        reason: why.
        target: what to convert it to, or None to keep it.
        options: the target's resolved options, None if it is kept.
        group: the same for all whose layers share parameters: any label at first, at last the name of the group's first
            convolution. None for layers that share nothing.
        note: what there is to say about it besides the reason, or None.
        rule: number of the rule that chose it, whose options are resolved together. None where that is done.
    """

    site: ConvSite
    reason: str
    target: Target | None = None
    options: Any = None
    group: Hashable = None
    note: str | None = None
    rule: int | None = None


def group_label(site: ConvSite, target: Target, options: Any, rule: int) -> Hashable:
    """The label of the group that the layer of ``site`` belongs to: of layers that one rule makes, on one device.

    Raises:
        OptionError: if the target's label, which may come from a function of the user's, cannot be one.
    """
    label = target.group(site, options)
    try:
        hash(label)
    except TypeError:
        raise OptionError(
            f"the label of a group must be hashable, such as a string or a tuple; that of {site.name} is {label!r}"
        ) from None
    if _equal_to_nothing(label):
        raise OptionError(
            "the label of a group must be equal for all that share, as strings, numbers and tuples of them are; that "
            f"of {site.name} has a tensor or a NaN in it: {label!r}"
        )
    return None if label is None else (rule, label, placement(site))


def _equal_to_nothing(label: Hashable) -> bool:
    """Whether a label, or a part of it, is never taken for the same as another: tensors are hashed by identity."""
    if isinstance(label, tuple | frozenset):
        return any(map(_equal_to_nothing, label))
    return isinstance(label, Tensor) or (isinstance(label, float) and label != label)


def placement(site: ConvSite) -> tuple[Any, ...]:
    """Device and dtype of the convolution's weight: layers of different ones cannot share a parameter."""
    return site.module.weight.device, site.module.weight.dtype


def resolve_rules(
    decisions: Sequence[Decision], in_rule: Callable[[int], AbstractContextManager[None]]
) -> list[Decision]:
    """The same with resolved options, those of each rule's convolutions together.

    Convolutions that are kept for what they share with others do not count, unless that is for the options themselves.

    Args:
        decisions: of all convolutions.
        in_rule: what errors about the rule of this number are to pass through.

    Raises:
        ConvswapError: if a target finds that options do not fit the convolutions of a rule.
    """
    members: dict[int, list[int]] = {}
    resolved = keep_tied_together(decisions, compare_options=False)
    for index, decision in enumerate(resolved):
        if decision.target is not None and decision.rule is not None:
            members.setdefault(decision.rule, []).append(index)
    for rule, indices in members.items():
        chosen = [resolved[index] for index in indices]
        target = chosen[0].target
        assert target is not None
        with in_rule(rule):
            options = target.resolve_all([one.site for one in chosen], [one.options for one in chosen])
        for index, own in zip(indices, options, strict=True):
            resolved[index] = replace(resolved[index], options=own, rule=None)
    return keep_tied_together(resolved)


def keep_tied_together(decisions: Iterable[Decision], compare_options: bool = True) -> list[Decision]:
    """Keep every convolution that shares parameters with something that is not converted in the same way.

    Those that are stay out of different groups: what is made from a shared weight must not depend on the group.

    Args:
        decisions: of all convolutions.
        compare_options: whether other options are another way.
    """
    current = {decision.site.name: decision for decision in decisions}
    members = Counter(decision.group for decision in current.values())
    owners = {
        f"{name}.{parameter}" if name else parameter: name
        for name, decision in current.items()
        for parameter in decision.site.module._parameters
    }
    changed = True
    while changed:
        changed = False
        for name, decision in current.items():
            if decision.target is None:
                continue
            for other in decision.site.tied:
                partner = current.get(owners[other]) if other in owners else None
                if partner is None or not _alike(decision, partner, compare_options):
                    reason = f"it shares parameters with {other}, which is not converted in the same way"
                    current[name] = Decision(decision.site, reason)
                    changed = True
                    break
                if decision.group is not None and partner.group != decision.group:
                    alone = members[decision.group] == 1
                    apart = f"shares nothing with its group: it has {other} in common with a layer that is not in it"
                    note = "; ".join(filter(None, (decision.note, None if alone else apart))) or None
                    current[name] = decision = replace(decision, group=None, note=note)
                    changed = True
    return list(current.values())


def name_groups(decisions: Sequence[Decision]) -> list[Decision]:
    """The same with each group called by the name of its first convolution; who is alone in a group is in none."""
    members: dict[Hashable, list[str]] = {}
    for decision in decisions:
        if decision.group is not None:
            members.setdefault(decision.group, []).append(decision.site.name)
    names = {group: found[0] for group, found in members.items() if len(found) > 1}
    return [replace(decision, group=names.get(decision.group)) for decision in decisions]


def split_groups(decisions: Sequence[Decision]) -> list[Decision]:
    """The same with groups whose members are on several devices, or of several dtypes, taken apart.

    The parts of such a group are called by the names of their first convolutions; whole groups keep their names.
    """
    parts: dict[Hashable, dict[Hashable, list[str]]] = {}
    for decision in decisions:
        if decision.group is not None:
            part = parts.setdefault((decision.target, decision.group), {}).setdefault(placement(decision.site), [])
            part.append(decision.site.name)

    def label(decision: Decision) -> Hashable:
        if decision.group is None:
            return None
        of_group = parts[decision.target, decision.group]
        names = of_group[placement(decision.site)]
        if len(names) == 1:
            return None
        return decision.group if len(of_group) == 1 else names[0]

    return [replace(decision, group=label(decision)) for decision in decisions]


def _alike(one: Decision, other: Decision, compare_options: bool) -> bool:
    """Whether the weights made from a shared weight are the same for both: with dilation they may not be.

    Nor with groups, where they approximate it group by group.
    """
    if one.target != other.target or (compare_options and one.options != other.options):
        return False
    modules = (one.site.module, other.site.module)
    plain = all(plain_conv(module) is module for module in modules)
    grouped_alike = modules[0].groups == modules[1].groups or all(
        decision.target is not None and decision.target.fidelity(decision.site, decision.options) == "exact"
        for decision in (one, other)
    )
    return plain and grouped_alike and modules[0].dilation == modules[1].dilation
