"""What the reports of freezing and reverting have in common, in sentences."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from .formatting import shorten
from .freeze_report import Freezing, FrozenLayer
from .plain_report import Distance, KeptLayer
from .revert_report import Reversion, RevertedLayer

Call = TypeVar("Call", Freezing, Reversion)


def still_so(calls: Sequence[Call], left: Collection[str]) -> list[Call]:
    """Each of the ``calls``, in order, with what no later one tells anew of the layers that are ``left`` as it says."""
    told: set[str] = set()
    found: list[Call] = []
    for call in reversed(calls):
        layers = tuple(layer for layer in call.layers if layer.name in left and layer.name not in told)
        kept = tuple(layer for layer in call.kept if layer.name not in told)
        told |= {layer.name for layer in call.layers} | {layer.name for layer in call.kept}
        # What was measured at the output is of all its layers.
        at_output = call.output_error if layers == call.layers else None
        found.append(replace(call, layers=layers, kept=kept, output_error=at_output))
    return found[::-1]


def names_of(layers: Iterable[FrozenLayer | RevertedLayer | KeptLayer]) -> list[str]:
    """Their names, in words where one is the whole model."""
    return [layer.name or "(the model)" for layer in layers]


def kept_sentences(done: str, kept: Iterable[KeptLayer]) -> list[str]:
    """What was not ``done``, ``frozen`` or ``reverted``, and why."""
    reasons: dict[str, list[KeptLayer]] = {}
    for layer in kept:
        reasons.setdefault(layer.reason, []).append(layer)
    return [f"not {done} {shorten(names_of(layers))}: {reason}" for reason, layers in reasons.items()]


def distance_sentences(done: str, call: Freezing | Reversion) -> list[str]:
    """What was measured of what was ``done``, ``frozen`` or ``reverted``."""
    found = []
    at_output, samples = call.output_error, call.samples
    errors: Mapping[str, Distance] = {
        layer.name or "the model": layer.error for layer in call.layers if layer.error is not None
    }
    compared = {name: error for name, error in errors.items() if error.compared}
    if compared:
        worst = max(compared, key=lambda name: compared[name].greatest)
        found.append(
            f"{done} layers compared over {samples} samples: greatest relative error "
            f"{compared[worst].greatest:.1e}, root mean square {compared[worst].mean:.1e} ({worst})"
        )
    others = [name for name in errors if name not in compared]
    if others:
        found.append(f"{done} layers with nothing finite to compare over {samples} samples: {shorten(others)}")
    if at_output is not None:
        measured = f"relative error {at_output.greatest:.1e}, root mean square {at_output.mean:.1e}"
        found.append(
            f"{done} model at the output: {measured if at_output.compared else 'nothing finite was there to compare'}"
        )
    return found
