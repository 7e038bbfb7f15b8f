"""Running code where nothing of convswap is imported, without waiting for torch: it is imported once and forked."""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FORKS = "forkserver" in multiprocessing.get_all_start_methods()
FORKING = "forkserver" if FORKS else "spawn"
"""How all tests start processes: the server that forks them is one, and must have imported nothing but torch."""

_CONTEXT = multiprocessing.get_context(FORKING)
if FORKS:
    _CONTEXT.set_forkserver_preload(["torch"])


class Done(NamedTuple):
    """What is left of a process."""

    returncode: int
    stdout: str
    stderr: str


class Running:
    """A process that runs ``code`` as ``python -c`` would, with these arguments and environment variables besides."""

    def __init__(self, code: str, *arguments: str, **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        variables = {**os.environ, **environment}
        given = (code, arguments, variables, self._folder.name)
        self._process = _CONTEXT.Process(target=_run, args=given, daemon=True)  # ended where nobody waits for it
        self._process.start()

    def wait(self, timeout: float = 300) -> Done:
        """What it printed, and its exit code; AssertionError if it does not end in so many seconds."""
        self._process.join(timeout)
        late = self._process.is_alive()
        if late:
            self._process.kill()
            self._process.join()
        with self._folder:
            out, told = (
                path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
                for path in _files(self._folder.name)
            )
        assert not late, f"the process has not ended after {timeout} seconds; it said: {out}{told}"
        assert self._process.exitcode is not None
        return Done(self._process.exitcode, out, told)


def run(code: str, *arguments: str, **environment: str) -> Done:
    """Run ``code`` to its end."""
    return Running(code, *arguments, **environment).wait()


def _files(folder: str) -> tuple[Path, Path]:
    return Path(folder, "stdout"), Path(folder, "stderr")


def _run(code: str, arguments: tuple[str, ...], variables: Mapping[str, str], folder: str) -> None:
    """Run it here. What it raises is told, and made the exit code, by the library that has started the process."""
    for path, stream in zip(_files(folder), (1, 2), strict=True):  # which native code writes to as well
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = ["-c", *arguments]
    assert not any(name.partition(".")[0] == "convswap" for name in sys.modules)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
