"""5000 handwritten digits of MNIST, divided into parts to train on, to choose by and to test with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .samples import digits

SIZE = 28
PER_CLASS = {"training": 300, "validation": 100, "test": 100}
"""How many of the 500 digits of each class a part holds. Parts share no digit."""


class Digits(NamedTuple):
    """Images (B, 1, 28, 28) in [0, 1], and labels (B) from 0 to 9."""

    images: Tensor
    labels: Tensor


def read_digits() -> Digits:
    """All 5000 digits, in the order of the file: the zeros, then the ones, …

    Raises:
        SystemExit: if the file is not there, or does not hold what it should.
    """
    path = digits()
    rows = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.uint8))
    expected = torch.arange(10, dtype=torch.uint8).repeat_interleave(sum(PER_CLASS.values()))
    if rows.shape != (len(expected), SIZE * SIZE + 1) or not torch.equal(rows[:, -1], expected):
        raise SystemExit(f"{path} is not the file it should be: 5000 rows of 784 pixels and a label, 500 of each class")
    return Digits(rows[:, :-1].reshape(-1, 1, SIZE, SIZE) / 255, rows[:, -1].long())


def parts_of(all_digits: Digits, seed: int = 0) -> dict[str, Digits]:
    """Divide the digits of every class at random into the parts that `PER_CLASS` names."""
    generator = torch.Generator().manual_seed(seed)
    classes = [torch.nonzero(all_digits.labels == label).flatten() for label in range(10)]
    shuffled = [members[torch.randperm(len(members), generator=generator)] for members in classes]
    sizes = list(PER_CLASS.values())
    pieces = zip(*(members.split(sizes) for members in shuffled), strict=True)
    chosen = (torch.cat(piece) for piece in pieces)
    return {
        part: Digits(all_digits.images[rows], all_digits.labels[rows])
        for part, rows in zip(PER_CLASS, chosen, strict=True)
    }


def distorted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 1, 28, 28), each turned, scaled, sheared and moved a little at random."""
    matrices = torch.eye(2, 3) + 0.1 * torch.randn(len(images), 2, 3, generator=generator)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
