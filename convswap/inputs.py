"""Inputs to run a model on: what the user gives, or what the model's library says it takes."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .errors import ConvswapError

ExampleInputs: TypeAlias = Any
"""A tensor, a tuple of arguments, a dict of keyword arguments, or the shape ``(C, H, W)`` of one sample."""


def is_shape(inputs: ExampleInputs) -> bool:
    """Whether ``inputs`` is the shape of a sample rather than a sample."""
    return (
        isinstance(inputs, Sequence)
        and not isinstance(inputs, bytes)
        and len(inputs) > 0
        and all(isinstance(size, numbers.Integral) and not isinstance(size, bool) for size in inputs)
    )


def as_call(inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that ``inputs`` stands for.

    Raises:
        ConvswapError: if it is none of the forms of `ExampleInputs`.
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple):
        return inputs, {}
    if isinstance(inputs, Tensor | list):
        return (inputs,), {}
    raise ConvswapError(
        "example_inputs must be a tensor, a tuple of arguments, a dict of keyword arguments or a shape such as "
        f"(3, 224, 224), got {type(inputs).__name__}"
    )


def make_inputs(
    model: nn.Module, shape: Sequence[int], batch: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """A batch of standard normal samples of ``shape``, with the dtype and device of the model's parameters.

    Raises:
        ConvswapError: if a number of the shape is below 1.
    """
    sizes = (batch, *_positive(shape))
    # Everywhere the device is named, as another one may be the default.
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0, device="cpu"))
    if parameter.is_meta:
        return torch.empty(sizes, dtype=parameter.dtype, device="meta")
    drawn = torch.randn(sizes, generator=generator, device="cpu")
    return drawn.to(device=parameter.device, dtype=parameter.dtype)


def _positive(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in shape)
    if min(sizes, default=1) < 1:
        raise ConvswapError(f"the shape of a sample must be of positive numbers, got {min(sizes)} in {sizes}")
    return sizes


def default_inputs(model: nn.Module, seed: int = 0) -> ExampleInputs:
    """What to run ``model`` on if nothing is given, or None if nothing is known.

    The shape that `default_input_shape` gives; a list of one image for torchvision's detection models, which bring it
    to their own size; and two frames for its models of optical flow. Images and frames are drawn from ``seed``, and the
    global random state is left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    family = next(filter(None, map(_torchvision_family, type(model).__mro__)), None)
    if family == "detection" and hasattr(model, "transform"):  # not a part of such a model
        return [make_inputs(model, (3, 320, 320), generator=generator)[0]]
    if family == "optical_flow" and type(model).__name__ == "RAFT":
        return tuple(make_inputs(model, (3, 128, 128), generator=generator) for _ in range(2))
    return default_input_shape(model)


def _torchvision_family(kind: type) -> str | None:
    """The folder or file of torchvision's models that a class is from, or None if it is not from there."""
    library, found, module = kind.__module__.partition("torchvision.models.")
    return module.split(".")[0] if found and not library else None


def default_input_shape(model: nn.Module) -> tuple[int, ...] | None:
    """Shape of one sample as timm's or torchvision's own configuration has it, or None if there is none."""
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, attribute, None)
        if isinstance(config, Mapping) and config.get("input_size"):
            return tuple(config["input_size"])
    for kind in type(model).__mro__:
        family = _torchvision_family(kind)
        if family is not None:
            return _torchvision_shape(family, kind.__name__)
    return None


def _torchvision_shape(family: str, class_name: str) -> tuple[int, ...] | None:
    if family in ("detection", "optical_flow"):
        return None  # a list of images, two frames: see `default_inputs`
    if family == "video":
        return (3, 16, 224, 224) if class_name in ("MViT", "SwinTransformer3d", "S3D") else (3, 16, 112, 112)
    if class_name == "Inception3":
        return (3, 299, 299)
    return (3, 224, 224)
