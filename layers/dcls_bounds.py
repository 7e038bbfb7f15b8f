"""Positions within bounds, and layers as a whole, where parameters may be sharded over processes (FSDP, DTensor)."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def clamp_between(P: Tensor, low: Tensor, high: Tensor) -> None:
    """Clamp ``P`` in place, to be called without gradients. The bounds broadcast to it; every process has them."""
    low, high = (bound.to(device=P.device, dtype=P.dtype) for bound in (low, high))
    mesh = getattr(P, "device_mesh", None)
    if mesh is None:
        P.clamp_(low, high)
        return
    from torch.distributed.tensor import DTensor, Replicate  # slow, and not in every build of torch

    # Each process clamps its shard by that of the bounds: what DTensor makes of an axis of size 1 differs by operation.
    sharded: Any = P
    whole = [
        DTensor.from_local(bound.expand(P.shape), mesh, [Replicate()] * mesh.ndim, run_check=False)
        for bound in (low, high)
    ]
    sharded.to_local().clamp_(*(bound.redistribute(placements=sharded.placements).to_local() for bound in whole))


def gathered(module: ModuleT) -> ModuleT:
    """The module itself, or if it is sharded one of its type with whole parameters; then all processes must call it."""
    own = module._parameters
    if not any(hasattr(value, "full_tensor") for value in own.values()):
        return module
    whole = copy.copy(module)
    whole._parameters = {name: None if value is None else _whole(value) for name, value in own.items()}
    return whole


def _whole(value: Any) -> nn.Parameter:
    full = value.detach().full_tensor() if hasattr(value, "full_tensor") else value.detach()
    return nn.Parameter(full, value.requires_grad)
