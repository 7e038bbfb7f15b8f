"""Ways to treat the border of an image, and what filters make of each there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ConvswapError
from .layers.extrapolation import extrapolate_pad
from .layers.partial_convolution import partial_conv2d
from .layers.random_padding import random_pad2d

Pad: TypeAlias = Callable[[Tensor, int], Tensor]
"""From images (B, C, H, W) and a width p, the images (B, C, H + 2p, W + 2p) that they are padded to."""

Border: TypeAlias = tuple[Tensor, ...]
"""The outputs whose windows cross the border: rows at the top and the bottom, and between them columns at the left and
the right; each (B, O, rows, columns)."""

DRAWS = 8
"""How often random padding is drawn; its errors are taken over all of these."""


LARGEST = 1e100
"""Of numbers in images: the squares of errors must be finite."""


def filters() -> dict[str, Tensor]:
    """The filters that borders are shown for, (O, 1, k, k) in double precision.

    The binomial 5×5 Gaussian, of variance 1; the 3×3 Sobel filters of both directions; and the 3×3 Laplacian of the
    four neighbours.
    """
    binomial = torch.tensor([1.0, 4, 6, 4, 1], dtype=torch.float64, device="cpu") / 16
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64, device="cpu")
    laplacian = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64, device="cpu")
    return {
        "gaussian": torch.outer(binomial, binomial)[None, None],
        "sobel": torch.stack([across, across.T])[:, None],
        "laplacian": laplacian[None, None],
    }


def borders(
    crop: Tensor, kernel: Tensor, orders: Iterable[int], further: Mapping[str, Pad], seed: int
) -> dict[str, list[Border]]:
    """What a filter gives at the border of images that are treated there in each way; several times if it is random.

    Args:
        crop: (B, 1, H, W).
        kernel: (O, 1, k, k), k odd.
        orders: of extrapolation, besides the methods' own.
        further: other ways to pad, by name.
        seed: of the random padding.

    Raises:
        ConvswapError: if ``further`` has the name of another method, or what it gives is not of the form of `Pad`.
    """
    pad = kernel.shape[-1] // 2
    generator = torch.Generator(device="cpu").manual_seed(seed)
    own = kernel.shape[-1] - 1
    padded: dict[str, list[Tensor]] = {
        "zeros": [F.pad(crop, (pad,) * 4)],
        **{mode: [F.pad(crop, (pad,) * 4, mode)] for mode in ("reflect", "replicate", "circular")},
        "partial": [],  # in its place in the order; it does not pad
        "random": [random_pad2d(crop, pad, generator) for _ in range(DRAWS)],
        "extrapolated": [extrapolate_pad(crop, pad, pad)],
        "padding_free": [extrapolate_pad(crop, pad, own)],
        **{f"order {order}": [extrapolate_pad(crop, pad, order)] for order in orders},
    }
    for name, of in further.items():
        if name in padded:
            raise ConvswapError(f"there is a way to pad that is called {name!r} already: choose another name")
        padded[name] = [_checked(of(crop, pad), name, crop, pad)]
    found = {name: [border_of_padded(one, kernel) for one in images] for name, images in padded.items()}
    return {**found, "partial": [_partial_border(crop, kernel)]}


def _checked(padded: Any, name: str, crop: Tensor, pad: int) -> Tensor:
    """What somebody's function gave, in the dtype and on the device of what it was given."""
    shape = (*crop.shape[:-2], *(size + 2 * pad for size in crop.shape[-2:]))
    if not isinstance(padded, Tensor) or padded.shape != shape:
        got = tuple(padded.shape) if isinstance(padded, Tensor) else type(padded).__name__
        raise ConvswapError(f"{name!r} must pad images of shape {tuple(crop.shape)} to {shape}, got {got}")
    if not padded.abs().max() <= LARGEST:  # nor is NaN
        raise ConvswapError(f"{name!r} gives numbers that are not finite, or greater than {LARGEST:g}")
    return padded.to(crop)


def border_of_padded(padded: Tensor, kernel: Tensor) -> Border:
    """What a filter gives at the border of an image, (B, 1, H + 2p, W + 2p) with what was put around it."""
    pad = kernel.shape[-1] // 2
    rows = padded[..., pad:-pad, :]  # without those that the first and the last outputs alone see
    strips = (padded[..., : 3 * pad, :], padded[..., -3 * pad :, :], rows[..., : 3 * pad], rows[..., -3 * pad :])
    return tuple(F.conv2d(strip, kernel) for strip in strips)


def _partial_border(crop: Tensor, kernel: Tensor) -> Border:
    """The same for partial convolution, which does not pad, but scales what the window sees of the image."""
    pad = kernel.shape[-1] // 2

    def filtered(strip: Tensor) -> Tensor:
        return partial_conv2d(strip, kernel, None, 1, pad, 1, 1)

    return (
        filtered(crop[..., : 3 * pad, :])[..., :pad, :],
        filtered(crop[..., -3 * pad :, :])[..., -pad:, :],
        filtered(crop[..., : 3 * pad])[..., pad:-pad, :pad],
        filtered(crop[..., -3 * pad :])[..., pad:-pad, -pad:],
    )
