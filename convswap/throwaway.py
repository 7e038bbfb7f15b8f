"""Copies of a model to be traced and run for their shapes, and then thrown away.

Models cache tensors during a forward pass and keep what they were traced with. A throwaway copy takes that, and has
fake parameters, so that it costs no memory and no arithmetic.
"""

from __future__ import annotations

import copy
import functools
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from .errors import ModelError

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def throwaway_copy(model: nn.Module, mode: FakeTensorMode | None) -> nn.Module:
    """A deep copy of ``model`` with fake tensors of ``mode``, or real ones if it is None, without the user's hooks.

    Single numbers (flags and counters, which models branch on) stay real.

    Raises:
        ModelError: if the model cannot be deep-copied.
    """
    memo: dict[int, Any] = {}
    try:
        for module in model.modules():
            for tensor in _tensors_of(module):
                if id(tensor) not in memo:
                    memo[id(tensor)] = _stand_in(tensor, mode)
            for name in _HOOKS:
                hooks = module.__dict__.get(name)
                if hooks is not None:
                    memo[id(hooks)] = OrderedDict()
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be deep-copied ({type(error).__name__}: {error}). Remove what cannot be "
            "copied (open files, locks, generators) from the model's attributes first."
        ) from error


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    for held in (module._parameters, module._buffers, module.__dict__):
        for value in held.values():
            if isinstance(value, Tensor):
                yield value


def _unusual(tensor: Tensor) -> bool:
    """Whether it is no block of numbers with strides, so that nothing that is made by strides can stand for it."""
    return tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested


def _stand_in(tensor: Tensor, mode: FakeTensorMode | None) -> Tensor:
    if nn.parameter.is_lazy(tensor):
        return tensor
    number = tensor.numel() == 1 and not tensor.is_meta and not isinstance(tensor, nn.Parameter)
    if mode is None or number or _unusual(tensor):
        copied = tensor.detach().clone()
        return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
    # Ten times faster than mode.from_tensor, which looks into how tensors share memory.
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    fake = FakeTensor(mode, empty, tensor.device)
    if isinstance(tensor, nn.Parameter):
        fake.requires_grad_(tensor.requires_grad)
        fake._is_param = True  # as nn.Parameter marks tensors of other classes, without its detached copy
    return fake


@contextmanager
def cleared_caches(model: nn.Module) -> Iterator[None]:
    """Clear afterwards what the model's code has cached meanwhile by ``functools.lru_cache``: it may be fake."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    sources = {id(names): names for names in map(_names_around, kinds)}
    caches: list[Any] = [
        value
        for names in sources.values()
        for value in names.values()
        if isinstance(value, functools._lru_cache_wrapper)
    ]
    misses = [cache.cache_info().misses for cache in caches]
    try:
        yield
    finally:
        for cache, before in zip(caches, misses, strict=True):
            if cache.cache_info().misses != before:
                cache.cache_clear()


def _names_around(kind: type) -> dict[str, Any]:
    """The names of the module that a class is from, which need not be registered, as one that torch.hub has run."""
    module = sys.modules.get(kind.__module__)
    if module is not None:
        return vars(module)
    names: dict[str, Any] = getattr(getattr(kind, "forward", None), "__globals__", {})
    return names


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Put the global random states back afterwards, whatever the model's code has drawn."""
    state = random.getstate()
    numpy: Any = sys.modules.get("numpy.random")
    numpy_state = None if numpy is None else numpy.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(state)
        if numpy is not None:
            numpy.set_state(numpy_state)
