"""As many layers of a plan as fit into memory at once, and limits that a single target's work may not pass."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from convswap.plan import Plan, Step

from ..memory import status

LEFT_OUT = "it is left out of the census, as it would take too much memory or time"

LATER = "it is compared in another group"


def groups(plan: Plan, limit: float, most: int, *, batch: int = 2, training: bool = False) -> list[Plan]:
    """``plan`` in parts, of which each has layers that together take at most ``limit`` bytes.

    Small ones come first, so that as many as can be are in a part. Layers that alone take more, and those that fit into
    none of the parts, are kept in all of them.

    Args:
        plan: with known shapes.
        limit: bytes.
        most: parts.
        batch: samples that are run.
        training: whether gradients are wanted too: then what is kept for them counts, and the parameters of copies.
    """
    taken: list[float] = []
    parts: dict[str, int] = {}
    for cost, name in sorted((_bytes(step, batch, training), step.site.name) for step in plan.swaps):
        part = next((number for number, bytes_ in enumerate(taken) if bytes_ + cost <= limit), len(taken))
        if cost > limit or part == most:
            continue
        if part == len(taken):
            taken.append(0.0)
        taken[part] += cost
        parts[name] = part
    return [_part(plan, parts, number) for number in range(len(taken))] or [_part(plan, parts, 0)]


def _part(plan: Plan, parts: dict[str, int], number: int) -> Plan:
    return replace(
        plan,
        steps=tuple(
            step
            if step.action == "keep" or parts.get(step.site.name) == number
            else kept(step, LATER if step.site.name in parts else LEFT_OUT)
            for step in plan
        ),
    )


def left_out(plan: Plan) -> int:
    """How many layers of a plan, or of the parts of one, are left out."""
    return sum(step.reason == LEFT_OUT for step in plan)


def keeping(plan: Plan, reason: str, which: Callable[[Step], bool]) -> Plan:
    """``plan`` with those of its swaps kept, for this reason, that ``which`` chooses."""
    steps = (kept(step, reason) if step.action == "swap" and which(step) else step for step in plan)
    return replace(plan, steps=tuple(steps))


def kept(step: Step, reason: str) -> Step:
    """``step`` as one that keeps its convolution."""
    return replace(
        step, action="keep", reason=reason, target=None, options=None, fidelity=None, cost_after=step.before, note=None
    )


def _bytes(step: Step, batch: int, training: bool) -> int:
    after = step.after
    in_calls = batch * ((after.kernel_bytes or 0) + (after.activation_bytes or 0))
    return after.parameter_bytes * (3 if training else 1) + in_calls


@contextmanager
def memory_limit(more: float) -> Iterator[None]:
    """Within, asking for more than ``more`` bytes fails where the system can limit that: the rest goes on."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(_data() + more)
    if before[1] != resource.RLIM_INFINITY:
        limit = min(limit, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _data() -> int:
    """Bytes of private memory of this process that have been asked for."""
    try:
        return status("VmData")
    except (OSError, RuntimeError):
        return 2**60
