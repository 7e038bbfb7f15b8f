"""Patterns that choose convolutions by name."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from .errors import PatternError, did_you_mean
from .formatting import shorten
from .sites import ConvSite

Where: TypeAlias = "str | Callable[[ConvSite], bool] | Sequence[str | Callable[[ConvSite], bool]]"
"""A glob on the qualified name (``*`` crosses dots), ``re:…`` (full match), ``!…`` to exclude, a function of the
`ConvSite`, or a list of these."""


def matching(
    where: Where, sites: Sequence[ConvSite], others: Mapping[str, str] | None = None, *, what: str = "convolutions"
) -> set[str]:
    """Names of the sites that ``where`` chooses: those that a pattern matches and no ``!`` pattern excludes.

    With ``!`` patterns alone, all but the excluded ones.

    Args:
        where: the patterns.
        sites: what there is to choose from.
        others: names of what is no site, because a conversion has put it there, and their classes; for messages.
        what: the sites are, for messages: "layers" that conversions have put there, if the others are convolutions.

    Raises:
        PatternError: for a pattern that matches none of them at all, naming the nearest, or that is malformed.
    """
    patterns = check_where(where)
    chosen: set[str] = set()
    excluded: set[str] = set()
    for pattern in patterns:
        (excluded if _excludes(pattern) else chosen).update(_match_one(pattern, sites, others or {}, what))
    if all(map(_excludes, patterns)):
        chosen = {site.name for site in sites}
    return chosen - excluded


def check_where(where: Where) -> list[str | Callable[[ConvSite], bool]]:
    """The patterns of ``where``.

    Raises:
        PatternError: if it is malformed, whatever the model.
    """
    patterns = _as_list(where)
    if not patterns:
        raise PatternError("where is an empty list: it would choose nothing")
    for pattern in patterns:
        if isinstance(pattern, str):
            _matcher(pattern.removeprefix("!"))
        elif not callable(pattern):
            raise PatternError(f"where takes strings and functions of a ConvSite, got {pattern!r}")
    return patterns


def names_matched(where: Where, site: ConvSite) -> set[str]:
    """Those names of a site that ``where`` chooses it by; all, if it is by a function or by what is not excluded."""
    wanted = [pattern for pattern in _as_list(where) if not _excludes(pattern)]
    if not all(isinstance(pattern, str) for pattern in wanted):
        return set(site.names())
    matchers = [_matcher(str(pattern)) for pattern in wanted or ["*"]]
    return {name for name in site.names() if any(matches(name) for matches in matchers)}


def _excludes(pattern: str | Callable[[ConvSite], bool]) -> bool:
    return isinstance(pattern, str) and pattern.startswith("!")


def _as_list(where: Any) -> list[str | Callable[[ConvSite], bool]]:
    if isinstance(where, str) or callable(where):
        return [where]
    if isinstance(where, Iterable) and not isinstance(where, bytes | bytearray):
        return list(where)
    raise PatternError(
        "where takes a glob on names, re:…, !… to exclude, a function of a ConvSite, or a list of these; "
        f"got {where!r} (for all convolutions leave it out, or write '*')"
    )


def _match_one(
    pattern: str | Callable[[ConvSite], bool], sites: Sequence[ConvSite], others: Mapping[str, str], what: str
) -> set[str]:
    if not isinstance(pattern, str):
        found = {site.name for site in sites if _holds(pattern, site)}
        if not found:
            raise PatternError(f"the where function chose none of the {len(sites)} {what}")
        return found
    text = pattern.removeprefix("!")
    matches = _matcher(text)
    found = {site.name for site in sites if any(matches(name) for name in site.names())}
    if not found:
        taken = {name: kind for name, kind in others.items() if matches(name)}
        raise PatternError(f"{pattern!r} matches none of the {len(sites)} {what}{_instead(text, taken, sites, what)}")
    return found


def _holds(pattern: Callable[[ConvSite], bool], site: ConvSite) -> bool:
    try:
        return bool(pattern(site))
    except Exception as error:  # whatever the user's code raises
        raise PatternError(
            f"the where function failed for {site.name or 'the model'}: {type(error).__name__}: {error}"
        ) from error


def _matcher(text: str) -> Callable[[str], object]:
    if text.startswith("re:"):
        try:
            return re.compile(text.removeprefix("re:")).fullmatch
        except (re.error, OverflowError, RecursionError) as error:
            raise PatternError(f"{text!r} is no regular expression: {error}") from error
    return re.compile(fnmatch.translate(text)).match


def _instead(text: str, taken: Mapping[str, str], sites: Sequence[ConvSite], what: str) -> str:
    """What to say of a pattern that matches no site: what it matches, or what the nearest sites are called."""
    if taken:
        names, kinds = [name or "the model itself" for name in taken], dict.fromkeys(taken.values())
        found = f"({shorten(names, 3)}: {', '.join(kinds)})"
        if what == "convolutions":
            return (
                f", but layers that conversions put there {found}. To convert these again, make them plain first, with "
                "revert or freeze"
            )
        return f", but what is a plain convolution already {found}"
    names = [name for site in sites for name in site.names()]
    part = text.rstrip(".")
    if not text.startswith("re:") and any(name.startswith(f"{part}.") for name in names):
        return f". It names a module: write {part}.* for the {what} in it."
    hint = did_you_mean(text.removeprefix("re:"), names)
    if hint:
        return f".{hint}"
    shown = ", ".join(names[:3])
    return f". Their names are like {shown}." if shown else "."
