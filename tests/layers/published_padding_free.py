"""Padding-free convolution in the formulation of its paper (Leng and Thiyagalingam 2022), pixel by pixel.

An output whose window crosses the border takes the nearest full window. Through its k x k pixels goes one polynomial of
degree k - 1 along each axis; the kernel is transformed so that it acts on that window as the original one would act on
the polynomial where the output lies.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor


def published_conv2d(image: Tensor, kernel: Tensor, groups: int = 1, edge_kernel: Tensor | None = None) -> Tensor:
    """Image (B, C, H, W) in double precision, kernel (O, C / groups, k, k) with odd k, to (B, O, H, W)."""
    k, (height, width) = kernel.shape[-1], image.shape[2:]
    half = k // 2
    rows = []
    for y in range(height):
        row = []
        for x in range(width):
            down, across = min(max(y, half), height - 1 - half), min(max(x, half), width - 1 - half)
            used = kernel if edge_kernel is None or (down, across) == (y, x) else edge_kernel
            moved = used.flatten(2) @ torch.kron(transform(k, y - down), transform(k, x - across))
            window = image[:, :, down - half : down + half + 1, across - half : across + half + 1]
            per_group = window.reshape(image.shape[0], groups, -1)
            row.append(torch.einsum("bgi,goi->bgo", per_group, moved.reshape(groups, kernel.shape[0] // groups, -1)))
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2).flatten(1, 2)


def transform(k: int, shift: int) -> Tensor:
    """(k, k): the values at 0..k-1, moved by ``shift``, of the polynomial with given values at 0..k-1."""
    places = [Fraction(s) for s in range(-(k // 2), k - k // 2)]
    inverse = inverted([[place**power for power in range(k)] for place in places])
    moved = [[(place + shift) ** power for power in range(k)] for place in places]
    columns = list(zip(*inverse, strict=True))
    product = [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in moved]
    return torch.tensor([[float(value) for value in row] for row in product], dtype=torch.float64)


def inverted(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """By Gauss and Jordan, exactly."""
    size = len(matrix)
    rows = [[*row, *(Fraction(int(i == j)) for j in range(size))] for i, row in enumerate(matrix)]
    for i in range(size):
        pivot = next(r for r in range(i, size) if rows[r][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for r in range(size):
            if r != i:
                rows[r] = [a - rows[r][i] * b for a, b in zip(rows[r], rows[i], strict=True)]
    return [row[size:] for row in rows]
