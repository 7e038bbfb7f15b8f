"""How far convolutions are from the layers that they have taken the places of, in sentences."""

from __future__ import annotations

from collections.abc import Mapping

from .formatting import shorten
from .freeze_report import Distance


def distance_sentences(
    done: str, errors: Mapping[str, Distance], at_output: Distance | None, samples: int
) -> list[str]:
    """What was measured of layers that were frozen or reverted.

    Args:
        done: which of the two.
        errors: of the layers, by name.
        at_output: of the model; None if that was not measured, or is of more than these layers.
        samples: of the data.
    """
    found = []
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
