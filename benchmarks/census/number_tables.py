"""The census' numbers in Markdown: what was compared, how far it is apart, and every exception by name."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from .file import Record
from .numbers import FRAMES, GROUPS, LARGE, MORE_ROOM, NO_INTERIOR, ROOM
from .tables import table

Records = Mapping[str, Record]

_NUMBER_HEAD = (
    *("target", "models verified", "of models swapped", "layers verified", "of layers swapped", "… exact"),
    *("… in the interior", "… approximate", "worst exact", "worst interior", "smallest share compared"),
    *("approximate, from … to", "worst output, all exact"),
)
_TRAINING_HEAD = (
    *("target", "models compared", "of models swapped", "exact layers", "outputs", "other gradients"),
    *("carried gradients", "interior layers", "outputs", "gradients of inputs", "carried gradients"),
    "slopes not smooth",
)


def number_tables(records: Records) -> str:
    """For each target the models and layers that were compared in evaluation mode, with the greatest errors."""
    good = _good(records)
    return "\n".join(
        (
            "## Numbers",
            "",
            "The smallest model of each family (a source file of timm or torchvision), in double precision, with the "
            "statistics of trained weights, on random samples of the smallest size it takes: two, or one where a "
            f"sample has {LARGE:,} numbers or more. For the targets that differ at the border it is the smallest size "
            f"of at least {ROOM} pixels, and for layers whose windows all cross the border there, of at least "
            f"{MORE_ROOM} (for videos {FRAMES} frames), which leaves some layers without an interior still: they are "
            "counted below. The smallest share is that of a layer's outputs which is compared. Each layer is fed what "
            "its convolution read. Where the layers of a model would take much memory together, they are compared in "
            f"up to {GROUPS} groups. `exact` and `interior` layers may differ by a relative 1e-10; the outputs of "
            "models with layers that are exact in the interior alone, or approximate, do differ, and may have other "
            "shapes where those depend on the data.",
            "",
            f"{len(good)} of {len(records)} models gave a result.",
            "",
            *table(
                _NUMBER_HEAD,
                [_number_row(target, of) for target, of in _by_target(good)],
            ),
            "",
            "### Layers that were not compared",
            "",
            *_not_compared(good),
            "",
            "### Outputs that were not compared",
            "",
            *_outputs(good),
            "",
            "### Exceptions",
            "",
            *_exceptions(records),
            "",
            "### Inputs",
            "",
            *_inputs(good),
        )
    )


def training_tables(records: Records) -> str:
    """For each target the models and layers that were compared in training mode, with the greatest errors."""
    good = _good(records)
    return "\n".join(
        (
            "## Training",
            "",
            f"A training step of both models on random samples of at least {ROOM} pixels (two, or one where a sample "
            f"has {LARGE:,} numbers or more), in double precision, with dropout "
            "and drop-path at 0, and a loss that weighs all outputs at random. Where layers are exact: the outputs, "
            "the gradients of the parameters that were not converted, and those of the carried weights, through the "
            "map that carried them: with f from a convolution's weights W to the layer's parameters, "
            "⟨∂L/∂W, D⟩ = ⟨∂L/∂f, J D⟩ for a direction D of each layer, where f is what builds the layer, from W + D "
            "or W ± h D. In the interior: layer by layer, with a loss of the interior alone. Approximate layers have "
            "other gradients, and are only counted.",
            "",
            f"{len(good)} of {len(records)} models gave a result.",
            "",
            *table(
                _TRAINING_HEAD,
                [_training_row(target, of) for target, of in _by_target(good)],
            ),
            "",
            "### Layers that were not compared in training",
            "",
            *_not_compared(good),
            "",
            "### Exceptions in training",
            "",
            *_exceptions(records),
        )
    )


def _good(records: Records) -> dict[str, Record]:
    return {name: record for name, record in records.items() if "failure" not in record}


def _by_target(records: Records) -> Iterator[tuple[str, dict[str, Record]]]:
    """What each target did with the models of which it swapped anything."""
    for target in dict.fromkeys(target for record in records.values() for target in record["targets"]):
        outcomes = {name: record["targets"].get(target, {}) for name, record in records.items()}
        yield target, {name: outcome for name, outcome in outcomes.items() if outcome.get("swapped")}


def _number_row(target: str, outcomes: Mapping[str, Record]) -> tuple[Any, ...]:
    verified: Counter[str] = Counter()
    for outcome in outcomes.values():
        verified.update(outcome.get("verified", {}))
    approximate = _all(outcomes, "worst", "approximate")
    given = [outcome for outcome in outcomes.values() if outcome.get("output") is not None]
    shares = [outcome["least_compared"] for outcome in outcomes.values() if outcome.get("least_compared") is not None]
    return (
        f"`{target}`",
        sum(bool(outcome.get("verified")) for outcome in outcomes.values()),
        len(outcomes),
        sum(verified.values()),
        sum(outcome["swapped"] for outcome in outcomes.values()),
        *(verified[fidelity] or "" for fidelity in ("exact", "interior", "approximate")),
        *(_power(_all(outcomes, "worst", fidelity)) for fidelity in ("exact", "interior")),
        f"{100 * min(shares):.3g} %" if shares else "",
        f"{min(approximate):.2g} to {max(approximate):.2g}" if approximate else "",
        _power([outcome["output"] for outcome in given if set(outcome.get("worst", ())) == {"exact"}]),
    )


def _training_row(target: str, outcomes: Mapping[str, Record]) -> tuple[Any, ...]:
    exact, interior = (_all(outcomes, part, "layers") for part in ("exact", "interior"))
    compared = [any(of.get(part, {}).get("layers") for part in ("exact", "interior")) for of in outcomes.values()]
    return (
        f"`{target}`",
        sum(compared),
        len(outcomes),
        sum(exact) or "",
        *(_power(_all(outcomes, "exact", what)) for what in ("outputs", "others", "carried")),
        sum(interior) or "",
        *(_power(_all(outcomes, "interior", what)) for what in ("outputs", "read", "carried")),
        sum(sum(_all(outcomes, part, "not_smooth")) for part in ("exact", "interior")) or "",
    )


def _all(outcomes: Mapping[str, Record], part: str, key: str) -> list[Any]:
    found = (outcome.get(part, {}).get(key) for outcome in outcomes.values())
    return [value for value in found if value is not None]


def _power(errors: list[float]) -> str:
    if not errors:
        return ""
    return f"{max(errors):.0e}" if max(errors) < sys.float_info.max else "not finite"


def _outputs(records: Records) -> list[str]:
    """Converted models whose layers were compared, and whose outputs could not be."""
    models: dict[tuple[str, str], list[str]] = {}
    for name, record in records.items():
        for target, outcome in record["targets"].items():
            if "output_not_compared" in outcome:
                models.setdefault((target, outcome["output_not_compared"]), []).append(name)
    rows = [(f"`{target}`", why, ", ".join(names)) for (target, why), names in models.items()]
    return table(("target", "why", "models"), rows) if rows else ["None."]


def _not_compared(records: Records) -> list[str]:
    layers: Counter[tuple[str, str]] = Counter()
    models: dict[tuple[str, str], list[str]] = {}
    for name, record in records.items():
        for target, outcome in record["targets"].items():
            reasons = dict(outcome.get("not_compared", {}))
            if outcome.get("interior", {}).get("without_interior"):
                reasons[NO_INTERIOR] = outcome["interior"]["without_interior"]
            for why, number in reasons.items():
                layers[target, why] += number
                models.setdefault((target, why), []).append(name)
    rows = [
        (f"`{target}`", why, number, ", ".join(models[target, why][:4]) + (", …" * (len(models[target, why]) > 4)))
        for (target, why), number in layers.items()
    ]
    return table(("target", "why", "layers", "of"), rows) if rows else ["None."]


def _exceptions(records: Records) -> list[str]:
    """Models without a result, conversions that failed and layers that break their promise."""
    rows = [(name, "all", record["failure"]) for name, record in records.items() if "failure" in record]
    for name, record in _good(records).items():
        outcomes = ((to, of) for to, of in record["targets"].items() if "error" in of)
        rows += [(name, f"`{to}`", of["error"]) for to, of in outcomes]
    return table(("model", "target", "what"), rows) if rows else ["None."]


def _inputs(records: Records) -> list[str]:
    sizes = ("input", "roomy_input", "roomiest_input")
    rows = [(name, *(record.get(size, "") for size in sizes)) for name, record in records.items()]
    return table(("model", "input", "with room for an interior", "with more room"), rows)
