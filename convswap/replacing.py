"""Putting modules in the places of others, wherever a model refers to them."""

from __future__ import annotations

import functools
from collections import deque
from types import MethodType
from typing import Any

from torch import nn

from .errors import ModelError
from .modules import MODULE_STATE


def put_in_place(model: nn.Module, layers: dict[int, nn.Module]) -> None:
    """Put ``layers`` in place of modules of ``model`` itself, given by their identities.

    Registered modules are replaced, and references to them in attributes, also from within containers and partials.

    Raises:
        ModelError: if the model is itself to be replaced.
    """
    if id(model) in layers:
        raise ModelError("the model is itself a convolution and cannot replace itself: use new = convert(model, ...)")
    seen: set[int] = set()
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if id(child) in layers:
                module._modules[name] = layers[id(child)]
        for name, value in module.__dict__.items():
            if name not in MODULE_STATE:
                module.__dict__[name] = _replace_inside(value, layers, seen)


def _replace_inside(value: Any, layers: dict[int, nn.Module], seen: set[int]) -> Any:
    """``value``, or what takes its place, with the modules replaced that it refers to; untouched if there are none."""
    if id(value) in layers:
        return layers[id(value)]
    if isinstance(value, MethodType) and id(value.__self__) in layers:
        return getattr(layers[id(value.__self__)], value.__name__)
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        new = tuple(_replace_inside(part, layers, seen) for part in parts)
        same = all(one is other for one, other in zip(new, parts, strict=True))
        return value if same else functools.partial(new[0], *new[1], **new[2])
    if id(value) in seen or not isinstance(value, tuple | list | dict | set | frozenset | deque):
        return value
    seen.add(id(value))
    if isinstance(value, dict):
        for key, item in list(value.items()):
            replaced = _replace_inside(item, layers, seen)
            if replaced is not item:
                value[key] = replaced
        return value
    items = [_replace_inside(item, layers, seen) for item in value]
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    if isinstance(value, tuple):
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, frozenset):
        return frozenset(items)
    value.clear()
    (value.update if isinstance(value, set) else value.extend)(items)
    return value
