"""What freezing did to the layers of a model, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .field_types import checked

FreezeMode = Literal["exact", "mean"]


@dataclass(frozen=True)
class Distance:
    """How far what is frozen is from what it was, over a data set.

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
class FrozenLayer:
    """A layer that has become a plain convolution.

    Attributes:
        name: its qualified name, the first one if it has several.
        kind: the class that it was of.
        fidelity: ``exact`` if its kernel did not depend on the input, ``approximate`` if it did.
        error: of its output, both fed what the layer got; None if there was no data, or none that reached it.
    """

    name: str
    kind: str
    fidelity: Literal["exact", "approximate"]
    error: Distance | None


@dataclass(frozen=True)
class KeptLayer:
    """A layer that could not be frozen, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Freezing:
    """What one call of `freeze` did.

    Attributes:
        mode: as it was called with.
        layers: what was frozen.
        kept: what was chosen and could not be.
        output_error: at the model's output; None if there was no data.
        samples: of the data; 0 if there was none.
    """

    mode: FreezeMode
    layers: tuple[FrozenLayer, ...]
    kept: tuple[KeptLayer, ...]
    output_error: Distance | None
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values; distances that are infinite are None, as JSON has no such numbers."""
        return {
            **asdict(self),
            "layers": [{**asdict(layer), "error": written(layer.error)} for layer in self.layers],
            "output_error": written(self.output_error),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Freezing:
        """The inverse of `to_dict`, for data of any origin.

        Raises:
            TypeError, KeyError: if the data is none.
        """
        layers = tuple(checked(FrozenLayer(**{**one, "error": distance_from(one["error"])})) for one in data["layers"])
        kept = tuple(checked(KeptLayer(**one)) for one in data["kept"])
        read = {"layers": layers, "kept": kept, "output_error": distance_from(data["output_error"])}
        return checked(cls(**{**data, **read}))


def written(distance: Distance | None) -> dict[str, float | None] | None:
    """JSON values of a distance; those that are infinite are None."""
    if distance is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in asdict(distance).items()}


def distance_from(data: Any) -> Distance | None:
    """The inverse of `written`, for data of any origin."""
    if data is None:
        return None
    values: dict[str, Any] = {name: math.inf if value is None else value for name, value in data.items()}
    return checked(Distance(**values))
