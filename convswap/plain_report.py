"""What the reports of freezing and reverting have in common, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from .field_types import checked

Call = TypeVar("Call")


@dataclass(frozen=True)
class Distance:
    """How far what has become plain is from what it was, over a data set.

    Attributes:
        greatest: greatest difference, divided by the greatest magnitude; infinite if shapes differ, or nothing could
            be compared.
        mean: root mean square of the differences, divided by that of the values; infinite likewise.
        compared: whether anything could be compared: not if nothing finite was there to compare with.
    """

    greatest: float
    mean: float
    compared: bool = True


@dataclass(frozen=True)
class KeptLayer:
    """A layer that could not be made plain, and why."""

    name: str
    kind: str
    reason: str


def call_to_dict(call: Any) -> dict[str, Any]:
    """JSON values of a `Freezing` or a `Reversion`; distances that are infinite are None: JSON has no such numbers."""
    return {
        **asdict(call),
        "layers": [{**asdict(layer), "error": _written(layer.error)} for layer in call.layers],
        "output_error": _written(call.output_error),
    }


def call_from_dict(kind: type[Call], layer: type, data: Mapping[str, Any]) -> Call:
    """The inverse of `call_to_dict`, for data of any origin.

    Args:
        kind: class of the call, `Freezing` or `Reversion`.
        layer: class of its layers.
        data: what was read.

    Raises:
        TypeError, KeyError: if the data is none.
    """
    layers = tuple(checked(layer(**{**one, "error": _distance(one["error"])})) for one in data["layers"])
    kept = tuple(checked(KeptLayer(**one)) for one in data["kept"])
    read = {"layers": layers, "kept": kept, "output_error": _distance(data["output_error"])}
    return checked(kind(**{**data, **read}))


def _written(distance: Distance | None) -> dict[str, float | None] | None:
    if distance is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in asdict(distance).items()}


def _distance(data: Any) -> Distance | None:
    if data is None:
        return None
    values: dict[str, Any] = {name: math.inf if value is None else value for name, value in data.items()}
    return checked(Distance(**values))
