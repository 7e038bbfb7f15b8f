"""Scenes to complete the depth of: crops of the sample photos with synthetic depth that has its edges where theirs are.

How the depth is made: each photo is divided into surfaces by its colours (`surfaces`), and in every crop each surface
is a plane of random distance and tilt. So a photo tells where depth may jump, as in real scenes, but not how far away
anything is: that only the samples tell. Surfaces that hold no sample are a matter of luck for every method. Errors are
measured on other columns of the same five photos than were trained on, whose main colours they share.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from .samples import PHOTOS, photo

HEIGHT = 128
COLOURS = 4
PARTS = {"training": (0.0, 0.5), "validation": (0.5, 0.75), "test": (0.75, 1.0)}
"""Which columns of every photo, from left to right, crops are taken from: parts share no pixel."""


class Batch(NamedTuple):
    """Crops: rgb (B, 3, S, S) in [0, 1]; sparse depth in metres, 0 where not mask; mask and depth (B, 1, S, S)."""

    rgb: Tensor
    sparse: Tensor
    mask: Tensor
    depth: Tensor


class Scenes:
    """The photos and their surfaces, for `draw` to take crops from."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.photos = [_read(name) for name in PHOTOS]
        self.surfaces = [surfaces(rgb, generator) for rgb in self.photos]

    def draw(self, part: str, batch: int, size: int, density: float, generator: torch.Generator) -> Batch:
        """Random crops of a part of the photos, each with new planes and new samples.

        So that five photos go further, crops are mirrored and their colour channels exchanged at random.

        Raises:
            ValueError: if the part is narrower than the crops.
        """
        crops, labels = [], []
        for i in torch.randint(len(self.photos), (batch,), generator=generator).tolist():
            _, rows, width = self.photos[i].shape
            start, stop = (int(width * end) for end in PARTS[part])
            if size > min(rows, stop - start):
                raise ValueError(f"crops of {size} pixels do not fit into {rows}×{stop - start} pixels: choose smaller")
            y = int(torch.randint(rows - size + 1, (), generator=generator))
            x = int(torch.randint(start, stop - size + 1, (), generator=generator))
            flipped = [axis for axis in (-2, -1) if torch.rand((), generator=generator) < 0.5]
            colours = torch.randperm(3, generator=generator)
            crops.append(self.photos[i][colours, y : y + size, x : x + size].flip(flipped))
            labels.append(self.surfaces[i][y : y + size, x : x + size].flip(flipped))
        depth = planes_of(torch.stack(labels), generator)
        mask = (torch.rand(depth.shape, generator=generator) < density).to(depth.dtype)
        return Batch(torch.stack(crops), depth * mask, mask, depth)


def surfaces(rgb: Tensor, generator: torch.Generator) -> Tensor:
    """Labels (H, W) of the surfaces of a photo (3, H, W): which of `COLOURS` main colours its pixels are nearest to.

    The main colours are found by k-means. A pixel goes with the majority of the 5×5 around it, so that fine texture
    makes no surfaces.
    """
    pixels = rgb.flatten(1).T
    colours = pixels[torch.randperm(len(pixels), generator=generator)[:COLOURS]]
    for _ in range(20):
        nearest = F.one_hot(torch.cdist(pixels, colours).argmin(1), COLOURS).to(pixels.dtype)
        colours = nearest.T @ pixels / nearest.sum(0)[:, None].clamp(min=1)
    votes = F.avg_pool2d(nearest.T.reshape(COLOURS, *rgb.shape[1:]), 5, 1, padding=2)
    return votes.argmax(0)


def rough_depth(sparse: Tensor, mask: Tensor) -> Tensor:
    """Mean of the samples around each pixel, weighted by a Gaussian (standard deviation 2 pixels): no net needed."""
    offset = torch.arange(-10, 11, dtype=sparse.dtype)
    gaussian = (-offset.square() / 8).exp()
    kernel = gaussian[:, None] * gaussian
    weighted, weight = (F.conv2d(x, kernel[None, None], padding=10) for x in (sparse, mask))
    return (weighted + 5e-6) / (weight + 1e-6)  # 5 m where there is no sample at all


def planes_of(label: Tensor, generator: torch.Generator) -> Tensor:
    """Depth (B, 1, S, S) in metres of surfaces 2 to 8 m away in the crop's middle, tilted by up to 1 m either way."""
    batch, size = len(label), label.shape[-1]
    planes = torch.rand(batch, COLOURS, 3, generator=generator)
    distance, down, right = (
        planes.gather(1, label.reshape(batch, -1, 1).expand(-1, -1, 3)).view(batch, 1, size, size, 3).unbind(-1)
    )
    position = torch.linspace(-1, 1, size)
    return 2 + 6 * distance + (2 * down - 1) * position[:, None] + (2 * right - 1) * position


def _read(name: str) -> Tensor:
    with Image.open(photo(name)) as image:
        width = round(image.width * HEIGHT / image.height)
        small = image.convert("RGB").resize((width, HEIGHT), Image.Resampling.BOX)
    rgb: Tensor = pil_to_tensor(small)
    return rgb / 255
