"""Turning what users write as options into a target's options dataclass."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

from .errors import OptionError, UnknownNameError, did_you_mean
from .factories import factory_name
from .field_types import NO_FIT, alternatives, fit
from .targets import Target, get_target


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
        if value is None and any("none" in typing.get_args(kind) for kind in alternatives(hints[name])):
            value = "none"  # which a command line's "none" is not read as
        values[name] = fit(value, hints[name], finite=True)
        if values[name] is NO_FIT:
            raise OptionError(
                f"option {name!r} of target {target.name!r} must be {_describe(hints[name])}, got {value!r}"
            )
    try:
        return target.options(**values)
    except ValueError as error:
        raise OptionError(f"target {target.name!r}: {error}") from error


def options_to_dict(options: Any) -> dict[str, Any]:
    """The fields of an options dataclass as JSON values.

    Of a function in a field that takes its name as well it is that name; only one that cannot be imported by a name is
    given as it is.
    """
    kind: Any = type(options)
    code = _code_fields(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, Mapping):
            value = dict(value)
        elif field.name in code and callable(value):
            value = factory_name(value) or value
        values[field.name] = value
    return values


def code_named_by(target_name: str, options: Mapping[str, Any]) -> str | None:
    """What building a layer with these options of a target would import, as ``package.module:function``, or None.

    Raises:
        UnknownNameError: if there is no such target.
    """
    kind: Any = get_target(target_name).options
    values = (options.get(name) for name in _code_fields(kind))
    return ", ".join(value for value in values if isinstance(value, str)) or None


def without_code(target_name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a target but those that are functions, or may be the names of some.

    Raises:
        UnknownNameError: if there is no such target.
    """
    kind: Any = get_target(target_name).options
    return {name: value for name, value in options.items() if name not in _code_fields(kind)}


@cache
def _code_fields(options: Any) -> tuple[str, ...]:
    """Fields for a function or the name of one: those whose type is both a function's and a string's."""
    hints = typing.get_type_hints(options)

    def takes_code(hint: Any) -> bool:
        kinds = alternatives(hint)
        return str in kinds and any(typing.get_origin(kind) is Callable for kind in kinds)

    return tuple(field.name for field in dataclasses.fields(options) if takes_code(hints[field.name]))


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


def _describe(hint: Any) -> str:
    words: list[str] = []
    for kind in alternatives(hint):
        origin = typing.get_origin(kind)
        if origin is Literal:
            words.extend(repr(value) for value in typing.get_args(kind))
        elif origin is tuple:
            words.append(f"several of {typing.get_args(kind)[0].__name__}")
        elif origin is Mapping:
            names, values = (known.__name__ for known in typing.get_args(kind))
            words.append(f"a mapping of {names} to {values}")
        elif origin is Callable:
            words.append("a function")
        else:
            words.append(
                {type(None): "None", int: "a whole number", float: "a finite number", bool: "true or false"}.get(
                    kind, getattr(kind, "__name__", str(kind))
                )
            )
    return " or ".join(words)
