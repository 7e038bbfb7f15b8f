"""Taking the ends of an image apart from the rest, and putting images together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._geometry import memory_format, stored_as


def ends(image: Tensor, axis: int, low: int, high: int) -> tuple[Tensor, Tensor]:
    """The first ``low`` and the last ``high`` of an axis, which may overlap."""
    size = image.shape[axis]
    # A compiler would take sizes apart by that of the piece between them; and one sum of gradients is all it makes.
    if torch.compiler.is_compiling() or low + high > size:
        return image.narrow(axis, 0, low), image.narrow(axis, size - high, high)
    # Two slices would each pass back a gradient of the size of the image, and their sum would be a third.
    first, _, last = image.split((low, size - low - high, high), axis)
    return first, last


def joined(parts: Sequence[Tensor], axis: int, like: Tensor) -> Tensor:
    """``parts``, not all of them empty, side by side in the dtype and memory format of ``like``."""
    layout = memory_format(like)  # of a mixture of formats torch would make a contiguous one
    kept = [stored_as(part.to(like.dtype), layout) for part in parts if part.shape[axis]]
    return torch.cat(kept, axis) if len(kept) > 1 else kept[0]
