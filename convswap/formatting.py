"""Numbers and changes as people read them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plain_report import Distance
    from .report import Report
    from .verification import LayerCheck, Verification


def count(number: int | None) -> str:
    """A number with a suffix: ``25.6 M``; ``?`` if unknown."""
    return "?" if number is None else _scaled(number, 1000, ("", "k", "M", "G", "T"))


def size(number: int | None) -> str:
    """A number of bytes: ``97.5 MiB``; ``?`` if unknown."""
    return "?" if number is None else _scaled(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def sizes(*numbers: int) -> tuple[str, ...]:
    """Several numbers of bytes, exact where rounding would make different ones look the same."""
    texts = tuple(map(size, numbers))
    return tuple(f"{number} B" for number in numbers) if len(set(texts)) < len(set(numbers)) else texts


def change(before: int | None, after: int | None, unit: str = "count") -> str:
    """``before → after``, or one of them if they are the same."""
    show = size if unit == "bytes" else count
    return show(before) if before == after else f"{show(before)} → {show(after)}"


def times(factor: float) -> str:
    """A factor: ``1.3×``, ``2800×``."""
    if factor == sys.float_info.max:  # what stands for more than there are numbers for
        return "overflow"
    return f"{factor:.2g}×" if factor < 100 else f"{factor:.0f}×" if factor < 1e6 else f"{factor:.1e}×"


def headline(report: Report) -> str:
    """One line that says what was done."""
    targets: dict[str, int] = {}
    for step in report.swaps:
        targets[str(step.target)] = targets.get(str(step.target), 0) + 1
    done = ", ".join(f"{number} to {target}" for target, number in targets.items()) or "none"
    then = "".join(f", {len(layers)} {how}" for how, layers in report.made_plain().items() if layers)
    return f"{report.model}: {len(report.swaps)} of {len(report.steps)} convolutions converted ({done}{then})"


def totals(report: Report) -> list[tuple[str, str]]:
    """What the conversion costs in all: pairs of what and how much."""
    before, after = report.total("before"), report.total("after")
    added = after.parameters - before.parameters
    per_sample = "" if report.input_shape is None else f", per sample of {_shape(report.input_shape[1:])}"
    rows = [
        ("parameters of the model", change(report.parameters, report.parameters + added)),
        ("parameter bytes of the convolutions", change(before.parameter_bytes, after.parameter_bytes, "bytes")),
        (f"multiply-adds of the convolutions{per_sample}", change(before.multiply_adds, after.multiply_adds)),
        ("kept for the backward pass", change(before.activation_bytes, after.activation_bytes, "bytes")),
    ]
    if after.kernel_bytes:
        rows.append(("kernel bytes per sample", size(after.kernel_bytes)))
    return rows


def printable(text: str) -> str:
    """``text`` without the control characters that names from a file could steer a terminal with."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)


def shorten(names: list[str], limit: int = 6) -> str:
    """Names with commas, the middle left out if there are many."""
    if len(names) <= limit:
        return ", ".join(names)
    return f"{', '.join(names[: limit - 1])}, … {names[-1]} ({len(names)})"


def notes(report: Report) -> dict[str, list[str]]:
    """What there is to say about some conversions: names for each note."""
    found: dict[str, list[str]] = {}
    for step in report.swaps:
        if step.note is not None:
            found.setdefault(step.note, []).append(step.name or "the model")
        if step.group is not None:
            found.setdefault(f"the group of {step.group} shares its new parameters", []).append(
                step.name or "the model"
            )
    return found


def _error_shown(error: Distance | None) -> list[str]:
    if error is None:
        return []
    return [f"{error.greatest:.1e}" if error.compared else "nothing to compare"]


def further_columns(report: Report) -> dict[str, dict[str, str]]:
    """What only some reports know of the layers: for each heading, text by the layer's name. None of them is empty."""
    generated = {step.name: step.after.kernel_bytes for step in report.swaps}
    columns = {
        "kernel bytes per sample": {name: size(number) for name, number in generated.items() if number != 0},
        "kernel error": {
            step.name: f"{step.kernel_error.relative:.1e}" for step in report.swaps if step.kernel_error is not None
        },
        **{
            how: {name: ", ".join([layer.fidelity, *_error_shown(layer.error)]) for name, layer in layers.items()}
            for how, layers in report.made_plain().items()
        },
        **({} if report.verification is None else _check_columns(report.verification)),
    }
    if not any(generated.values()):
        del columns["kernel bytes per sample"]
    return {heading: texts for heading, texts in columns.items() if texts}


def _check_columns(verification: Verification) -> dict[str, dict[str, str]]:
    """What a comparison with the original says of each layer; of the interior, where nothing else is promised."""
    checks, grown = verification.layers, verification.grown
    within = [check for check in checks if check.fidelity == "interior"]
    return {
        "error": {c.name: f"{c.relative_error:.1e}" for c in checks if c.fidelity != "interior"},
        "interior": {c.name: _of_interior(c) for c in within},
        "not compared": {c.name: f"{1 - c.compared:.0%}" for c in within},
        "growth": {c.name: times(c.growth) for c in checks if c.growth is not None and (within or grown)},
    }


def _of_interior(check: LayerCheck) -> str:
    if not check.compared:
        return "none"
    return f"{'identical' if check.passed else 'NOT identical'} ({check.relative_error:.1e})"


def _shape(values: tuple[int, ...]) -> str:
    return "×".join(map(str, values))


def _scaled(number: int, base: int, suffixes: tuple[str, ...]) -> str:
    value = float(number)
    for suffix in suffixes:
        if abs(value) < base or suffix == suffixes[-1]:
            digits = (
                f"{value:.0f}" if suffix == suffixes[0] else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
            )
            return f"{digits} {suffix}".strip()
        value /= base
    raise AssertionError
