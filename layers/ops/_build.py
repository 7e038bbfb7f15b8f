"""Compiling the kernels: one library for each backend, kept in a cache under the hash of all that went into it.

The libraries are built against torch's stable ABI of version 2.11 and contain no Python: one file serves every torch
from there on.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import torch

Backend = Literal["cpu", "cuda"]
BACKENDS: tuple[Backend, ...] = ("cpu", "cuda")

SOURCES = Path(__file__).parents[2] / "_csrc"
SUFFIXES = {"cpu": ".cpp", "cuda": ".cu"}
TORCH_TARGET = "0x020b000000000000"

COMMON_FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}")


class BuildError(RuntimeError):
    """The compiled kernels cannot be had as asked; the message holds the reason."""


def build(backend: Backend, architectures: Sequence[str] = ()) -> Path:
    """The compiled library of a backend, from the cache or made now.

    Args:
        architectures: for ``cuda``, compute capabilities as ``"90"``; by default those of ``$CONVSWAP_CUDA_ARCHS``, as
            in ``80,90``, or of the visible GPUs.

    Raises:
        BuildError: if there is no compiler, it fails, or the cache cannot be used.
    """
    try:
        import fcntl
    except ImportError as error:
        raise BuildError(f"kernels are compiled on POSIX systems only, and this is {sys.platform}") from error
    library = library_path(backend, architectures)
    if is_compiled(library):
        return library
    try:
        with open(library.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it when its holder dies
            if not is_compiled(library):
                print(f"convswap: compiling its {backend} kernels for the first time ...", file=sys.stderr, flush=True)
                with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
                    linked = _compile(backend, architectures, Path(scratch))
                    _size_file(library).write_text(str(linked.stat().st_size))
                    os.replace(linked, library)
    except OSError as error:
        raise BuildError(f"the cache folder {library.parent} cannot be written to: {error}") from error
    return library


def is_compiled(library: Path) -> bool:
    """Whether the library is there, and whole: the system kills who loads one that is cut off."""
    try:
        return library.stat().st_size == int(_size_file(library).read_text())
    except (OSError, ValueError):
        return False


def _size_file(library: Path) -> Path:
    return library.with_suffix(".size")


def library_path(backend: Backend, architectures: Sequence[str] = ()) -> Path:
    """Where the library of a backend lies, or will lie once it is compiled. Arguments and errors as for `build`.

    A library of more architectures serves as well.
    """
    wanted = _architectures(architectures) if backend == "cuda" else ()
    folder = cache_folder()
    stem = f"{backend}-{_key(backend, *_commands(backend))}"
    for made in sorted(folder.glob(f"{stem}-*.so")):
        if is_compiled(made) and set(wanted) <= set(made.stem.removeprefix(f"{stem}-").split("_")):
            return made
    return folder / f"{stem}-{'_'.join(wanted) or 'any'}.so"


def _compile(backend: Backend, architectures: Sequence[str], folder: Path) -> Path:
    """Compile the sources of a backend side by side in ``folder`` and link them to a library there."""
    compile_command, link_command = _commands(backend)
    if backend == "cuda":
        names = _architectures(architectures)
        compile_command += [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
    sources = sorted((SOURCES / backend).glob(f"*{SUFFIXES[backend]}"))
    objects = [folder / f"{source.stem}.o" for source in sources]
    steps = [[*compile_command, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(_run, steps))
    linked = folder / "linked.so"
    _run([*link_command, *map(str, objects), "-o", str(linked)])
    return linked


def cache_folder() -> Path:
    """The folder that libraries are kept in: ``$CONVSWAP_CACHE``, or ``convswap`` in the user's cache folder.

    Raises:
        BuildError: if it cannot be made, or belongs to somebody else, whose code would be run.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    folder = Path(os.environ.get("CONVSWAP_CACHE") or os.path.join(base, "convswap"))
    try:
        folder = folder.expanduser().absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: of a user without a home
        raise BuildError(
            f"the cache folder {folder} cannot be used ({error}): set CONVSWAP_CACHE to another"
        ) from error
    if status.st_mode & 0o022:
        raise BuildError(f"others may write to the cache folder {folder}: chmod go-w it, or set CONVSWAP_CACHE")
    if status.st_uid != os.getuid():
        raise BuildError(f"the cache folder {folder} belongs to another user: set CONVSWAP_CACHE to one of your own")
    return folder


def _architectures(named: Sequence[str]) -> tuple[str, ...]:
    """Compute capabilities to compile for: the named ones, ``$CONVSWAP_CUDA_ARCHS``, or those of the visible GPUs."""
    text = ",".join(named) or os.environ.get("CONVSWAP_CUDA_ARCHS", "")
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        seen = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        names = [f"{major}{minor}" for major, minor in sorted(seen)]
    if not names:
        raise BuildError("no GPU is visible: set CONVSWAP_CUDA_ARCHS to what to compile for, as in 80,90")
    for name in names:
        if not (name.isascii() and name.rstrip("af").isdecimal()):
            raise BuildError(f"{name!r} is no compute capability: write 90 for 9.0")
    return tuple(dict.fromkeys(names))


def cxx() -> str:
    """The C++ compiler: ``$CXX`` or ``c++``."""
    return os.environ.get("CXX", "").strip() or "c++"


def nvcc() -> str | None:
    """Path of the CUDA compiler: in ``$CUDA_HOME``, on the PATH or in the default folder; None if there is none."""
    home = os.environ.get("CUDA_HOME")
    candidates = (os.path.join(home, "bin", "nvcc") if home else None, "nvcc", "/usr/local/cuda/bin/nvcc")
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def _commands(backend: Backend) -> tuple[list[str], list[str]]:
    """Command lines to compile a source and to link the objects, without names of files and of architectures."""
    root = Path(torch.__file__).parent
    flags = [*COMMON_FLAGS, f"-I{root / 'include'}", f"-I{SOURCES}"]
    libraries = [f"-L{root / 'lib'}"]
    if backend == "cpu":
        try:
            compiler = shlex.split(cxx())
        except ValueError as error:
            raise BuildError(f"CXX={cxx()!r} is no command line: {error}") from error
        flags += ["-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wno-psabi"]
        return [*compiler, *flags], [*compiler, "-shared", *libraries, "-Wl,--no-as-needed", "-ltorch_cpu"]
    found = nvcc()
    if found is None:
        raise BuildError("no nvcc was found in $CUDA_HOME, on the PATH or in /usr/local/cuda: install the CUDA toolkit")
    flags += ["-DUSE_CUDA", "-Xcompiler", "-fPIC", "-Xcompiler", "-fvisibility=hidden"]
    flags += ["--expt-relaxed-constexpr", "-t", "0"]
    libraries += ["-Xlinker", "--no-as-needed", "-ltorch_cpu"]
    if (root / "lib" / "libtorch_cuda.so").exists():
        libraries.append("-ltorch_cuda")
    return [found, *flags], [found, "-shared", *libraries]


def _key(backend: Backend, *commands: list[str]) -> str:
    if not (SOURCES / backend).is_dir():
        raise BuildError(f"there are no sources of kernels at {SOURCES / backend}: install convswap again")
    digest = hashlib.sha256(repr(commands).encode())
    for path in sorted((*SOURCES.glob("*.h"), *(SOURCES / backend).iterdir())):
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"the compiler {command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        told = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise BuildError(f"{command[0]} failed on {_source_of(command)}:\n{told[:4000]}")


def _source_of(command: list[str]) -> str:
    return Path(command[command.index("-c") + 1]).name if "-c" in command else "linking"
