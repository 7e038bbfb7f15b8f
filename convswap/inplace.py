"""Which nodes of a graph change what they are given in place."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from .layers import ConvLayer


def latest(node: fx.Node, root: nn.Module) -> fx.Node:
    """The last node so far that has the tensor of ``node``: itself, or the last one to have changed it in place."""
    while True:
        changers = [user for user in node.users if user.args[:1] == (node,) and _changes(user, root)]
        if not changers:
            return node
        node = changers[-1]


def only_read(node: fx.Node, root: nn.Module, besides: Callable[[fx.Node], bool]) -> bool:
    """Whether the value of ``node`` is known to stay what it is: memory of its own, which all who use it only read.

    Users ``besides`` are known to.
    """
    makes_memory = node.op == "placeholder" or _is_known(node, root)
    return makes_memory and all(besides(user) or _is_known(user, root) for user in node.users)


def _changes(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    inplace: Any = node.kwargs.get("inplace", False)
    return bool(inplace) or node.target in _IN_PLACE_OPERATORS


_OPERATORS = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
_IN_PLACE_OPERATORS = frozenset(getattr(operator, f"i{name}") for name in _OPERATORS)


def _is_known(node: fx.Node, root: nn.Module) -> bool:
    """Whether it is a call of a module that leaves what it is given as it is, and gives none of it out again."""
    if node.op != "call_module":
        return False
    module = root.get_submodule(str(node.target))
    return isinstance(module, ConvLayer) or type(module) in _KNOWN


_KNOWN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.MaxPool2d, nn.Linear)
