"""Compiling device code as C++ and running it on the CPU, under the sanitizers where the compiler has them."""

import ctypes
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from .. import fresh_process

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc"
COMPILER = shlex.split(os.environ.get("CXX") or "c++")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""A driver gets a dtype as its index in here; see ``dtypes.h``."""

needs_compiler = pytest.mark.skipif(
    shutil.which(COMPILER[0]) is None or sys.platform != "linux",
    reason="device code is emulated where there are a C++ compiler and Linux",
)


class Out:
    """A tensor that a driver's function writes: it is handed over full of NaN and holds the result afterwards."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


LOAD = """
import sys
import torch
torch.set_num_threads(1)
import convswap.layers.ops.{0}
torch.ops.load_library(sys.argv[1])
"""


def run_op(name: str, code: str, folder: Path) -> None:
    """Compile ``csrc/cuda/<name>.cu`` as C++, for the CPU, and run Python code in a process whose ops are those.

    AssertionError if the code fails.
    """
    root = Path(torch.__file__).parent
    library = folder / "op.so"
    command = [*COMPILER, "-std=c++17", "-O0", "-fPIC", "-shared", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    command += [f"-I{SOURCES}", f"-I{HERE}", f"-isystem{root / 'include'}", "-include", "cuda_emulation.h"]
    command += ["-x", "c++", str(SOURCES / "cuda" / f"{name}.cu"), "-o", str(library)]
    command += [f"-L{root / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:8000]
    ran = fresh_process.run(LOAD.format(name) + code, str(library), CONVSWAP_KERNELS="off")
    assert ran.returncode == 0, ran.stderr[-4000:]


class Driver:
    """The extern "C" functions of ``tests/csrc/<name>.cpp``, run in a process of their own.

    The library is compiled into ``libraries`` unless it is there, or being made by another process.
    """

    def __init__(self, name: str, folder: Path, libraries: Path) -> None:
        self.folder = folder
        self.sanitizer = self._sanitizer()
        self.library = libraries / f"{name}.so"
        self.process: subprocess.Popen[bytes] | None = None
        import fcntl  # there where ``needs_compiler`` lets tests run

        with open(libraries / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.library.exists():
                os.replace(self._compiled(HERE / f"{name}.cpp"), self.library)

    def _compiled(self, source: Path) -> Path:
        include, made = Path(torch.__file__).parent / "include", self.folder / "driver.so"
        command = [*COMPILER, "-std=c++17", "-O0", "-g1", "-fPIC", "-shared", "-fno-omit-frame-pointer"]
        command += [f"-I{SOURCES}", f"-I{HERE}", f"-isystem{include}", str(source), "-o", str(made)]
        if self.sanitizer:
            command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:8000]
        return made

    def call(self, name: str, *arguments: Tensor | Out | int | float, orders: tuple[int, ...] = (0, 2)) -> None:
        """Run a function under several orders of threads and blocks: its results must be the same to the bit.

        Tensors are passed by address. AssertionError with the report of the emulation or of a sanitizer if that finds
        something, if an input is written to, or if the results of two orders differ.
        """
        before = [self._bytes(a) for a in arguments]
        first: list[bytes] | None = None
        for order in orders:
            error, after = self._ask((name, order, before))
            assert error is None, error
            if first is None:
                first = after
            assert after == first, f"{name}: the result depends on the order of threads: a barrier is missing"
        pointers = [(a, b) for a, b in zip(arguments, before, strict=True) if isinstance(b, bytes)]
        for (argument, was), now in zip(pointers, first or [], strict=True):
            if isinstance(argument, Out):
                raw = torch.frombuffer(bytearray(now), dtype=torch.uint8) if now else torch.empty(0, dtype=torch.uint8)
                argument.tensor.copy_(raw.view(argument.tensor.dtype).view(argument.tensor.shape))
            else:
                assert was == now, f"{name} writes to an input"

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.communicate()
            self.process = None

    @staticmethod
    def _bytes(value: Tensor | Out | int | float) -> bytes | int | float:
        if isinstance(value, Out):
            return b"\xff" * (value.tensor.numel() * value.tensor.element_size())
        if isinstance(value, Tensor):
            value = value.detach().contiguous()
            return ctypes.string_at(value.data_ptr(), value.numel() * value.element_size()) if value.numel() else b""
        return value

    def _ask(self, request: object) -> tuple[str | None, list[bytes]]:
        if self.process is None:
            environment = dict(os.environ, ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0")
            if self.sanitizer:
                environment["LD_PRELOAD"] = self.sanitizer
            self.process = subprocess.Popen(
                [sys.executable, "-I", str(HERE / "worker.py"), str(self.library)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=open(self.folder / "stderr", "wb"),  # noqa: SIM115
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            pickle.dump(request, self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError):
            self.close()
            told = (self.folder / "stderr").read_text(errors="replace")
            raise AssertionError(f"the emulation ended:\n{told[:6000]}") from None

    def _sanitizer(self) -> str:
        """What the process has to load before all else, or "" where the compiler has no such sanitizer."""
        # Python is not linked to libstdc++, whose functions the sanitizer looks for when it starts.
        libraries = [self._told(f"-print-file-name={name}") for name in ("libasan.so", "libstdc++.so")]
        if not all(map(os.path.isabs, libraries)):
            return ""
        source, probe = self.folder / "probe.cpp", self.folder / "probe.so"
        source.write_text("int probe() { return 0; }\n")
        flags = ["-shared", "-fPIC", "-fsanitize=address,undefined", str(source), "-o", str(probe)]
        works = subprocess.run([*COMPILER, *flags], capture_output=True).returncode == 0
        return " ".join(libraries) if works else ""

    @staticmethod
    def _told(flag: str) -> str:
        return subprocess.run([*COMPILER, flag], capture_output=True, text=True).stdout.strip()
