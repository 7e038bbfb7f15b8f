"""Going through the targets for one model, within limits of time and memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from convswap.errors import NothingToSwapError

from .budget import memory_limit
from .reasons import in_words

NO_TIME = "not begun, as the time for this model was over"
"""What is said of targets that come too late."""


def by_turns(
    targets: Iterable[str],
    records: dict[str, Any],
    compare: Callable[[str], dict[str, Any]],
    end: float,
    room: float,
) -> None:
    """Put into ``records`` what ``compare`` gives for each target, or the error that it raises; the others go on.

    Args:
        targets: by name.
        records: for results.
        compare: called with each target.
        end: no target is begun when the process has had so many seconds of the processor.
        room: bytes that each target may ask for.
    """
    for to in targets:
        if time.process_time() > end:
            records[to] = {"error": NO_TIME}
            continue
        try:
            with memory_limit(room):
                records[to] = compare(to)
        except NothingToSwapError:
            records[to] = {"swapped": 0}
        except Exception as error:  # what it is goes into the record
            records[to] = {"error": in_words(error)}
        gc.collect(1)


def told(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """What an outcome tells: what is None or empty in it is left out."""
    inner = {key: told(value) if isinstance(value, dict) else value for key, value in outcome.items()}
    return {key: value for key, value in inner.items() if value not in (None, {}, [])}
