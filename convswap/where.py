"""Patterns that choose convolutions by name."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from .errors import PatternError, did_you_mean
from .sites import ConvSite

Where: TypeAlias = "str | Callable[[ConvSite], bool] | Sequence[str | Callable[[ConvSite], bool]]"
"""A glob on the qualified name (``*`` crosses dots), ``re:…`` (full match), ``!…`` to exclude, a function of the
`ConvSite`, or a list of these."""


def matching(where: Where, sites: Sequence[ConvSite]) -> set[str]:
    """Names of the sites that ``where`` chooses: those that a pattern matches and no ``!`` pattern excludes.

    With ``!`` patterns alone, all but the excluded ones.

    Raises:
        PatternError: for a pattern that matches no convolution at all, naming the nearest, or that is malformed.
    """
    patterns = _as_list(where)
    if not patterns:
        raise PatternError("where is an empty list: it would choose nothing")
    chosen: set[str] = set()
    excluded: set[str] = set()
    for pattern in patterns:
        negative = isinstance(pattern, str) and pattern.startswith("!")
        (excluded if negative else chosen).update(_match_one(pattern, sites))
    if all(isinstance(pattern, str) and pattern.startswith("!") for pattern in patterns):
        chosen = {site.name for site in sites}
    return chosen - excluded


def _as_list(where: Any) -> list[str | Callable[[ConvSite], bool]]:
    if isinstance(where, str) or callable(where):
        return [where]
    if isinstance(where, Iterable) and not isinstance(where, bytes | bytearray):
        return list(where)
    raise PatternError(
        "where takes a glob on names, re:…, !… to exclude, a function of a ConvSite, or a list of these; "
        f"got {where!r} (for all convolutions leave it out, or write '*')"
    )


def _match_one(pattern: str | Callable[[ConvSite], bool], sites: Sequence[ConvSite]) -> set[str]:
    if callable(pattern):
        found = {site.name for site in sites if pattern(site)}
        if not found:
            raise PatternError(f"the where function chose none of the {len(sites)} convolutions")
        return found
    if not isinstance(pattern, str):
        raise PatternError(f"where takes strings and functions of a ConvSite, got {pattern!r}")
    text = pattern.removeprefix("!")
    matches = _matcher(text)
    found = {site.name for site in sites if any(matches(name) for name in site.names())}
    if not found:
        raise PatternError(_no_match(pattern, text, sites))
    return found


def _matcher(text: str) -> Callable[[str], object]:
    if text.startswith("re:"):
        try:
            return re.compile(text.removeprefix("re:")).fullmatch
        except re.error as error:
            raise PatternError(f"{text!r} is no regular expression: {error}") from error
    return re.compile(fnmatch.translate(text)).match


def _no_match(pattern: str, text: str, sites: Sequence[ConvSite]) -> str:
    names = [name for site in sites for name in site.names()]
    message = f"{pattern!r} matches none of the {len(sites)} convolutions."
    if not text.startswith("re:") and any(name.startswith(f"{text.rstrip('.')}.") for name in names):
        return f"{message} It names a module: write {text.rstrip('.')}.* for the convolutions in it."
    hint = did_you_mean(text.removeprefix("re:"), names)
    if hint:
        return message + hint
    shown = ", ".join(names[:3])
    return f"{message} Their names are like {shown}." if shown else message
