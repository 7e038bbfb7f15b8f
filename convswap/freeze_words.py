"""What freezing did, in sentences."""

from __future__ import annotations

from dataclasses import replace

from .distance_words import distance_sentences
from .formatting import shorten
from .freeze_report import Freezing
from .report import Report


def freeze_sentences(report: Report) -> list[str]:
    """What calls of `freeze` did to a model that still is so; empty if there was none."""
    left = report.frozen()
    told: set[str] = set()
    found: list[list[str]] = []
    for freezing in reversed(report.freezings):
        layers = tuple(layer for layer in freezing.layers if layer.name in left and layer.name not in told)
        kept = tuple(layer for layer in freezing.kept if layer.name not in told)
        told |= {layer.name for layer in freezing.layers} | {layer.name for layer in freezing.kept}
        # What was measured at the output is of all its layers.
        at_output = freezing.output_error if layers == freezing.layers else None
        found.append(_sentences(replace(freezing, layers=layers, kept=kept, output_error=at_output)))
    return [sentence for sentences in reversed(found) for sentence in sentences]


def _sentences(freezing: Freezing) -> list[str]:
    found = []
    at = "the mean attention over the data" if freezing.samples else "neutral attention, without data"
    for fidelity, how in (("exact", "exact"), ("approximate", f"approximate, at {at}")):
        names = [layer.name or "(the model)" for layer in freezing.layers if layer.fidelity == fidelity]
        if names:
            found.append(f"frozen to plain convolutions ({how}): {shorten(names)}")
    errors = {layer.name or "the model": layer.error for layer in freezing.layers if layer.error is not None}
    found += distance_sentences("frozen", errors, freezing.output_error, freezing.samples)
    reasons: dict[str, list[str]] = {}
    for layer in freezing.kept:
        reasons.setdefault(layer.reason, []).append(layer.name or "(the model)")
    found += [f"not frozen {shorten(names)}: {reason}" for reason, names in reasons.items()]
    return found
