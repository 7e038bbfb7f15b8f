"""What a comparison of a converted model with its original showed, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .formatting import shorten, times
from .verification import GROWTH_LIMIT, Verification

if TYPE_CHECKING:
    from .report import Report


def verdict(report: Report) -> list[str]:
    """What the comparison with the original showed; empty if there was none."""
    check = report.verification
    if check is None:
        return []
    ran = f"{len(check.layers)} converted layers compared in {check.dtype} ({check.inputs})"
    lines = [f"{ran}: {_promises(check)}"]
    within = [c for c in check.layers if c.fidelity == "interior" and c.compared and c.passed]
    if within:
        names = shorten([c.name or "the model" for c in within])
        lines.append(
            f"identical in the interior, where no window crosses the border: {names}, with relative errors of at most "
            f"{max(c.relative_error for c in within):.1e}"
        )
    worst = check.worst
    if worst is not None and any(c.compared and c not in within for c in check.layers):
        lines.append(f"greatest relative error of a layer {worst.relative_error:.1e} ({worst.name or 'the model'})")
    lines.append(f"at the output: {_at_the_output(check)}")
    if check.not_run:
        lines.append(f"not reached by this input: {', '.join(check.not_run)}")
    if check.not_compared:
        names = shorten([name or "the model" for name in check.not_compared])
        lines.append(
            f"nothing to compare, as every window crosses the border or the original gives no finite numbers: {names}"
        )
    return lines


def warning(report: Report) -> str | None:
    """What it showed that is no broken promise, and not as it should be either; None if there is nothing."""
    return None if report.verification is None else growth_sentence(report.verification)


def growth_sentence(verification: Verification) -> str | None:
    """What there is to say of activations that have grown, and what to do; None if none has."""
    grown = verification.grown
    if not grown:
        return None
    worst = shorten([f"{check.name or 'the model'} ({times(check.growth or 0)})" for check in grown], 4)
    return (
        f"in {len(grown)} of {len(verification.layers)} converted layers activations grow by more than "
        f"{GROWTH_LIMIT:g}, from what they are in the original: {worst}. Where padding is extrapolated, a lower order "
        "magnifies noise less: order=1 of padding_free, or order=0, which repeats the pixels at the border"
    )


def _at_the_output(check: Verification) -> str:
    if not check.same_shapes:
        return "nothing to compare, as the shapes differ"
    if check.output_difference is None or check.output_relative_error is None:
        return "nothing to compare, as the original gives no finite numbers"
    return f"greatest difference {check.output_difference:.1e}, relative {check.output_relative_error:.1e}"


def _promises(check: Verification) -> str:
    if check.layers and not check.compared_any:
        return "nothing to compare"
    return "all keep what they promise" if check.passed else "NOT all keep what they promise"
