"""What freezing did to the layers of a model, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .plain_report import Distance, KeptLayer, call_from_dict, call_to_dict

FreezeMode = Literal["exact", "mean"]


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
        """JSON values; numbers that are infinite are None, as JSON has no such numbers."""
        return call_to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Freezing:
        """The inverse of `to_dict`, for data of any origin.

        Raises:
            TypeError, KeyError: if the data is none.
        """
        return call_from_dict(cls, FrozenLayer, data)
