"""What reverting did to the layers of a model, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .plain_report import Distance, KeptLayer, call_from_dict, call_to_dict


@dataclass(frozen=True)
class RevertedLayer:
    """A layer that has become the convolution again that it was made from, with what it had of that's weights.

    Attributes:
        name: its qualified name, the first one if it has several.
        kind: the class that it was of.
        fidelity: how far the convolution computes what the layer did, fed with the same: ``exact``; ``interior``, but
            for outputs whose window crosses the border; ``approximate``, not in general.
        lost: what it had and the convolution has not, in words.
        dropped: how many parameters the model has less for it; below 0 if more.
        kernel_error: of a layer that had one kernel for all inputs, the norm of what of that is lost, relative to its
            own; None for others.
        error: of its output, both fed what the layer got; None if there was no data, or none that reached it.
    """

    name: str
    kind: str
    fidelity: Literal["exact", "interior", "approximate"]
    lost: tuple[str, ...]
    dropped: int
    kernel_error: float | None = None
    error: Distance | None = None


@dataclass(frozen=True)
class Reversion:
    """What one call of `revert` did.

    Attributes:
        layers: what was reverted.
        kept: what was chosen and could not be.
        output_error: at the model's output; None if there was no data.
        samples: of the data; 0 if there was none.
    """

    layers: tuple[RevertedLayer, ...]
    kept: tuple[KeptLayer, ...]
    output_error: Distance | None = None
    samples: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON values; numbers that are infinite are None, as JSON has no such numbers."""
        return call_to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Reversion:
        """The inverse of `to_dict`, for data of any origin.

        Raises:
            TypeError, KeyError: if the data is none.
        """
        return call_from_dict(cls, RevertedLayer, data)
