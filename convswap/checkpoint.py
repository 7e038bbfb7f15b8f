"""Reading other people's checkpoints, without ever unpickling more than tensors."""

from __future__ import annotations

import importlib
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CheckpointMismatchError, FileError

StateDict = dict[str, Tensor]


def read_state_dict(path: Path) -> StateDict:
    """Read a state dict from a ``.pth``, ``.pt`` or safetensors file.

    It may be bare or under ``state_dict_ema``, ``model_ema``, ``state_dict`` or ``model`` (in this order), and its keys
    may have the prefixes of DistributedDataParallel and ``torch.compile``.

    Raises:
        FileError: if the file is missing, damaged, no checkpoint, or holds pickled objects other than tensors.
    """
    if not path.is_file():
        raise FileError(f"there is no file {path}" if not path.exists() else f"{path} is a folder, not a checkpoint")
    if path.stat().st_size == 0:
        raise FileError(f"{path} is empty")
    loaded = _load_safetensors(path) if _is_safetensors(path) else _load_pickle(path)
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        held = ", ".join(map(repr, list(loaded)[:4])) or "nothing"
        raise FileError(f"{path} holds no state dict: its entries are {held}")
    return tensors


def load_into(model: nn.Module, state: StateDict, path: Path) -> None:
    """Load ``state`` into ``model`` strictly, taking over its precision.

    For timm models the old names that their own ``checkpoint_filter_fn`` knows are understood.

    Raises:
        CheckpointMismatchError: naming keys that are missing, left over or of another shape.
    """
    problems: list[str] = []
    for candidate in _candidates(model, state):
        found = mismatches(model, candidate)
        if not found:
            match_precision(model, candidate)
            model.load_state_dict(candidate)
            return
        problems = problems or found
    raise CheckpointMismatchError(
        f"{path} does not fit {type(model).__name__}:\n" + "\n".join(f"  {problem}" for problem in problems)
    )


def match_precision(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every floating-point tensor of ``model`` the dtype that it has in ``state``."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        wanted = state.get(name)
        if wanted is not None and wanted.is_floating_point() and tensor.dtype != wanted.dtype:
            held = tensor if tensor._base is None else tensor._base  # of what has several names, each is a view
            held.data = held.data.to(wanted.dtype)


def shorten_keys(keys: list[str], limit: int = 4) -> str:
    """The first keys, and how many more there are."""
    more = f", … ({len(keys)} in all)" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _load_safetensors(path: Path) -> Mapping[str, Any]:
    import safetensors.torch

    clean: Any = importlib.import_module("timm.models").clean_state_dict
    try:
        cleaned: Mapping[str, Any] = clean(safetensors.torch.load_file(path))
    except Exception as error:  # safetensors' own error class, or an OSError
        raise FileError(f"{path} cannot be read as safetensors: {error}") from error
    return cleaned


def _load_pickle(path: Path) -> Mapping[str, Any]:
    load: Any = importlib.import_module("timm.models").load_state_dict
    try:
        loaded = load(str(path), use_ema=True, device="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise many kinds for files that are not theirs
        raise FileError(_why_unreadable(path, error)) from error
    if not isinstance(loaded, Mapping):
        raise FileError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    return loaded


def _why_unreadable(path: Path, error: Exception) -> str:
    try:
        refused = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # not even the list of what it names can be read; for files older than torch 1.6 the error tells
        refused = re.findall(r"GLOBAL (\S+)", str(error.__cause__))
    if any(_names_module(name) for name in refused):
        return (
            f"{path} holds a whole pickled model ({_model_class(refused)}), which only running its code could load. "
            "Where you trust it, save its weights instead: torch.save(torch.load(path, weights_only=False)"
            ".state_dict(), new_path)"
        )
    if refused:
        return (
            f"{path} holds pickled objects other than tensors ({shorten_keys(sorted(refused))}). Loading them could "
            "run any code, so they are not loaded: save the state dict alone"
        )
    if isinstance(error, AttributeError):  # timm took it for a dict
        return f"{path} holds no state dict: what it holds is no dict with names"
    unreadable = f"{path} is no checkpoint that torch can read, or it is truncated"
    if isinstance(error.__cause__, pickle.UnpicklingError):  # told as if it were a matter of trust
        return unreadable
    return f"{unreadable} ({' '.join([type(error).__name__ + ':', *str(error).splitlines()[:1]])[:160]})"


def _names_module(name: str) -> bool:
    return name.startswith(("torch.nn.modules.", "torchvision.models.", "timm.models.", "timm.layers."))


def _model_class(names: list[str]) -> str:
    own = [name for name in names if not name.startswith("torch.")]
    return next((name for name in own if _names_module(name)), sorted(own or names)[0])


def _candidates(model: nn.Module, state: StateDict) -> Iterator[StateDict]:
    """The state dict as it is, and as the model's library translates older names."""
    yield state
    translate = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    if translate is not None and type(model).__module__.startswith("timm."):
        try:
            yield translate(dict(state), model)
        except Exception:  # it expects the names of some other release
            return


def mismatches(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``state`` from being loaded into ``model`` strictly: a line for each kind of misfit."""
    own = model.state_dict()
    # Batch norms of checkpoints older than torch 0.4.1 lack a counter that nothing depends on.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    left_over = [name for name in state if name not in own]
    other_shape = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = []
    for what, names in (("missing", missing), ("left over", left_over), ("of another shape", other_shape)):
        if names:
            problems.append(f"{what}: {shorten_keys(names)}")
    return problems
