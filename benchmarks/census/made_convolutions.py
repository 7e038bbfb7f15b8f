"""Counting the convolutions that a model is built of where they are made, whatever it then registers them as."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd


class Made:
    """The convolutions that were made; those that nobody holds on to are forgotten."""

    def __init__(self) -> None:
        self.convolutions: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def outside(self, model: nn.Module) -> dict[str, int]:
        """Those that still are, and are no modules of ``model``, number by class."""
        modules = {id(module) for module in model.modules()}
        if all(id(conv) in modules for conv in self.convolutions):
            return {}
        gc.collect()  # what was thrown away may wait in a cycle
        return dict(Counter(type(conv).__name__ for conv in self.convolutions if id(conv) not in modules))


@contextmanager
def made_convolutions() -> Iterator[Made]:
    """Note every convolution that is made meanwhile, of torch's classes and of all that derive from them."""
    made = Made()
    init: Any = _ConvNd.__init__

    def noting(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        made.convolutions.add(self)

    _ConvNd.__init__ = noting  # type: ignore[method-assign]
    try:
        yield made
    finally:
        _ConvNd.__init__ = init  # type: ignore[method-assign]
