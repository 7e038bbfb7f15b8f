"""Reading what the layers of the ``DCLS`` package saved."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def published_tensors(
    state_dict: Mapping[str, Tensor], prefix: str, spaced: int, weight_axes: int, wide: bool
) -> dict[str, Tensor]:
    """The tensors of one layer by their names without the prefix, once they are known to fit together.

    Args:
        spaced: number of axes that elements move along, the first size of ``P``.
        weight_axes: number of axes of ``weight``.
        wide: whether the version has ``SIG``.

    Raises:
        ValueError: if a tensor is missing, unexpected or of a shape that does not fit.
    """
    found = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    needed = ["weight", "P", *(["SIG"] if wide else [])]
    missing = [prefix + name for name in needed if name not in found]
    if missing:
        raise ValueError(f"the state dict has no {', '.join(missing)}: give the layer's own prefix and version")
    unexpected = [prefix + name for name in found if name not in (*needed, "bias")]
    if unexpected:
        raise ValueError(f"the state dict has {', '.join(unexpected)} as well: give the layer's own prefix and version")
    weight = found["weight"]
    if weight.dim() != weight_axes:
        raise ValueError(f"{prefix}weight must have {weight_axes} axes, got the shape {tuple(weight.shape)}")
    expected = {"P": (spaced, *weight.shape), "SIG": (spaced, *weight.shape), "bias": weight.shape[:1]}
    for name, value in found.items():
        if name != "weight" and value.shape != expected[name]:
            raise ValueError(
                f"{prefix}{name} must have shape {tuple(expected[name])} beside a weight of {tuple(weight.shape)}, "
                f"got {tuple(value.shape)}"
            )
    return found
