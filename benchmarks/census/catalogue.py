"""All architectures of torchvision and timm by name, and how each is built without downloading anything."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from itertools import count
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models as torchvision_models

from convswap.errors import ModelError
from convswap.sources import build_model, parse_source


@cache
def all_names() -> list[str]:
    """``torchvision:<name>`` and ``timm:<name>`` of all architectures, torchvision's first."""
    timm: Any = importlib.import_module("timm")
    found = {"torchvision": torchvision_models.list_models(), "timm": timm.list_models()}
    return [f"{library}:{name}" for library, names in found.items() for name in names]


def family(name: str) -> str:
    """The library and source file of an architecture: ``torchvision:detection.ssd``, ``timm:efficientnet``."""
    library, _, model = name.partition(":")
    if library == "torchvision":
        return f"{library}:{torchvision_models.get_model_builder(model).__module__.removeprefix('torchvision.models.')}"
    registry: Any = importlib.import_module("timm.models")
    return f"{library}:{registry.model_entrypoint(model).__module__.removeprefix('timm.models.')}"


@cache
def families() -> dict[str, list[str]]:
    """The names of each family."""
    found: dict[str, list[str]] = {}
    for name in all_names():
        found.setdefault(family(name), []).append(name)
    return found


def varied(names: list[str]) -> list[str]:
    """The same names, the first of each family first: a run that is stopped early has seen all kinds of models."""
    turns: dict[str, count[int]] = {}
    return sorted(names, key=lambda name: next(turns.setdefault(family(name), count())))


def build(name: str, device: Literal["meta", "cpu"] = "meta", **args: Any) -> nn.Module:
    """An architecture with random weights, or on the meta device.

    Raises:
        ConvswapError: if there is none of this name, or it cannot be built.
    """
    return build_and_tell(name, args)[0] if device == "meta" else build_model(parse_source(name, args))


def build_and_tell(name: str, args: Mapping[str, Any] | None = None) -> tuple[nn.Module, str | None]:
    """An architecture on the meta device, and why it was not built there, or None if it was.

    Raises:
        ConvswapError: as `build` does.
    """
    source = parse_source(name, args)
    try:
        with torch.device("meta"):
            return build_model(source), None
    except ModelError as error:
        with _WeightsOnMeta():
            return build_model(source).to("meta"), str(error)


class _WeightsOnMeta(TorchFunctionMode):
    """Parameters, which modules allocate by ``torch.empty``, are on the meta device; what code computes with is not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.empty:
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **(kwargs or {}))
