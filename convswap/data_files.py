"""A data set from files: photos, folders of photos, saved tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import FileError
from .input_files import read_input

IMAGES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"))
"""Endings of the files in a folder that are taken for photos."""

TENSORS = frozenset((".pt", ".pth", ".npy", ".safetensors"))

LARGEST_BATCH = 16


class DataFiles:
    """Batches from files, which are read anew at each pass.

    No more is in memory than a batch, and one file: a file of tensors is read whole.
    """

    def __init__(self, model: nn.Module, paths: Sequence[Path]) -> None:
        """Look up which files there are.

        Args:
            model: what they are for: photos are prepared as its library does for evaluation.
            paths: photos, tensors whose first axis is of samples, and folders, of which all photos and tensors are
                taken (not those in folders within).

        Raises:
            FileError: for a path that is not there, or a folder without any.
        """
        self.model = model
        self.paths = [file for path in paths for file in _files(path)]

    def __iter__(self) -> Iterator[Tensor]:
        waiting: list[Tensor] = []
        for path in self.paths:
            value = read_input(self.model, path)
            if not value.dim():
                raise FileError(f"{path} holds a single number: it must have samples on its first axis")
            for part in value.split(LARGEST_BATCH):
                if waiting and (
                    waiting[0].shape[1:] != part.shape[1:]
                    or waiting[0].dtype != part.dtype
                    or sum(map(len, waiting)) + len(part) > LARGEST_BATCH
                ):
                    yield torch.cat(waiting)
                    waiting = []
                waiting.append(part)
        if waiting:
            yield torch.cat(waiting)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.is_file():
            raise FileError(f"there is no file {path}")
        return [path]
    found = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in IMAGES | TENSORS)
    if not found:
        raise FileError(f"there is no photo and no tensor in the folder {path}")
    return found
