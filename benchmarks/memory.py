"""Peak memory as the system sees it: what C++ code takes counts too, which no counting of tensors would notice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from torch import Tensor


def measured_elsewhere(module: str, *arguments: str) -> str:
    """What ``module`` prints with these arguments, in a process whose C library gives back at once what is freed."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_TRIM_THRESHOLD_": "4096"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def peak_of(run: Callable[[], object]) -> int:
    """Bytes that this process takes at most while something runs, beyond those it has; its result at the least."""
    results = run()  # what is loaded or set up once is not counted
    tensors = results if isinstance(results, tuple) else (results,)
    least = sum(value.nbytes for value in tensors if isinstance(value, Tensor))
    del results, tensors
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    before = status("VmRSS")
    run()
    return max(status("VmHWM") - before, least)


def status(name: str) -> int:
    """Bytes that the system tells of this process by this name, as ``VmRSS``.

    Raises:
        OSError, RuntimeError: if it tells nothing.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"the system does not tell {name}")
