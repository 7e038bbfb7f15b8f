"""Models that must be unwrapped before they can be converted."""

from __future__ import annotations

import sys
from types import FunctionType
from typing import Any

import torch
from torch import nn

from .errors import ModelError


def refuse_wrapped(model: nn.Module) -> None:
    """Raise if ``model`` or a part of it is wrapped, compiled or scripted, or cannot be copied as a whole.

    Raises:
        ModelError: saying what it is and what to do.
        TypeError: if it is no module at all.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    parts = {id(module) for module in model.modules()}
    for name, module in model.named_modules():
        what = f"the model's part {name!r}" if name else "the model"
        advice = _advice(module)
        if advice is not None:
            raise ModelError(f"{what} is {advice}")
        for attribute, value in module.__dict__.items():
            if isinstance(value, FunctionType) and _closes_over(value, parts):
                raise ModelError(
                    f"{what} has a function as attribute {attribute!r} that refers to a module of the model by "
                    "closure: a copy of the model would run the original's module. Make it a method"
                )


def _closes_over(function: FunctionType, parts: set[int]) -> bool:
    for cell in function.__closure__ or ():
        try:
            if id(cell.cell_contents) in parts:
                return True
        except ValueError:  # an empty cell
            continue
    return False


def _advice(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module, whose code is fixed: convert the eager model, then script the result"
    if module._compiled_call_impl is not None:
        return "compiled in place (module.compile()): convert first, then compile the result"
    for path, advice in _WRAPPERS.items():
        wrapper = _if_imported(path)
        if wrapper is not None and isinstance(module, wrapper):
            return advice
    return None


def _if_imported(path: str) -> Any:
    """The class of this path if its module has been imported; no instance of it can exist otherwise."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": (
        "wrapped by torch.compile: convert model._orig_mod, then compile the result"
    ),
    "torch.nn.parallel.distributed.DistributedDataParallel": (
        "wrapped in DistributedDataParallel: convert model.module, then wrap the result on every rank "
        "(with the same seed all ranks get the same start)"
    ),
    "torch.nn.parallel.data_parallel.DataParallel": (
        "wrapped in DataParallel: convert model.module, then wrap the result"
    ),
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "wrapped in FullyShardedDataParallel, whose weights are spread over ranks: convert before wrapping"
    ),
    "torch.distributed.fsdp._fully_shard._fully_shard.FSDPModule": (
        "sharded by fully_shard, its weights spread over ranks: convert before sharding"
    ),
}
