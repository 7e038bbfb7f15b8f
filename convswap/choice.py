"""Rules, and which of several decides about each convolution."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from .errors import ConvswapError, NothingToSwapError, PatternError, UnknownNameError
from .factories import called
from .formatting import shorten
from .layers import ConvLayer
from .modules import within
from .options import make_options
from .sites import ConvSite
from .targets import Target, all_targets, get_target
from .targets.registry import KEEP
from .where import Where, check_where, matching, names_matched

CATCH_ALL = "*"


@dataclass(frozen=True, init=False)
class Swap:
    """A rule: convert the convolutions that ``where`` chooses ``to`` a target with these options.

    Attributes:
        where: a glob on the qualified name (``*`` crosses dots), ``re:…``, ``!…`` to exclude, a function of the
            `ConvSite`, or a list of these.
        to: name of a target; or ``"keep"``, to keep what no earlier rule has chosen.
        options: the target's options by their names.
    """

    where: Where
    to: str
    options: Mapping[str, Any]

    def __init__(self, /, where: Where, to: str, **options: Any) -> None:
        if isinstance(where, Iterable) and not isinstance(where, Sequence):
            where = tuple(where)  # which is read more than once
        object.__setattr__(self, "where", where)
        object.__setattr__(self, "to", to)
        object.__setattr__(self, "options", options)


@dataclass(frozen=True)
class Choice:
    """What the rules say of a convolution.

    Attributes:
        rule: place of the rule that decides, from 0, or None if none chooses it.
        reason: that, in words.
        note: what else there is to say about it, or None.
        keeps: whether that rule is to keep.
    """

    rule: int | None
    reason: str
    note: str | None = None
    keeps: bool = False


def as_rules(to: str | Swap | Sequence[Swap], where: Where, options: Mapping[str, Any]) -> tuple[Swap, ...]:
    """The rules that arguments of `plan` stand for.

    Raises:
        ConvswapError: if they are no rules, or where and options are given beside rules.
    """
    if isinstance(to, str):
        return (Swap(where, to, **options),)
    if options or where != CATCH_ALL:
        raise ConvswapError("where and options belong into the Swap rules when rules are given")
    rules: tuple[Swap, ...] = (to,) if isinstance(to, Swap) else tuple(to) if isinstance(to, list | tuple) else ()
    if not rules or not all(isinstance(rule, Swap) for rule in rules):
        raise ConvswapError(f"to must be the name of a target, a Swap or a list of Swaps, got {to!r}")
    return rules


def check_rules(rules: Sequence[Swap]) -> list[tuple[Target, Any] | None]:
    """The target of each rule and its options, None for a rule to keep: all that can be known without a model.

    Raises:
        UnknownNameError, OptionError: for targets and options that do not exist, values that are not allowed.
        PatternError: for a ``where`` that cannot choose anything.
        NothingToSwapError: if all rules are to keep.
    """
    checked = []
    for index, rule in enumerate(rules):
        with in_rule(rules, index):
            checked.append(check_rule(rule))
    if not any(checked):
        raise NothingToSwapError(f"nothing to swap: no rule is to convert, only to {KEEP!r}")
    return checked


def check_rule(rule: Swap) -> tuple[Target, Any] | None:
    """The same for one rule."""
    check_where(rule.where)
    if not isinstance(rule.to, str):
        raise UnknownNameError(f"a rule is for the name of a target, or {KEEP!r}, got {rule.to!r}")
    if rule.to == KEEP:
        if rule.options:
            raise UnknownNameError(f"a rule to {KEEP} takes no options, got {', '.join(rule.options)}")
        return None
    targets = all_targets()
    if rule.to not in targets and isinstance(rule.where, str) and rule.where in targets:
        raise UnknownNameError(f"where comes first: Swap({rule.to!r}, {rule.where!r}, ...)")
    target = get_target(rule.to)
    return target, make_options(target, rule.options)


def choose(rules: Sequence[Swap], sites: Sequence[ConvSite], model: nn.Module) -> list[Choice]:
    """Which rule decides about each of the ``sites`` of ``model``: the first that matches any of its names.

    Raises:
        PatternError: if a pattern matches nothing, or a rule can decide nothing.
    """
    layers = converted_layers(model)
    chosen = []
    for index, rule in enumerate(rules):
        with in_rule(rules, index):
            chosen.append(matching(rule.where, sites, layers))
    deciding = {site.name: [index for index, names in enumerate(chosen) if site.name in names] for site in sites}
    for index in range(1 if len(rules) == 1 else 0, len(rules)):
        _check_use(rules, index, chosen, deciding)
    return [_choice(rules, site, deciding[site.name]) for site in sites]


def kept_all_the_same(rules: Sequence[Swap], index: int, reason: str, idle: bool) -> str:
    """``reason`` for keeping a convolution that a rule is to convert, with the rule if there are several.

    Args:
        rules, index: of which which.
        reason: in itself.
        idle: whether there is one for everything that the rule decides about.
    """
    if len(rules) == 1:
        return reason
    return f"{reason} (decided by {describe_rule(rules, index)}{', which swaps nothing' if idle else ''})"


def describe_rule(rules: Sequence[Swap], index: int) -> str:
    """``rule 2, 'layer4.*' to dcls``."""
    return f"rule {index + 1}, {_where_in_words(rules[index].where)} to {rules[index].to}"


@contextmanager
def in_rule(rules: Sequence[Swap], index: int) -> Iterator[None]:
    """Say which of several rules an error is about."""
    try:
        yield
    except ConvswapError as error:
        if len(rules) == 1:
            raise
        raise type(error)(f"{describe_rule(rules, index)}: {error}") from error


def converted_layers(model: nn.Module) -> dict[str, str]:
    """Names of the layers that conversions put into ``model``, parts of others left out, and their classes."""
    found: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ConvLayer) and not within(name, found):
            found[name] = type(module).__name__
    return found


def _choice(rules: Sequence[Swap], site: ConvSite, deciding: Sequence[int]) -> Choice:
    if len(rules) == 1:
        return Choice(0, "chosen by where") if deciding else Choice(None, "not chosen by where")
    if not deciding:
        return Choice(None, f"chosen by none of the {len(rules)} rules")
    first, note = deciding[0], _by_another_name(rules, site, deciding)
    if rules[first].to == KEEP:
        reason = f"kept by rule {first + 1}: {_where_in_words(rules[first].where)}"
        return Choice(first, "; ".join(filter(None, (reason, note))), keeps=True)
    return Choice(first, f"chosen by rule {first + 1}: {describe_rule(rules, first).partition(', ')[2]}", note)


def _by_another_name(rules: Sequence[Swap], site: ConvSite, deciding: Sequence[int]) -> str | None:
    """What to say of a shared convolution that a later rule was written for under another of its names."""
    seen = names_matched(rules[deciding[0]].where, site)
    for later in deciding[1:] if site.shared else ():
        names = names_matched(rules[later].where, site)
        if not names & seen:
            return (
                f"it is shared, and chosen as {shorten(sorted(seen))}: {describe_rule(rules, later)}, which matches it "
                f"as {shorten(sorted(names))}, comes too late"
            )
    return None


def _check_use(
    rules: Sequence[Swap], index: int, chosen: Sequence[set[str]], deciding: Mapping[str, Sequence[int]]
) -> None:
    """Make sure that something is left for a rule to decide, unless it is ``*``, for whatever is left.

    Raises:
        PatternError: if there is nothing, naming the rules before it that take it.
    """
    names = chosen[index]
    if not names:
        raise PatternError(f"{describe_rule(rules, index)}, chooses nothing: it excludes all that it matches")
    takers = sorted({deciding[name][0] for name in names})
    all_taken = index not in takers
    for_what_is_left = rules[index].where == CATCH_ALL and all(rule.where != CATCH_ALL for rule in rules[:index])
    if all_taken and not for_what_is_left:
        before = "; ".join(describe_rule(rules, one) for one in takers)
        raise PatternError(
            f"{describe_rule(rules, index)}, can never decide: the first rule that matches does, and of the "
            f"{len(names)} that it matches ({shorten(sorted(names), 3)}) all are taken by {before}. "
            "Put it before that, or leave it out"
        )


def _where_in_words(where: Where) -> str:
    if isinstance(where, str):
        return repr(where)
    if callable(where):
        return f"the function {called(where)}"
    return f"[{', '.join(map(_where_in_words, where))}]" if isinstance(where, list | tuple) else repr(where)
