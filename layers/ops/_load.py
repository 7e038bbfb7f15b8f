"""Which kernels are in use: those of a compiled library where there is one, else the plain PyTorch forms.

``CONVSWAP_KERNELS`` decides: ``auto`` (default) compiles at the first use and, if that fails, warns once and goes on
without; ``off`` never compiles or loads; ``require`` raises where ``auto`` warns.
"""

from __future__ import annotations

import os
import threading
import warnings

import torch
from torch import Tensor, nn
from torch._C._functorch import CInterpreter, peek_interpreter_stack
from torch.autograd import forward_ad

from .._exporting import is_exporting
from ._agreement import first_disagreement
from ._build import BACKENDS, Backend, BuildError, build
from ._define import register_flop_formulas

MODES = ("auto", "off", "require")

KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""What the kernels compute; torch's own operations know complex numbers and integers too."""


class KernelWarning(UserWarning):
    """The compiled kernels are not in use, and plain PyTorch is."""


_tried: dict[str, str | None] = {}  # why a backend's library is not in use; None if it is
_lock = threading.RLock()


def kernels_mode() -> str:
    """What ``CONVSWAP_KERNELS`` says.

    Raises:
        BuildError: if it is no mode.
    """
    mode = os.environ.get("CONVSWAP_KERNELS") or "auto"
    if mode not in MODES:
        raise BuildError(f"CONVSWAP_KERNELS must be one of {', '.join(MODES)}, got {mode!r}")
    return mode


def kernels_loaded(device_type: str) -> bool:
    """Whether the compiled kernels of ``"cpu"`` or ``"cuda"`` are in use. Compiles nothing."""
    return device_type in _tried and _tried[device_type] is None


def why_not_loaded(device_type: str) -> str | None:
    """Why the compiled kernels are not in use, or None if they are."""
    return _tried.get(device_type, "no layer has wanted them yet")


def load_kernels(device_type: str) -> bool:
    """Compile the kernels of a device type if need be, and take them into use. Whether they are in use.

    Raises:
        BuildError: if that fails and ``CONVSWAP_KERNELS=require``.
    """
    if device_type not in BACKENDS:
        return False
    if device_type in _tried:  # the usual case, without the lock
        return kernels_loaded(device_type)
    with _lock:
        if device_type not in _tried:
            mode = kernels_mode()
            _tried[device_type] = "CONVSWAP_KERNELS=off" if mode == "off" else _load(device_type, mode)
            register_flop_formulas()
    return kernels_loaded(device_type)


def want_kernels(*where: Tensor | nn.Module | None) -> None:
    """Load the kernels for the devices of tensors, or of the parameters of modules; not while a compiler looks on."""
    if torch.compiler.is_compiling():
        return
    for value in where:
        for tensor in value.parameters() if isinstance(value, nn.Module) else (value,):
            if tensor is not None and tensor.device.type not in _tried:
                load_kernels(tensor.device.type)


def use_kernels(value: Tensor) -> bool:
    """Whether what is computed with ``value`` is to run on compiled kernels, which are loaded for it if need be.

    What is exported must consist of torch's own operations, and those of torch alone have derivatives in forward mode
    and under the transforms of ``torch.func``, compiled or not.
    """
    return want_ops(value) and kernels_loaded(value.device.type)


def use_ops(value: Tensor) -> bool:
    """`use_kernels`, and for tensors on the meta device too, as far as there can be kernels for their like.

    There an op tells its result's shape, what it keeps and what it costs as it does with kernels, unless these are
    switched off or could not be loaded.
    """
    if not want_ops(value):
        return False
    return _kernels_to_be_expected() if value.is_meta else kernels_loaded(value.device.type)


def _kernels_to_be_expected() -> bool:
    """Whether a real tensor would find kernels, as far as can be told without compiling any."""
    if _tried:
        return None in _tried.values()
    return kernels_mode() != "off"


def want_ops(value: Tensor) -> bool:
    """Whether what is computed with ``value`` can be an op of ours, with kernels or without; they are loaded if not.

    For ops whose plain form is worth calling as an op too, for the sake of its backward.
    """
    if is_exporting() or value.dtype not in KERNEL_DTYPES or forward_ad._current_level >= 0:
        return False
    if isinstance(peek_interpreter_stack(), CInterpreter):  # torch.compile takes `is not None` to be always true
        return False
    want_kernels(value)
    return True


def _load(backend: Backend, mode: str) -> str | None:
    try:
        library = build(backend)
        try:
            torch.ops.load_library(str(library))
        except (OSError, RuntimeError) as error:
            raise BuildError(f"{error} (delete {library} to have it compiled again)") from error
        wrong = first_disagreement(backend) if backend == "cuda" else None
        if wrong is not None:
            raise BuildError(f"{wrong} gives other numbers on this GPU than on the CPU: please report it")
    except BuildError as error:
        if mode == "require":
            raise BuildError(f"the {backend} kernels are required and cannot be used: {error}") from error
        warnings.warn(
            f"the {backend} kernels of convswap are not in use, plain PyTorch is: {error}\n"
            "CONVSWAP_KERNELS=off silences this; `convswap build` tries again.",
            KernelWarning,
            stacklevel=2,
        )
        return str(error)
    return None
