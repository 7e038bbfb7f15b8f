"""A process of its own for each model, with limits of time and memory: no model can spoil another's result."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from .reasons import in_words

Work = Callable[[str], dict[str, Any]]
OnResult = Callable[[str, dict[str, Any]], None]

_LOOK_EVERY = 0.1  # seconds
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class _Running:
    name: str
    process: BaseProcess
    results: Connection
    started: float


def run_each(
    names: Iterable[str],
    work: Work,
    *,
    workers: int,
    time_limit: float,
    memory_limit: float,
    on_result: OnResult,
    on_start: Callable[[str], None] = lambda name: None,
) -> None:
    """Call ``work`` on each name in a process forked from this one, so that what is imported is imported once.

    What fails gives a result with the key ``"failure"``, in words: what ``work`` raised, the signal its process died
    of, or the limit that it passed.

    Args:
        names: of models, begun in this order.
        work: gives a result that can be pickled.
        workers: processes at a time.
        time_limit: seconds for each name.
        memory_limit: GiB of resident memory for each process, what it has in common with this one included; only where
            there is ``/proc``.
        on_result: called here with each name and its result, in the order they come.
        on_start: called here with each name as it is begun.
    """
    torch.set_num_threads(1)  # forked processes must not wait for threads that they do not have
    waiting = iter(names)
    running: list[_Running] = []
    gc.collect()
    gc.freeze()  # or each collection in a child would copy the pages of all that is here
    try:
        while True:
            while len(running) < workers and (name := next(waiting, None)) is not None:
                on_start(name)
                running.append(_start(name, work))
            if not running:
                return
            wait([one.results for one in running], timeout=_LOOK_EVERY)
            for one in list(running):
                result = _look_at(one, time_limit, memory_limit)
                if result is not None:
                    running.remove(one)
                    on_result(one.name, result)
    finally:
        for one in running:
            _stop(one)
        gc.unfreeze()


def _start(name: str, work: Work) -> _Running:
    context: Any = multiprocessing.get_context("fork")
    results, end = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(name, work, end), daemon=True)
    process.start()
    end.close()
    return _Running(name, process, results, time.monotonic())


def _in_child(name: str, work: Work, end: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.set_threshold(200_000, 20, 100)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # What models print and warn of would tear the progress bar.
    silent = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stdout = sys.stderr = silent
    os.dup2(silent.fileno(), 1)
    os.dup2(silent.fileno(), 2)
    try:
        result = work(name)
    except Exception as error:  # whatever it is, the other models go on
        result = {"failure": in_words(error)}
    end.send(result)
    end.close()


def _look_at(one: _Running, time_limit: float, memory_limit: float) -> dict[str, Any] | None:
    """The result of a process that is over, or must be stopped; None of one that goes on."""
    seconds = time.monotonic() - one.started
    if one.results.poll():
        try:
            result: dict[str, Any] = one.results.recv()
        except (EOFError, OSError):  # it may have died while it was sending
            one.process.join()
            result = {"failure": _death(one.process.exitcode)}
        _stop(one)
        return result
    if seconds > time_limit:
        _stop(one)
        return {"failure": f"stopped after {time_limit:g} s, the limit of time"}
    taken = _resident(one.process.pid) / 2**30
    if taken > memory_limit:
        _stop(one)
        return {
            "failure": f"stopped at {taken:.1f} GiB of memory, after {seconds:.0f} s; the limit is {memory_limit:g}"
        }
    return None


def _stop(one: _Running) -> None:
    one.results.close()
    one.process.join(timeout=0.5)
    if one.process.is_alive():
        one.process.kill()
    one.process.join()


def _death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"its process died of {signal.Signals(-exit_code).name}"
    return f"its process ended with status {exit_code} and no result"


def _resident(pid: int | None) -> int:
    """Bytes of memory that a process has in use; 0 where that cannot be told."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0
