"""Comparing two models: what is only in one, what has another shape, how far shared weights are apart."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .carried_report import earlier_report
from .checkpoint import read_state_dict
from .errors import UnknownNameError
from .files import is_converted_file, read_info, read_tensors
from .report import Report
from .sources import build_model, parse_source

Comparable: TypeAlias = "nn.Module | Mapping[str, Tensor] | str | Path"
"""A model, a state dict, the file of a checkpoint or of a converted model, or the name of an architecture."""


@dataclass(frozen=True)
class LayerDiff:
    """A layer that differs, or is in one side only (the other side's values are None).

    Attributes:
        name: qualified name.
        kinds: class names on both sides, where they are known.
        shapes: shapes of its own parameters and buffers on both sides, by name.
        parameters: their number on both sides.
    """

    name: str
    kinds: tuple[str | None, str | None]
    shapes: tuple[dict[str, tuple[int, ...]] | None, dict[str, tuple[int, ...]] | None]
    parameters: tuple[int | None, int | None]


@dataclass(frozen=True)
class TensorDistance:
    """A tensor of the same name and shape on both sides, with other numbers.

    Attributes:
        name: its key in the state dict.
        greatest: greatest absolute difference.
        relative: norm of the difference, divided by the norm of the first side's; infinite if that is zero.
    """

    name: str
    greatest: float
    relative: float


@dataclass(frozen=True)
class Diff:
    """How two models differ.

    Attributes:
        names: what was compared.
        parameters: number of parameters and buffers on both sides.
        layers: layers in one side only, of another kind or with other shapes.
        distances: tensors with other numbers, the farthest apart first.
        equal: number of tensors that are equal bit for bit.
        weights_compared: False where a side is a bare architecture, whose weights mean nothing.
    """

    names: tuple[str, str]
    parameters: tuple[int, int]
    layers: tuple[LayerDiff, ...]
    distances: tuple[TensorDistance, ...]
    equal: int
    weights_compared: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON values; distances that are infinite or undefined are None, as JSON has no such numbers."""
        data = {"version": 1, **asdict(self)}
        for distance in data["distances"]:
            distance.update({k: None for k in ("greatest", "relative") if not math.isfinite(distance[k])})
        return data

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __rich__(self) -> Any:
        from .diff_rich import to_rich

        return to_rich(self)

    def __str__(self) -> str:
        from .diff_rich import to_text

        return to_text(self)


def diff(a: Comparable, b: Comparable) -> Diff:
    """Compare two models.

    Args:
        a, b: models, state dicts, files of checkpoints or converted models, or names of architectures
            (``torchvision:<name>``, ``timm:<name>``, ``module.path:factory``), whose weights are not compared.

    Raises:
        ConvswapError: if a file cannot be read or a name is not known.
    """
    one, other = _side(a), _side(b)
    layers = []
    for name in dict.fromkeys((*one.layers(), *other.layers())):
        shapes = (one.layers().get(name), other.layers().get(name))
        kinds = (one.kinds.get(name), other.kinds.get(name))
        if shapes[0] != shapes[1] or (None not in kinds and kinds[0] != kinds[1]):
            layers.append(LayerDiff(name, kinds, shapes, (_count(shapes[0]), _count(shapes[1]))))
    compared = one.has_weights and other.has_weights
    distances, equal = _distances(one.tensors, other.tensors) if compared else ([], 0)
    return Diff(
        names=(one.name, other.name),
        parameters=(one.parameters(), other.parameters()),
        layers=tuple(layers),
        distances=tuple(distances),
        equal=equal,
        weights_compared=compared,
    )


@dataclass(frozen=True)
class _Side:
    name: str
    tensors: Mapping[str, Tensor]
    kinds: Mapping[str, str]
    has_weights: bool = True

    def layers(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Shapes of each layer's own tensors."""
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for key, tensor in self.tensors.items():
            layer, _, own = key.rpartition(".")
            found.setdefault(layer, {})[own] = tuple(tensor.shape)
        return found

    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())


def _side(what: Comparable) -> _Side:
    if isinstance(what, nn.Module):
        return _Side(type(what).__name__, what.state_dict(), _kinds(what))
    if isinstance(what, Mapping):
        return _Side("state dict", what, {})
    path = Path(what)
    if path.exists():
        if is_converted_file(path):
            info = read_info(path)
            return _Side(path.name, read_tensors(path, info), _kinds_by_report(info.report))
        return _Side(path.name, read_state_dict(path), {})
    if ":" not in str(what):
        raise UnknownNameError(
            f"{what} is neither a file nor a model's name (torchvision:<name>, timm:<name> or module.path:factory)"
        )
    model = build_model(parse_source(str(what)))
    return _Side(str(what), model.state_dict(), _kinds(model), has_weights=False)


def _kinds(model: nn.Module) -> dict[str, str]:
    report = earlier_report(model)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    return kinds if report is None else {**kinds, **_kinds_by_report(report)}


def _kinds_by_report(report: Report) -> dict[str, str]:
    """What stands in each convolution's place, by target; a file does not name classes of other layers."""
    done = {name: how for how, layers in report.made_plain().items() for name in layers}
    kinds = {step.name: step.kind if step.target is None else step.target for step in report.steps}
    return {name: f"{kind}, {done[name]}" if name in done else kind for name, kind in kinds.items()}


def _count(shapes: dict[str, tuple[int, ...]] | None) -> int | None:
    return None if shapes is None else sum(torch.Size(shape).numel() for shape in shapes.values())


def _distances(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[list[TensorDistance], int]:
    distances, equal = [], 0
    for name, a in one.items():
        b = other.get(name)
        if b is None or a.shape != b.shape:
            continue
        if torch.equal(a, b):
            equal += 1
            continue
        wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
        wide_a, wide_b = a.detach().to(wide), b.detach().to(wide)
        difference = wide_b - wide_a
        norm = wide_a.norm().item()
        relative = difference.norm().item() / norm if norm > 0 else float("inf")
        distances.append(TensorDistance(name, difference.abs().max().item(), relative))
    return sorted(distances, key=lambda distance: -distance.relative), equal
