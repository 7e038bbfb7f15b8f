"""Reading a model's input from a file: an image, or a tensor."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConvswapError, FileError
from .inputs import default_input_shape

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_input(model: nn.Module, path: Path) -> Tensor:
    """A batch for ``model`` from an image (prepared as its library does for evaluation) or a saved tensor.

    Raises:
        FileError: if the file is missing, cannot be read, or holds neither.
        ConvswapError: if it is an image and the model's input size is unknown.
    """
    if not path.is_file():
        raise FileError(f"there is no file {path}")
    parameter = next(iter(model.parameters()), torch.empty(0))
    value = _READERS[path.suffix.lower()](path) if path.suffix.lower() in _READERS else _read_image(model, path)
    return value.to(device=parameter.device, dtype=parameter.dtype if value.is_floating_point() else None)


def image_transform(model: nn.Module) -> Any:
    """What the model's library does to an image before evaluation: a function of a PIL image.

    timm models name theirs; others are prepared as torchvision's ImageNet models are.

    Raises:
        ConvswapError: if the model's input size is unknown.
    """
    if isinstance(getattr(model, "pretrained_cfg", None), Mapping):
        data: Any = importlib.import_module("timm.data")
        return data.create_transform(**data.resolve_model_data_config(model))
    shape = default_input_shape(model)
    if shape is None:
        raise ConvswapError(f"the input size of {type(model).__name__} is unknown: give a tensor instead of an image")
    from torchvision.transforms._presets import ImageClassification

    return ImageClassification(
        crop_size=shape[-1], resize_size=round(shape[-1] * 256 / 224), mean=IMAGENET_MEAN, std=IMAGENET_STD
    )


def _read_image(model: nn.Module, path: Path) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise FileError(f"{path} is neither an image nor a tensor (.pt, .pth, .npy, .safetensors): {error}") from error
    prepared: Tensor = image_transform(model)(image)
    return prepared.unsqueeze(0)


def _read_npy(path: Path) -> Tensor:
    import numpy

    try:
        return torch.from_numpy(numpy.load(path, allow_pickle=False))
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise FileError(f"{path} is no .npy file of numbers: {error}") from error


def _read_torch(path: Path) -> Tensor:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are not its own
        raise FileError(f"{path} cannot be read as a saved tensor: {type(error).__name__}") from error
    if not isinstance(value, Tensor):
        raise FileError(f"{path} must hold one tensor, and holds a {type(value).__name__}")
    return value


def _read_safetensors(path: Path) -> Tensor:
    import safetensors.torch

    try:
        tensors = safetensors.torch.load_file(path)
    except Exception as error:
        raise FileError(f"{path} cannot be read as safetensors: {error}") from error
    if len(tensors) != 1:
        raise FileError(f"{path} must hold one tensor, and holds {len(tensors)}")
    return next(iter(tensors.values()))


_READERS = {".npy": _read_npy, ".pt": _read_torch, ".pth": _read_torch, ".safetensors": _read_safetensors}
