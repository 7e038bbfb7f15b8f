from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import convswap
from convswap.errors import ConvswapError, ModelError
from convswap.layers import clamp_after_step

from .models import TwoConvs, as_if_trained

timm_optim = importlib.import_module("timm.optim")


@pytest.fixture
def model() -> nn.Module:
    model: nn.Module = convswap.convert(as_if_trained(TwoConvs()), "dcls", version="gauss", share_positions="group")
    return model


def named(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}


def test_groups_have_the_published_recipe(model: nn.Module) -> None:
    groups = convswap.param_groups(model, lr=0.1, weight_decay=0.05)
    assert named(model, groups) == {
        "decay": {"conv1.weight", "conv2.weight", "head.weight"},
        "no decay": {"norm.weight", "norm.bias", "conv2.bias", "head.bias"},
        "positions": {"conv1.P", "conv2.P"},
        "widths": {"conv1.SIG", "conv2.SIG"},
    }
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in groups} == {
        "decay": (0.1, 0.05),
        "no decay": (0.1, 0.0),
        "positions": (0.5, 0.0),
        "widths": (0.1, 0.0),
    }


def test_shared_parameters_are_there_once() -> None:
    convs = [nn.Conv2d(2, 2, 3, padding=1) for _ in range(3)]
    new = convswap.convert(nn.Sequential(*convs), "dcls", share_positions="group")
    groups = convswap.param_groups(new, lr=0.1)
    assert named(new, groups)["positions"] == {"0.P"}
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(parameter) for parameter in new.parameters())


def test_only_what_is_trained_and_no_empty_groups(model: nn.Module) -> None:
    model.requires_grad_(False)
    assert convswap.param_groups(model, lr=0.1) == []
    for parameter in convswap.new_parameters(model).values():
        parameter.requires_grad_(True)
    assert [group["name"] for group in convswap.param_groups(model, lr=0.1)] == ["positions", "widths"]
    assert [group["name"] for group in convswap.param_groups(nn.Linear(2, 2), lr=0.1)] == ["decay", "no decay"]


def test_decay_is_timm_s() -> None:
    """A model that names parameters with several axes as exempt."""
    model = importlib.import_module("timm").create_model("test_vit3", num_classes=3)
    assert model.no_weight_decay()
    ours = named(model, convswap.param_groups(model, lr=0.1, weight_decay=0.05))
    theirs = timm_optim.param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_decay = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in theirs}
    assert ours == {"decay": by_decay[0.05], "no decay": by_decay[0.0]}
    assert any(parameter.dim() > 1 for name, parameter in model.named_parameters() if name in ours["no decay"])


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2)
        self.two = nn.Linear(2, 2)
        self.two.weight = self.one.weight

    def no_weight_decay(self) -> set[str]:
        return {"two.weight"}


def test_exempt_by_any_of_its_names() -> None:
    model = Named()
    assert named(model, convswap.param_groups(model, 0.1, 0.5)) == {"no decay": {"one.weight", "one.bias", "two.bias"}}


@pytest.mark.parametrize("declared", [{"two.weight"}, ["two.weight"], ("two.weight",)])
def test_exempt_names_may_be_an_attribute(declared: Any) -> None:
    model = nn.ModuleDict({"two": nn.Linear(2, 2)})
    model.no_weight_decay = declared
    assert named(model, convswap.param_groups(model, 0.1, 0.5)) == {"no decay": {"two.weight", "two.bias"}}


@pytest.mark.parametrize("declared", ["two.weight", None, True])
def test_exempt_names_that_are_none(declared: Any) -> None:
    model = nn.ModuleDict({"two": nn.Linear(2, 2)})
    model.no_weight_decay = declared
    with pytest.raises(ConvswapError, match=f"ModuleDict.no_weight_decay must give a set of names, got {declared!r}"):
        convswap.param_groups(model, 0.1)


def test_lazy_modules_have_no_groups_yet() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyConv2d(4, 3))
    with pytest.raises(ModelError, match=r"1\.weight has no shape yet, because its module is lazy"):
        convswap.param_groups(model, 0.1)
    model(torch.zeros(1, 3, 8, 8))
    assert len(convswap.param_groups(model, 0.1)) == 2


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, value: Tensor) -> Tensor:
        return self.factor * value


class Halves(nn.Module):
    """Computes a tensor from two."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return value / 2, value / 2


def test_what_positions_are_computed_from_are_positions(model: Any) -> None:
    parametrize.register_parametrization(model.conv1, "P", Scaled())
    parametrize.register_parametrization(model.conv2, "P", Halves())
    parametrize.register_parametrization(model.conv2, "SIG", Halves())
    groups = named(model, convswap.param_groups(model, lr=0.1, weight_decay=0.5))
    halves = "conv2.parametrizations"
    positions = {"conv1.parametrizations.P.original", f"{halves}.P.original0", f"{halves}.P.original1"}
    assert groups["positions"] == positions
    widths = {"conv1.SIG", f"{halves}.SIG.original0", f"{halves}.SIG.original1"}
    assert groups["widths"] == widths
    assert "conv1.parametrizations.P.0.factor" in groups["no decay"]
    assert set(convswap.new_parameters(model)) == positions | widths | {"conv1.parametrizations.P.0.factor"}


def test_new_parameters_of_parametrised_attention() -> None:
    model: Any = convswap.convert(TwoConvs(), "dynamic", "conv2")
    before = set(convswap.new_parameters(model))
    parametrizations.weight_norm(model.conv2.attention.fc1)
    after = set(convswap.new_parameters(model))
    assert before - after == {"conv2.attention.fc1.weight"}
    normed = "conv2.attention.fc1.parametrizations.weight.original"
    assert after - before == {f"{normed}0", f"{normed}1"}


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("one_cycle", [False, True])
def test_optimisers_and_schedulers_take_them(model: nn.Module, optimizer_class: Any, one_cycle: bool) -> None:
    groups = convswap.param_groups(model, lr=0.01, weight_decay=0.05)
    optimizer = optimizer_class(groups)
    if one_cycle:
        highest = [group["lr"] for group in groups]
        scheduler: Any = torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=4)
    else:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    clamp_after_step(optimizer, model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(2):
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        scheduler.step()
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert rates["positions"] == pytest.approx(5 * rates["decay"])
        assert 0 < rates["decay"] <= 0.01
    assert not any(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_learning_rates_may_be_tensors(model: nn.Module) -> None:
    groups = convswap.param_groups(model, lr=torch.tensor(0.1))  # type: ignore[arg-type]
    assert {group["name"]: float(group["lr"]) for group in groups}["positions"] == pytest.approx(0.5)
