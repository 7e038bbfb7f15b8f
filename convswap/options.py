"""Turning what users write as options into a target's options dataclass."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .errors import OptionError, UnknownNameError, did_you_mean
from .targets import Target


def make_options(target: Target, given: Mapping[str, Any]) -> Any:
    """The options dataclass of ``target`` with the values of ``given``.

    Raises:
        UnknownNameError: for an option that the target does not have.
        OptionError: for a value that is of the wrong type or not allowed.
    """
    hints = typing.get_type_hints(target.options)
    names = [field.name for field in dataclasses.fields(target.options)]
    values = {}
    for name, value in given.items():
        if name not in names:
            raise UnknownNameError(
                f"target {target.name!r} has no option {name!r}.{did_you_mean(name, names)} "
                f"Options: {', '.join(names) or 'none'}."
            )
        values[name] = _fit(value, hints[name], f"option {name!r} of target {target.name!r}")
    try:
        return target.options(**values)
    except ValueError as error:
        raise OptionError(f"target {target.name!r}: {error}") from error


def options_to_dict(options: Any) -> dict[str, Any]:
    """The fields of an options dataclass as JSON values."""
    return {
        field.name: list(value) if isinstance(value := getattr(options, field.name), tuple) else value
        for field in dataclasses.fields(options)
    }


def parse_assignment(text: str) -> tuple[str, Any]:
    """``"name=value"`` from a command line; the value is JSON, numbers with commas between them, or else a string.

    Raises:
        OptionError: if there is no ``=``.
    """
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        raise OptionError(f"expected name=value, got {text!r}")
    return name.strip().replace("-", "_"), _parse_value(value.strip())


def _parse_value(text: str) -> Any:
    lowered = text.lower()
    if lowered in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(lowered)
    for candidate in (text, f"[{text}]") if text else ():
        try:
            return json.loads(candidate)
        except ValueError:
            continue
    return text


def _fit(value: Any, hint: Any, what: str) -> Any:
    """``value`` as the type of a field, where it is of that type but for tuples and numbers of other libraries."""
    for kind in _alternatives(hint):
        fitted = _fit_one(value, kind)
        if fitted is not _NO_FIT:
            return fitted
    raise OptionError(f"{what} must be {_describe(hint)}, got {value!r}")


_NO_FIT = object()


def _fit_one(value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        return next((known for known in typing.get_args(kind) if _fit_one(value, type(known)) == known), _NO_FIT)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            return _NO_FIT
        items = [_fit_one(item, typing.get_args(kind)[0]) for item in value]
        return _NO_FIT if any(item is _NO_FIT for item in items) else tuple(items)
    if kind is type(None):
        return None if value is None else _NO_FIT
    if kind is int:
        return _whole_number(value)
    if kind is float:
        return _finite_number(value)
    if kind is Any or (isinstance(kind, type) and isinstance(value, kind)):
        return value
    if not isinstance(kind, type) and callable(value):
        return value
    return _NO_FIT


def _whole_number(value: Any) -> Any:
    """``value`` as an int, which JSON can hold; numpy's and torch's numbers too."""
    if str(getattr(value, "dtype", type(value).__name__)) in ("bool", "torch.bool"):
        return _NO_FIT
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return _NO_FIT


def _finite_number(value: Any) -> Any:
    is_float = isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
    number = value if is_float else _whole_number(value)
    try:
        return float(number) if number is not _NO_FIT and math.isfinite(number) else _NO_FIT
    except OverflowError:
        return _NO_FIT


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _describe(hint: Any) -> str:
    words: list[str] = []
    for kind in _alternatives(hint):
        if typing.get_origin(kind) is Literal:
            words.extend(repr(value) for value in typing.get_args(kind))
        elif typing.get_origin(kind) is tuple:
            words.append(f"several of {typing.get_args(kind)[0].__name__}")
        else:
            words.append(
                {type(None): "None", int: "a whole number", float: "a finite number", bool: "true or false"}.get(
                    kind, getattr(kind, "__name__", str(kind))
                )
            )
    return " or ".join(words)
