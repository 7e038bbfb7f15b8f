"""Models that must be unwrapped before they can be converted."""

from __future__ import annotations

import sys
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn

from .errors import ModelError


def refuse_wrapped(model: nn.Module, *, averages: bool = False) -> None:
    """Raise if ``model`` or a part of it is wrapped, compiled, exported or sharded, or cannot be copied as a whole.

    Args:
        model: what the user gave.
        averages: whether averages of another model's weights will do, as where no convolution changes its parameters
            any more.

    Raises:
        ModelError: saying what it is and what to do.
        TypeError: if it is no module at all.
    """
    if not isinstance(model, nn.Module):
        program = _if_imported("torch.export.exported_program.ExportedProgram")
        if program is not None and isinstance(model, program):
            raise ModelError(f"the model is {_EXPORTED}")
        average = _if_imported("timm.utils.model_ema.ModelEma")
        if average is not None and isinstance(model, average):
            raise ModelError(f"the model is {_AVERAGE.format(path='model.ema')}")
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, fx.GraphModule) and any(map(_calls_aten_convolution, model.graph.nodes)):
        raise ModelError(f"the model is {_EXPORTED}")
    parts = {id(module) for module in model.modules()}
    for name, module in model.named_modules():
        what = f"the model's part {name!r}" if name else "the model"
        advice = _advice(module)
        if advice is not None and not (averages and advice is _AVERAGE):
            raise ModelError(f"{what} is {advice.format(path=_path(name, advice))}")
        for attribute, parameter in module._parameters.items():
            if hasattr(parameter, "full_tensor"):
                raise ModelError(
                    f"{what} has a parameter {attribute!r} that is spread over processes (DTensor): convert before "
                    "sharding"
                )
        for attribute, value in module.__dict__.items():
            if isinstance(value, FunctionType) and _closes_over(value, parts):
                raise ModelError(
                    f"{what} has a function as attribute {attribute!r} that refers to a module of the model by "
                    "closure: a copy of the model would run the original's module. Make it a method"
                )


def _calls_aten_convolution(node: fx.Node) -> bool:
    """Whether a node is a convolution with the weights for its arguments, as in what torch.export gives."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.overloadpacket in _ATEN_CONVOLUTIONS


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


def _path(name: str, advice: str) -> str:
    """The expression for what the wrapper of this name in the model holds."""
    attribute = "_orig_mod" if advice is _COMPILED else "module"
    parts = name.split(".") if name else []
    if all(part.isidentifier() for part in parts):
        return ".".join(("model", *parts, attribute))
    return f"model.get_submodule({name!r}).{attribute}"


_AVERAGE = (
    "an average of the weights of another model, which it could not follow any more: convert that model, then make an "
    "average of the result; or convert {path}, if the average is all that is wanted"
)

_COMPILED = "wrapped by torch.compile: convert {path}, then compile the result"

_EXPORTED = "exported by torch.export, its code fixed: convert the eager model, then export the result"

_ATEN_CONVOLUTIONS = frozenset(
    getattr(torch.ops.aten, name) for name in ("conv1d", "conv2d", "conv3d", "convolution", "_convolution")
)

_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": _COMPILED,
    "torch.nn.parallel.distributed.DistributedDataParallel": (
        "wrapped in DistributedDataParallel: convert {path}, then wrap the result on every rank "
        "(with the same seed all ranks get the same start)"
    ),
    "torch.nn.parallel.data_parallel.DataParallel": ("wrapped in DataParallel: convert {path}, then wrap the result"),
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "wrapped in FullyShardedDataParallel, whose weights are spread over ranks: convert before wrapping"
    ),
    "torch.distributed.fsdp._fully_shard._fully_shard.FSDPModule": (
        "sharded by fully_shard, its weights spread over ranks: convert before sharding"
    ),
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": (
        "wrapped for activation checkpointing or offloading, with other names in the model than in state dicts, so "
        "that files would fit wrapped models alone: convert before wrapping"
    ),
    "torch.optim.swa_utils.AveragedModel": _AVERAGE,
    "timm.utils.model_ema.ModelEmaV2": _AVERAGE,
    "timm.utils.model_ema.ModelEmaV3": _AVERAGE,
    "torch.export.unflatten.UnflattenedModule": _EXPORTED,
}
