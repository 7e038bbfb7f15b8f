"""Making values of any origin, a user's or a file's, fit the types of a dataclass's fields."""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

T = TypeVar("T")

NO_FIT = object()
"""What `fit` returns for a value that is not of the type."""


def checked(made: T) -> T:
    """``made``, a dataclass instance with what was read from a file, with its values as the fields' types.

    Raises:
        TypeError: naming a field whose value is not of the field's type.
    """
    hints = typing.get_type_hints(type(made))
    values: dict[str, Any] = {}
    for field in dataclasses.fields(made):  # type: ignore[arg-type]
        value = getattr(made, field.name)
        values[field.name] = fit(value, hints[field.name])
        if values[field.name] is NO_FIT:
            raise TypeError(f"{field.name} cannot be {str(value)[:40]!r}")
    return dataclasses.replace(made, **values)  # type: ignore[type-var]


def fit(value: Any, hint: Any, finite: bool = False) -> Any:
    """``value`` as the type ``hint``, or `NO_FIT`.

    Sequences become tuples, mappings dicts, numbers of other libraries (numpy's, torch's) Python's, whole numbers
    floats where floats are asked for. With ``finite``, infinity and NaN fit nothing.
    """
    for kind in alternatives(hint):
        fitted = _fit_one(value, kind, finite)
        if fitted is not NO_FIT:
            return fitted
    return NO_FIT


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a union is of; otherwise the type alone."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _fit_one(value: Any, kind: Any, finite: bool) -> Any:
    origin = typing.get_origin(kind)
    if origin is Literal:
        return next((known for known in typing.get_args(kind) if fit(value, type(known)) == known), NO_FIT)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            return NO_FIT
        items = tuple(fit(item, typing.get_args(kind)[0], finite) for item in value)
        return NO_FIT if any(item is NO_FIT for item in items) else items
    if origin is Mapping:
        return _fit_mapping(value, typing.get_args(kind), finite) if isinstance(value, Mapping) else NO_FIT
    if origin is Callable:
        return value if callable(value) else NO_FIT
    if kind is Any:
        return value
    if kind is int:
        return _whole_number(value)
    if kind is float:
        return _real_number(value, finite)
    return value if isinstance(value, kind if origin is None else origin) else NO_FIT


def _fit_mapping(value: Mapping[Any, Any], kinds: tuple[Any, ...], finite: bool) -> Any:
    fitted = {fit(key, kinds[0], finite): fit(item, kinds[1], finite) for key, item in value.items()}
    return NO_FIT if NO_FIT in fitted or any(item is NO_FIT for item in fitted.values()) else fitted


def _whole_number(value: Any) -> Any:
    """``value`` as an int, which JSON can hold; numpy's and torch's numbers too."""
    if str(getattr(value, "dtype", type(value).__name__)) in ("bool", "torch.bool"):
        return NO_FIT
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return NO_FIT


def _real_number(value: Any, finite: bool) -> Any:
    is_float = isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
    number = value if is_float else _whole_number(value)
    try:
        return NO_FIT if number is NO_FIT or (finite and not math.isfinite(number)) else float(number)
    except OverflowError:
        return NO_FIT
