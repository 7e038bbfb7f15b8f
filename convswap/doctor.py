"""What convswap finds on this machine."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .layers.ops._build import BACKENDS, Backend, BuildError, cxx, is_compiled, library_path, nvcc
from .layers.ops._load import kernels_mode, load_kernels, why_not_loaded
from .targets import all_targets, broken_targets


@dataclass(frozen=True)
class Diagnosis:
    """What matters to convswap about a machine.

    Attributes:
        versions: of Python and the packages it works with; None for one that is missing.
        devices: what torch can compute on.
        threads: that torch uses.
        compilers: version lines of the C++ and CUDA compilers; None for one that is missing.
        kernels: for each backend whether compiled kernels are at hand, and if not, why.
        targets: names of the targets.
        broken_targets: targets of other packages that could not be loaded, and why.
    """

    versions: dict[str, str | None]
    devices: tuple[str, ...]
    threads: int
    compilers: dict[str, str | None]
    kernels: dict[str, str]
    targets: tuple[str, ...]
    broken_targets: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def diagnose() -> Diagnosis:
    """Look at this machine."""
    packages = ("convswap", "torch", "torchvision", "timm", "safetensors", "rich", "jinja2")
    return Diagnosis(
        versions={"python": platform.python_version(), **{name: _version(name) for name in packages}},
        devices=_devices(),
        threads=torch.get_num_threads(),
        compilers={"c++": _first_line(cxx()), "nvcc": _first_line(nvcc() or "nvcc", last=True)},
        kernels={backend: _kernels(backend) for backend in BACKENDS},
        targets=tuple(all_targets()),
        broken_targets=broken_targets(),
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> tuple[str, ...]:
    gpus = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return (f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}", *gpus, *mps)


def _kernels(backend: Backend) -> str:
    """Whether the compiled kernels of a backend can be used. Compiles nothing."""
    try:
        if kernels_mode() == "off":
            return "not used: CONVSWAP_KERNELS=off"
        library = library_path(backend)
        if not is_compiled(library):
            return "not compiled yet: the first layer that wants them compiles them, or `convswap build`"
        load_kernels(backend)
    except BuildError as error:
        return f"not used: {error}"
    reason = why_not_loaded(backend)
    return f"not used: {reason}" if reason else f"compiled: {library}"


def _first_line(compiler: str, last: bool = False) -> str | None:
    """The first (or last) line of what a compiler says of its version, or None if there is no such compiler."""
    try:
        command = shlex.split(compiler)
    except ValueError as error:
        return f"does not run: {error}"
    if shutil.which(command[0]) is None:
        return None
    try:
        told = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not run: {error}"
    lines = told.strip().splitlines() or ["?"]
    return lines[-1 if last else 0]
