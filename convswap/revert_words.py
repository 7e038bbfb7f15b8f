"""What reverting did, in sentences."""

from __future__ import annotations

from dataclasses import replace

from .distance_words import distance_sentences
from .formatting import count, shorten
from .report import Report
from .revert_report import Reversion, RevertedLayer

_COMPUTES = {
    "exact": "they compute what the layers did",
    "interior": "they compute what the layers did, but for outputs at the border",
    "approximate": "they compute something else than the layers did",
}


def revert_sentences(report: Report) -> list[str]:
    """What calls of `revert` did to a model that still is so; empty if there was none."""
    left = report.reverted()
    told: set[str] = set()
    found: list[list[str]] = []
    for reversion in reversed(report.reversions):
        layers = tuple(layer for layer in reversion.layers if layer.name in left and layer.name not in told)
        kept = tuple(layer for layer in reversion.kept if layer.name not in told)
        told |= {layer.name for layer in reversion.layers} | {layer.name for layer in reversion.kept}
        # What was measured at the output is of all its layers.
        at_output = reversion.output_error if layers == reversion.layers else None
        found.append(_sentences(replace(reversion, layers=layers, kept=kept, output_error=at_output)))
    return [sentence for sentences in reversed(found) for sentence in sentences]


def _sentences(reversion: Reversion) -> list[str]:
    found = []
    for fidelity, computes in _COMPUTES.items():
        names = _names([layer for layer in reversion.layers if layer.fidelity == fidelity])
        if names:
            found.append(f"reverted to plain convolutions ({fidelity}: {computes}): {shorten(names)}")
    found += _losses(reversion.layers)
    errors = {layer.name or "the model": layer.error for layer in reversion.layers if layer.error is not None}
    found += distance_sentences("reverted", errors, reversion.output_error, reversion.samples)
    reasons: dict[str, list[str]] = {}
    for layer in reversion.kept:
        reasons.setdefault(layer.reason, []).append(layer.name or "(the model)")
    found += [f"not reverted {shorten(names)}: {reason}" for reason, names in reasons.items()]
    return found


def _losses(layers: tuple[RevertedLayer, ...]) -> list[str]:
    losses: dict[str, list[RevertedLayer]] = {}
    for layer in layers:
        for what in layer.lost:
            losses.setdefault(what, []).append(layer)
    found = [f"lost in reverting {shorten(_names(lossy))}: {what}" for what, lossy in losses.items()]
    errors = {layer.name: layer.kernel_error for layer in layers if layer.kernel_error}
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        found.append(f"part of a kernel that was lost: up to {errors[worst]:.1e} of its norm ({worst or 'the model'})")
    dropped = sum(layer.dropped for layer in layers)
    if dropped:
        found.append(f"parameters {'dropped' if dropped > 0 else 'added'} in reverting: {count(abs(dropped))}")
    return found


def _names(layers: list[RevertedLayer]) -> list[str]:
    return [layer.name or "(the model)" for layer in layers]
