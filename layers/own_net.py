"""Nets of the user's own as a part of a layer: calling what makes them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

NetFactory: TypeAlias = Callable[[int, int], nn.Module]
"""From the numbers of input channels and of features to a net: (B, channels, *size) to (B, features) or
(B, features, *any). It is called for what layers cost, too, and each time makes a new net."""


def make_net(
    factory: NetFactory,
    option: str,
    channels: int,
    features: int,
    device: torch.device | str,
    dtype: torch.dtype,
    generator: torch.Generator | None,
) -> nn.Module:
    """A copy of the user's own net on this device. With a ``generator`` its random start comes from there.

    A copy, so that what the factory has kept, and may return again, stays as it is and a part of no other layer.

    Args:
        factory: the user's function.
        option: what it was given as, for messages.
        channels, features: its arguments.

    Raises:
        TypeError: if the factory is no function, or returns no module.
        ValueError: if it returns one on the meta device for another, as one does that keeps what it made for a plan.
    """
    if not callable(factory):
        raise TypeError(f"{option} must be a function that returns an nn.Module, got {factory!r}")
    on_meta = torch.device(device).type == "meta"
    own_start = generator is not None and not on_meta
    with torch.random.fork_rng(devices=[], enabled=own_start), torch.device("meta" if on_meta else "cpu"):
        if own_start:
            # The CPU's alone: torch.manual_seed would also set those of GPUs, which are not put back.
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator, device="cpu")))
        net = uncached(factory)(channels, features)
    if not isinstance(net, nn.Module):
        raise TypeError(f"{option} must be a function that returns an nn.Module, it returned {type(net).__name__}")
    if not on_meta and any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers())):
        raise ValueError(
            f"{option} must be a function that makes a new net each time: it returned one on the meta device, as made "
            "for a plan, which has no numbers"
        )
    return _copied(net, on_meta).to(device=device, dtype=dtype)


def uncached(factory: NetFactory) -> NetFactory:
    """The function itself, if ``functools.cache`` or ``lru_cache`` would have it return what it made before.

    That may be on another device, and would have no start of its own.
    """
    plain: NetFactory = factory.__wrapped__ if isinstance(factory, functools._lru_cache_wrapper) else factory
    return plain


def _copied(net: nn.Module, on_meta: bool) -> nn.Module:
    """A deep copy, whose tensors that are no parameters or buffers go to the meta device too if asked to."""
    memo: dict[int, Any] = {}
    for module in net.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor):  # torch copies none that was computed, as weight_norm's are
                memo[id(value)] = value.detach().to("meta") if on_meta else value.detach().clone()
    return copy.deepcopy(net, memo)
