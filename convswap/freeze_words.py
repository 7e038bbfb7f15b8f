"""What freezing did, in sentences."""

from __future__ import annotations

from .formatting import shorten
from .freeze_report import Freezing
from .plain_words import distance_sentences, kept_sentences, names_of, still_so
from .report import Report


def freeze_sentences(report: Report) -> list[str]:
    """What calls of `freeze` did to a model that still is so; empty if there was none."""
    calls = still_so(report.freezings, report.frozen())
    return [sentence for freezing in calls for sentence in _sentences(freezing)]


def _sentences(freezing: Freezing) -> list[str]:
    found = []
    at = "the mean attention over the data" if freezing.samples else "neutral attention, without data"
    for fidelity, how in (("exact", "exact"), ("approximate", f"approximate, at {at}")):
        names = names_of(layer for layer in freezing.layers if layer.fidelity == fidelity)
        if names:
            found.append(f"frozen to plain convolutions ({how}): {shorten(names)}")
    found += distance_sentences("frozen", freezing)
    return found + kept_sentences("frozen", freezing.kept)
