"""What reverting did, in sentences."""

from __future__ import annotations

from .formatting import count, shorten
from .plain_words import distance_sentences, kept_sentences, names_of, still_so
from .report import Report
from .revert_report import Reversion, RevertedLayer

_COMPUTES = {
    "exact": "they compute what the layers did",
    "interior": "they compute what the layers did, but for outputs at the border",
    "approximate": "they compute something else than the layers did",
}


def revert_sentences(report: Report) -> list[str]:
    """What calls of `revert` did to a model that still is so; empty if there was none."""
    calls = still_so(report.reversions, report.reverted())
    return [sentence for reversion in calls for sentence in _sentences(reversion)]


def _sentences(reversion: Reversion) -> list[str]:
    found = []
    for fidelity, computes in _COMPUTES.items():
        names = names_of(layer for layer in reversion.layers if layer.fidelity == fidelity)
        if names:
            found.append(f"reverted to plain convolutions ({fidelity}: {computes}): {shorten(names)}")
    found += _losses(reversion.layers)
    found += distance_sentences("reverted", reversion)
    return found + kept_sentences("reverted", reversion.kept)


def _losses(layers: tuple[RevertedLayer, ...]) -> list[str]:
    losses: dict[str, list[RevertedLayer]] = {}
    for layer in layers:
        for what in layer.lost:
            losses.setdefault(what, []).append(layer)
    found = [f"lost in reverting {shorten(names_of(lossy))}: {what}" for what, lossy in losses.items()]
    errors = {layer.name: layer.kernel_error for layer in layers if layer.kernel_error}
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        found.append(f"part of a kernel that was lost: up to {errors[worst]:.1e} of its norm ({worst or 'the model'})")
    dropped = sum(layer.dropped for layer in layers)
    if dropped:
        found.append(f"parameters {'dropped' if dropped > 0 else 'added'} in reverting: {count(abs(dropped))}")
    return found
