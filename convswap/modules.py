"""What holds for any module: its state, its mode, and the names of its parts."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

MODULE_STATE = frozenset(nn.Module().__dict__)
"""Names of the attributes that every module has."""


def join(prefix: str, name: str) -> str:
    """The qualified name of what is called ``name`` within the part ``prefix``, either of which may be empty."""
    return f"{prefix}.{name}" if prefix and name else prefix or name


def within(name: str, owners: Container[str]) -> bool:
    """Whether a module of one of the names in ``owners`` is around what is called ``name``."""
    parts = name.split(".") if name else []
    return any(".".join(parts[:count]) in owners for count in range(len(parts)))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, if it is compiled or in a wrapper that spreads it over devices."""
    found: Any = model
    while True:
        if isinstance(found, DataParallel | DistributedDataParallel):
            found = found.module
        elif "_orig_mod" in found._modules:  # of torch.compile
            found = found._orig_mod
        else:
            return found  # type: ignore[no-any-return]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """All parts of ``model`` in evaluation mode, and each in its own again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
