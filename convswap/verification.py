"""What a comparison of a converted model with its original showed, as data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .errors import VerificationError
from .field_types import checked
from .targets.base import Fidelity

EXACT_LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest relative error of an ``exact`` layer. In half precisions weights that sum to the original's are themselves
rounded: there it is 4 units in the last place."""


OUTPUT_LIMITS = {"float64": 1e-6, "float32": 1e-2}
"""Largest relative error of a model's output where all converted layers are exact: far above what their rounding adds
up to, and far below what a wrong path gives."""


GROWTH_LIMIT = 100.0
"""Growth of activations that is warned of: far above what another treatment of the border does to them by itself, and
what extrapolation of a high order comes to where one layer magnifies the noise that another has made."""


@dataclass(frozen=True)
class LayerCheck:
    """How a converted layer compares to its convolution, both fed with the original's input.

    Attributes:
        name: the layer's qualified name.
        fidelity: what it promises.
        relative_error: greatest difference, divided by the greatest magnitude of the convolution's output. Over the
            interior alone if the fidelity is ``interior``.
        limit: what is allowed, None for layers that promise no number.
        passed: whether the error is finite and within the limit.
        compared: share of the convolution's outputs, of all calls, that the error is over: those that are finite, and
            of layers that promise the interior alone, those whose windows do not cross the border.
        growth: greatest magnitude of the layer's output in the converted model's own run, divided by that of its
            convolution's in the original's run: of several calls, the greatest. None where one of them is not known,
            not finite (the original's) or zero; where the converted model overflows, the greatest number there is.
    """

    name: str
    fidelity: Fidelity
    relative_error: float
    limit: float | None
    passed: bool
    compared: float = 1.0
    growth: float | None = None


@dataclass(frozen=True)
class Verification:
    """What a comparison of an original with a converted model on one batch showed.

    Attributes:
        layers: a check for every converted layer that ran.
        not_run: converted layers that this input does not reach.
        output_relative_error: greatest difference at the model's output, divided by its greatest magnitude. None where
            nothing can be compared: shapes differ, or the original gives no finite numbers.
        output_difference: greatest difference at the model's output; None likewise.
        dtype: of the models' parameters.
        inputs: what the batch was, in words.
        same_shapes: whether the outputs have the same shapes. Where they depend on the data, as of detected boxes, and
            not all layers are exact, they need not.
    """

    layers: tuple[LayerCheck, ...]
    not_run: tuple[str, ...]
    output_relative_error: float | None
    output_difference: float | None
    dtype: str
    inputs: str
    same_shapes: bool = True

    @property
    def passed(self) -> bool:
        """Whether something was compared, every converted layer keeps what it promises, and so does the output.

        The output may lose some digits more than the layers; only where all of them are exact is there a limit for it.
        """
        return self.compared_any and all(check.passed for check in self.layers) and self.output_passed

    @property
    def compared_any(self) -> bool:
        """Whether there is a converted layer with outputs that it promises something about."""
        return any(check.compared > 0 for check in self.layers)

    @property
    def output_passed(self) -> bool:
        """Whether outputs have the same shapes and differ by little, if all layers are exact; else whether finite."""
        exact = {c.fidelity for c in self.layers} <= {"exact"}
        if self.output_relative_error is None:
            return self.same_shapes or not exact
        limit = OUTPUT_LIMITS.get(self.dtype) if exact else None
        return self.output_relative_error < (float("inf") if limit is None else limit)

    @property
    def worst(self) -> LayerCheck | None:
        """The layer with the greatest error, of those that there was anything to compare of."""
        compared = (check for check in self.layers if check.compared > 0)
        return max(compared, key=lambda check: check.relative_error, default=None)

    @property
    def grown(self) -> tuple[LayerCheck, ...]:
        """Layers whose output is more than `GROWTH_LIMIT` times as large as the convolution's was, worst first."""
        growths = [(check.growth, check) for check in self.layers if check.growth is not None]
        return tuple(check for growth, check in sorted(growths, key=lambda one: -one[0]) if growth > GROWTH_LIMIT)

    @property
    def not_compared(self) -> tuple[str, ...]:
        """Names of layers with no output to compare: none that is finite, or of the interior if that alone counts."""
        return tuple(check.name for check in self.layers if check.compared == 0)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Verification:
        """The inverse of `to_dict`.

        Raises:
            TypeError, KeyError: if the data is no verification.
        """
        layers = tuple(checked(LayerCheck(**check)) for check in data["layers"])
        return checked(cls(**{**data, "layers": layers, "not_run": tuple(data["not_run"])}))


def require_passed(verification: Verification) -> None:
    """Raise if a layer does not keep its promise.

    Raises:
        VerificationError: naming the worst layers and by how much.
    """
    from .verification_words import growth_sentence

    failed = sorted((c for c in verification.layers if not c.passed), key=lambda c: -c.relative_error)
    if failed:
        lines = [f"  {c.name}: relative error {c.relative_error:.2e}{_allowed(c)}" for c in failed[:5]]
        more = f"\n  … and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise VerificationError(
            f"{len(failed)} of {len(verification.layers)} converted layers do not compute what their convolutions "
            "computed:\n" + "\n".join(lines) + more
        )
    if not verification.layers:
        raise VerificationError(
            "no converted layer was reached by this input, so nothing is proved: give another input"
        )
    if not verification.compared_any:
        raise VerificationError(
            "each window of each converted layer crosses the border, where nothing is promised, or the original's "
            "outputs are not finite, so nothing is proved: give a larger input, of finite numbers"
        )
    if not verification.output_passed:
        told = "every converted layer computes what its convolution computed, but the model's output "
        if verification.output_relative_error is None:
            raise VerificationError(f"{told}has another shape: the code around the layers treats them in another way")
        if not math.isfinite(verification.output_relative_error) and verification.grown:
            raise VerificationError(f"{told}overflows: {growth_sentence(verification)}")
        raise VerificationError(
            f"{told}differs (relative error {verification.output_relative_error:.2e}): the code around the layers "
            "treats them in another way"
        )


def _allowed(check: LayerCheck) -> str:
    return "" if check.limit is None else f", allowed {check.limit:.0e}"
