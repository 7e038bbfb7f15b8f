"""What files and reports say of a model after parts of it were converted or frozen on their own, in any order."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convswap
from convswap.layers import ConvLayer, DynamicConv2d

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.deep = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.deep(self.conv(x))
        return y


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 3, 1), Inner()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(self.first(x))
        return y


def fresh(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Outer().double().eval()


def trained(model: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in convswap.new_parameters(model).values():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return model.eval()


def frozen(model: Any) -> Any:
    return convswap.freeze(model, X, mode="mean")


def check(model: Any, path: Path) -> convswap.Report:
    """That it can be saved and loaded, and its report says what is there."""
    made = convswap.report(model)
    convswap.save(model, path, overwrite=True)
    loaded = convswap.load(path, model=fresh(seed=1)).eval()
    assert torch.equal(loaded(X), model(X))
    assert convswap.report(loaded) == made
    modules = dict(model.named_modules())
    last = made.recipe.last()
    assert {step.name for step in made.swaps} == set(last)
    for name, step in last.items():
        assert step.frozen == (not isinstance(modules[name], ConvLayer)), name
    targets = {step.name: step.target for step in made.swaps}
    assert all(targets[name] in (step.target, "Conv2d") for name, step in last.items() if step.target is not None)
    assert len({step.name for step in made.steps}) == len(made.steps)
    assert made.parameters == sum(p.numel() for p in fresh().parameters())
    return made


@pytest.mark.parametrize("actions", [*product(("whole", "part", "inside"), repeat=3)])
def test_converted_and_frozen_in_turns(actions: tuple[str, ...], tmp_path: Path) -> None:
    """Convert, freeze, convert: each the whole, a part, or a part of that; then freeze the whole."""
    model = fresh()
    for turn, scope in enumerate(actions):
        holder, name = {"whole": (None, ""), "part": (model, "inner"), "inside": (model.inner, "deep")}[scope]
        part = model if holder is None else getattr(holder, name)
        expected = part(X)
        if turn % 2:
            if not any(isinstance(module, ConvLayer) for module in part.modules()):
                continue
            changed = frozen(part)
        else:
            options: Any = {"convert_first": True} if turn == 0 else {}
            plain = [m for m in part.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
            if not plain:
                continue
            changed = convswap.convert(part, "condconv" if turn else "dynamic", **options).eval()
            assert torch.allclose(changed(X), expected, rtol=1e-9, atol=1e-12)
            changed = trained(changed)
        if holder is None:
            model = changed
        else:
            setattr(holder, name, changed)
    check(model, tmp_path / "net.safetensors")
    check(frozen(model), tmp_path / "net.safetensors")


@pytest.mark.parametrize("part", ["whole", "inner", "inner.deep"])
def test_converted_in_place_after_freezing(part: str, tmp_path: Path) -> None:
    model = frozen(trained(convswap.convert(fresh(), "dynamic", convert_first=True)))
    convswap.convert_(model if part == "whole" else model.get_submodule(part), "condconv")
    made = check(model, tmp_path / "net.safetensors")
    assert [(s.target, s.frozen) for s in made.recipe.steps if s.name == "inner.deep.1"] == [
        ("dynamic", True),
        ("condconv", False),
    ]
    (step,) = (step for step in made.swaps if step.name == "inner.deep.1")
    assert step.note == "was converted to dynamic and frozen before"
    assert made.verification is None


def test_notes_of_a_part_that_knew_nothing_of_the_whole(tmp_path: Path) -> None:
    model = trained(convswap.convert(fresh(), "dynamic", "inner.*"))
    model.inner = convswap.convert(frozen(model.inner), "condconv", "conv").eval()
    made = check(model, tmp_path / "net.safetensors")
    steps = {step.name: step for step in made.swaps}
    assert steps["inner.conv"].note == "was converted to dynamic and frozen before"
    assert steps["inner.conv"].kind == "Conv2d"
    of_part = convswap.report(frozen(nn.Sequential(DynamicConv2d(3, 3, 3, dtype=torch.float64))))
    assert of_part.swaps[0].note is None


def test_layers_of_the_model_itself_that_were_frozen_and_converted() -> None:
    own = frozen(nn.Sequential(DynamicConv2d(3, 3, 3, dtype=torch.float64)))
    (step,) = convswap.report(convswap.convert(own, "condconv")).swaps
    assert step.note == "was a DynamicConv2d of the model's own and frozen before"


@pytest.mark.parametrize("before", ["converted", "frozen"])
def test_another_part_in_the_place_of_one(before: str, tmp_path: Path) -> None:
    """Its history begins anew."""
    model = trained(convswap.convert(fresh(), "dynamic", "inner.*"))
    other = trained(convswap.convert(fresh().inner, "condconv"))
    if before == "frozen":
        other = frozen(other)
    model.inner = other
    made = check(model, tmp_path / "net.safetensors")
    assert {(step.target, step.frozen, step.stage) for step in made.recipe.steps} == {
        ("condconv", before == "frozen", 0)
    }
