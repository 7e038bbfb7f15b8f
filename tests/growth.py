"""How the work that code does grows with what it is given, counted and not timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def calls(run: Callable[[], object]) -> int:
    """Calls of functions that ``run`` makes, in Python and from Python."""
    number = 0

    def count(_: Any, event: str, __: Any) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(before)
    return number


def assert_linear(of_size: Callable[[int], Callable[[], object]], sizes: tuple[int, int, int]) -> None:
    """Twice as much more must cost twice as many calls more, within a tenth."""
    of_size(sizes[0])()  # whatever is done only once
    one, two, four = (calls(of_size(size)) for size in sizes)
    assert four - two < 2.1 * (two - one) + 200
