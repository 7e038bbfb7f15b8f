"""Checking that what was read from a file has the types that its dataclass says."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def checked(made: T) -> T:
    """``made``, a dataclass instance, itself.

    Raises:
        TypeError: naming a field whose value is not of the field's type.
    """
    hints = typing.get_type_hints(type(made))
    for field in dataclasses.fields(made):  # type: ignore[arg-type]
        value = getattr(made, field.name)
        if not _fits(value, hints[field.name]):
            raise TypeError(f"{field.name} cannot be {str(value)[:40]!r}")
    return made


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, kind) for kind in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, inner[0]) for item in value)
    if origin is not None:
        return isinstance(value, Mapping) if origin is Mapping else isinstance(value, origin)
    if hint is float:
        return type(value) in (int, float)
    return hint is Any or (isinstance(value, hint) and (type(value) is not bool or hint is bool))
