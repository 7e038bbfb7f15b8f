"""Layers that have their positions in common: which they are, how they start, and that they stay so."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import convswap
from convswap import Swap
from convswap.errors import ConvswapError, NothingToSwapError, OptionError
from convswap.files import read_info
from convswap.layers import Dcls2d
from convswap.layers.dcls_shared import layers_with_shared_positions
from convswap.sites import ConvSite

from .models import as_if_trained, relative_error

SIZE = (3, 16, 16)


class Stages(nn.Module):
    """Two stages of two blocks each, depthwise, of one width, so that only the resolution tells them apart."""

    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a = nn.Conv2d(4, 4, kernel, padding=kernel // 2, groups=4)
        self.b = nn.Conv2d(4, 4, kernel, padding=kernel // 2, groups=4)
        self.c = nn.Conv2d(4, 4, kernel, padding=kernel // 2, groups=4, bias=False)
        self.d = nn.Conv2d(4, 4, kernel, padding=kernel // 2, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.relu(self.a(self.stem(x))))
        return self.d(torch.relu(self.c(nn.functional.avg_pool2d(x, 2))))


@pytest.fixture
def model() -> Any:
    return as_if_trained(Stages()).double().eval()


def groups(plan: convswap.Plan) -> dict[str, str | None]:
    return {step.site.name: step.group for step in plan}


def converted(model: nn.Module, share: Any = "stage", **options: Any) -> Any:
    return convswap.convert(model, "dcls", "!stem", share_positions=share, example_inputs=SIZE, **options)


# Which ------------------------------------------------------------------------------------------------------------


def test_stages_are_told_by_resolution(model: Any) -> None:
    plan = convswap.plan(model, "dcls", share_positions="stage", example_inputs=SIZE)
    assert groups(plan) == {"stem": None, "a": "a", "b": "a", "c": "c", "d": "c"}
    assert {step.options.share_positions for step in plan} == {"stage"}


def test_one_group_for_all_kernels_of_a_shape(model: Any) -> None:
    plan = convswap.plan(model, "dcls", share_positions="group")
    assert groups(plan) == {"stem": None, "a": "a", "b": "a", "c": "a", "d": "a"}


def test_nothing_is_shared_unasked(model: Any) -> None:
    assert set(groups(convswap.plan(model, "dcls", example_inputs=SIZE)).values()) == {None}
    new = converted(model, "none")
    assert new.a.P is not new.b.P


def test_rules_do_not_share_with_each_other(model: Any) -> None:
    rules = [Swap(["a", "c"], "dcls", share_positions="group"), Swap("*", "dcls", share_positions="group")]
    assert groups(convswap.plan(model, rules)) == {"stem": None, "a": "a", "b": "b", "c": "a", "d": "b"}


def test_a_function_decides(model: Any) -> None:
    def label(site: ConvSite) -> tuple[str, int] | None:
        return None if site.name == "d" else ("any", 1)

    plan = convswap.plan(model, "dcls", share_positions=label)
    # The stem has the same label and another shape.
    assert groups(plan) == {"stem": None, "a": "a", "b": "a", "c": "a", "d": None}
    assert {step.options.share_positions for step in plan} == {"group"}


def test_labels_must_be_hashable(model: Any) -> None:
    with pytest.raises(OptionError, match=r"the label of a group must be hashable.*that of stem is"):
        convswap.plan(model, "dcls", share_positions=lambda site: [site.name])


@pytest.mark.parametrize(
    "label", [lambda site: torch.tensor(1), lambda site: ("a", (torch.tensor(1),)), lambda site: float("nan")]
)
def test_labels_must_be_equal_for_all_that_share(model: Any, label: Any) -> None:
    with pytest.raises(OptionError, match=r"strings, numbers and tuples.*that of stem has a tensor or a NaN in it"):
        convswap.plan(model, "dcls", share_positions=label)


def test_functions_that_fail_are_told_with_the_convolution(model: Any) -> None:
    with pytest.raises(OptionError, match=r"given as share_positions failed for stem: KeyError: 'stem'"):
        convswap.plan(model, "dcls", share_positions=lambda site: {}[site.name])


def test_stages_need_shapes(model: Any) -> None:
    with pytest.raises(NothingToSwapError, match=r'5 x share_positions="stage" goes by .*: give example_inputs'):
        convswap.plan(model, "dcls", share_positions="stage")


def test_kernels_of_another_shape_or_dilation_are_apart() -> None:
    convs = [nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, dilation=2), nn.Conv2d(2, 2, (3, 1))]
    plan = convswap.plan(nn.Sequential(*convs), "dcls", share_positions="group")
    assert list(groups(plan).values()) == ["0", "0", None, None]


def test_other_dtypes_and_devices_are_apart() -> None:
    convs = [nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3).double(), nn.Conv2d(2, 2, 3, device="meta"), nn.Conv2d(2, 2, 3)]
    new: Any = convswap.convert(nn.ModuleList(convs), "dcls", share_positions="group")
    assert [new[0].P is layer.P for layer in new] == [True, False, False, True]
    alike = nn.ModuleList([convs[0], convs[3]])
    recipe = convswap.report(convswap.convert(alike, "dcls", share_positions="group")).recipe
    again: Any = convswap.apply(recipe, nn.ModuleList(convs[:2]))
    assert again[0].P is not again[1].P
    assert again[1].P.dtype == torch.float64


def assert_told_as_shared(new: nn.Module) -> None:
    """Report and recipe tell of the groups that there are, and count what they hold."""
    made = convswap.report(new)
    modules: Any = dict(new.named_modules())
    holders: dict[int, list[str]] = {}
    for step in made.swaps:
        holders.setdefault(id(modules[step.name].P), []).append(step.name)
    groups = {name: names[0] if len(names) > 1 else None for names in holders.values() for name in names}
    assert {step.name: step.group for step in made.swaps} == groups
    assert {step.name: step.group for step in made.recipe.steps} == groups
    assert made.total("after").parameters == sum(parameter.numel() for parameter in new.parameters())


@pytest.fixture
def mixed() -> Any:
    """A model, and another one of its architecture with two convolutions of another dtype."""
    convs = [nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(4))) for _ in range(2)]
    convs[1][0].double()
    convs[1][2].double()
    return convs


def test_recipes_tell_of_groups_that_another_model_splits(mixed: Any) -> None:
    new = convswap.convert(mixed[0], "dcls", share_positions="group", seed=5)
    assert_told_as_shared(new)
    again: Any = convswap.apply(convswap.report(new).recipe, mixed[1])
    assert [layer.P is again[0].P for layer in again] == [True, False, True, False]
    assert again[1].P is again[3].P
    assert_told_as_shared(again)
    repeated = convswap.apply(convswap.report(again).recipe, mixed[1])
    assert_told_as_shared(repeated)
    assert all(torch.equal(value, repeated.state_dict()[name]) for name, value in again.state_dict().items())
    mixed[1][0].float()
    alone = convswap.apply(convswap.report(new).recipe, mixed[1])
    assert_told_as_shared(alone)
    assert [step.group for step in convswap.report(alone).swaps] == ["0", "0", None, "0"]


def test_plans_tell_of_groups_that_another_model_splits(mixed: Any) -> None:
    plan = convswap.plan(mixed[0], "dcls", share_positions="group", example_inputs=(2, 8, 8))
    assert groups(plan) == dict.fromkeys("0123", "0")
    new = convswap.apply(plan, mixed[1])
    assert_told_as_shared(new)
    assert {step.after.multiply_adds is None for step in convswap.report(new).swaps} == {False}
    assert [step.reason for step in convswap.report(new).swaps] == [step.reason for step in plan]


def test_files_tell_of_groups_that_the_given_model_splits(mixed: Any, tmp_path: Path) -> None:
    new = convswap.convert(mixed[0], "dcls", share_positions="group", example_inputs=(2, 8, 8))
    convswap.save(new, tmp_path / "new.safetensors")
    loaded = convswap.load(tmp_path / "new.safetensors", model=mixed[1])
    assert_told_as_shared(loaded)
    assert convswap.report(loaded).total("after").multiply_adds == convswap.report(new).total("after").multiply_adds


def test_tied_convolutions_of_two_groups_tell_why_they_share_nothing() -> None:
    model: Any = Stages().double()
    model.d.weight = model.a.weight
    plan = convswap.plan(model, "dcls", "!stem", share_positions="stage", example_inputs=SIZE)
    assert groups(plan) == dict.fromkeys(("stem", "a", "b", "c", "d"))
    notes = {step.site.name: step.note for step in plan}
    why = "shares nothing with its group: it has {} in common with a layer that is not in it"
    assert notes == {"stem": None, "a": why.format("d.weight"), "b": None, "c": None, "d": why.format("a.weight")}
    assert why.format("d.weight") in str(plan)
    # Where there is nothing to be lost, there is nothing to tell.
    alone = convswap.plan(model, "dcls", ["a", "d"], share_positions="stage", example_inputs=SIZE)
    assert {step.note for step in alone} == {None}


class Pyramid(nn.Module):
    """A head that is called at two sizes, and two layers that are called at one of them each."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.other, self.large, self.small = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        half = nn.functional.avg_pool2d(x, 2)
        sums = [self.head(y).mean() + self.other(y).mean() for y in (x, half)]
        return sums[0] + sums[1] + self.large(x).mean() + self.small(half).mean()


def test_all_resolutions_count() -> None:
    plan = convswap.plan(Pyramid(), "dcls", share_positions="stage", example_inputs=SIZE)
    assert groups(plan) == {"head": "head", "other": "head", "large": None, "small": None}


# How they start ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v0", "v1", "max"])
@pytest.mark.parametrize("count", [None, 9, 14])
def test_enough_elements_are_exact(model: Any, version: str, count: int | None) -> None:
    new = converted(model, version=version, kernel_count=count)
    assert new.a.P is new.b.P
    assert new.c.P is new.d.P
    assert new.a.P is not new.c.P
    assert new.a.weight is not new.b.weight
    if version == "max":
        assert new.a.SIG is new.b.SIG
    x = torch.randn(2, *SIZE).double()
    assert relative_error(new(x), model(x)) < 1e-10
    verification = convswap.verify(model, new, x)
    assert verification.passed
    assert {check.fidelity for check in verification.layers} == {"exact"}


def test_random_positions_are_those_of_the_group_and_its_seed(model: Any) -> None:
    one, same, other = (converted(model, kernel_count=12, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.a.P, same.a.P)
    assert not torch.equal(one.a.P, other.a.P)
    assert not torch.equal(one.a.P[..., 9:], one.c.P[..., 9:])
    alone = convswap.convert(model, "dcls", "a", kernel_count=12, seed=1)
    assert torch.equal(alone.a.P, one.a.P)


def test_fewer_elements_are_on_the_taps_that_matter_most_to_all(model: Any) -> None:
    new = converted(model, kernel_count=4, dilated_kernel_size=7)
    for names in ("ab", "cd"):
        kernels = torch.stack([getattr(model, name).weight.detach() for name in names])
        importance = kernels.square().sum(0).flatten(2)
        kept = importance >= importance.sort(2, descending=True).values[..., 3:4]
        assert kept.sum(2).eq(4).all()
        for name, kernel in zip(names, kernels, strict=True):
            wanted = torch.zeros(4, 1, 7, 7).double()
            wanted[..., 2:5, 2:5] = (kernel.flatten(2) * kept).view_as(kernel)
            assert relative_error(getattr(new, name).construct_kernel(), wanted) < 1e-12
    assert {step.fidelity for step in convswap.report(new).swaps} == {"approximate"}


def test_taps_without_weight_in_one_layer_are_kept_all_the_same() -> None:
    convs = [nn.Conv2d(1, 1, 3, bias=False) for _ in range(2)]
    with torch.no_grad():
        convs[0].weight.copy_(torch.tensor([[9.0, 0, 0], [0, 0, 0], [0, 0, 0]]))
        convs[1].weight.copy_(torch.tensor([[0, 0, 0], [0, 2.0, 0], [0, 0, 1.0]]))
    layers = layers_with_shared_positions(Dcls2d, convs, kernel_count=2, dilated_kernel_size=3)
    assert layers[0].P is layers[1].P
    kernels = [layer.construct_kernel().detach()[0, 0] for layer in layers]
    assert torch.allclose(kernels[0], convs[0].weight[0, 0])
    assert torch.allclose(kernels[1], torch.tensor([[0, 0, 0], [0, 2.0, 0], [0, 0, 0]]))


@pytest.mark.parametrize("count", [4, 9])
def test_gaussians_fit_with_shared_positions(model: Any, count: int) -> None:
    new = converted(model, version="gauss", kernel_count=count)
    assert new.a.SIG is new.b.SIG
    kept = converted(model, version="v1", kernel_count=count)
    for name in "abcd":
        wanted = getattr(kept, name).construct_kernel()
        assert relative_error(getattr(new, name).construct_kernel(), wanted) < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model: Any = as_if_trained(Stages()).to(dtype)
    new = converted(model, kernel_count=4)
    assert new.a.P is new.b.P
    assert {p.dtype for p in new.parameters()} == {dtype}
    assert relative_error(new.a.construct_kernel().float().abs().amax((2, 3)), model.a.weight.abs().amax((2, 3))) < 1


def test_one_and_three_dimensions() -> None:
    for kind in (nn.Conv1d, nn.Conv3d):
        model: Any = nn.Sequential(kind(2, 2, 3), kind(2, 2, 3)).double()
        new: Any = convswap.convert(model, "dcls", share_positions="group", kernel_count=2)
        assert new[0].P is new[1].P
        assert new[0].kernel_count == 2


def test_what_must_be_alike_for_sharing() -> None:
    conv = nn.Conv2d(2, 2, 3)
    for other, message in (
        (nn.Conv2d(2, 2, 5), "kernels of one shape"),
        (nn.Conv2d(2, 2, 3, dilation=2), "one dilation"),
        (nn.Conv2d(2, 2, 3).half(), "one dtype"),
        (nn.Conv2d(2, 2, 3, device="meta"), "one device"),
    ):
        with pytest.raises(ValueError, match=f"to share positions, convolutions must have {message}"):
            layers_with_shared_positions(Dcls2d, [conv, other])
    assert layers_with_shared_positions(Dcls2d, []) == []


# Ties -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 9])
def test_tied_weights_in_one_group(model: Any, count: int) -> None:
    model.b.weight = model.a.weight
    new = converted(model, kernel_count=count)
    assert new.b.weight is new.a.weight
    assert new.b.P is new.a.P
    assert convswap.verify(model, new, torch.randn(2, *SIZE).double()).passed


def test_tied_weights_of_two_stages_stay_tied_and_out_of_the_groups(model: Any) -> None:
    model.c.weight = model.a.weight
    plan = convswap.plan(model, "dcls", "!stem", share_positions="stage", example_inputs=SIZE, kernel_count=4)
    assert groups(plan) == {"stem": None, "a": None, "b": None, "c": None, "d": None}
    new: Any = convswap.apply(plan, model)
    assert new.c.weight is new.a.weight
    assert torch.equal(new.c.P, new.a.P)
    assert new.c.P is not new.a.P


# That they stay so ------------------------------------------------------------------------------------------------


def assert_shared(new: Any) -> None:
    assert new.a.P is new.b.P
    assert new.c.P is new.d.P
    assert new.a.P is not new.c.P
    assert len({id(p) for p in new.parameters()}) == len(list(new.parameters()))


def test_copies_moves_and_conversions_in_place(model: Any) -> None:
    new = converted(model)
    in_place = copy.deepcopy(model)
    convswap.convert_(in_place, "dcls", "!stem", share_positions="stage", example_inputs=SIZE)
    for one in (new, in_place, copy.deepcopy(new), pickle.loads(pickle.dumps(new)), copy.deepcopy(new).float().cpu()):
        assert_shared(one)
        one.to(memory_format=torch.channels_last)
        assert_shared(one)


def test_further_conversions_leave_groups_alone(model: Any) -> None:
    again = convswap.convert(converted(model), "dynamic", "stem", convert_first=True)
    assert_shared(again)
    assert_shared(convswap.apply(convswap.report(again).recipe, model))


def test_recipes_need_no_shapes_and_no_function(model: Any) -> None:
    new = convswap.convert(
        model, "dcls", "!stem", share_positions=lambda site: site.name in "ab", kernel_count=4, seed=3
    )
    recipe = json.loads(json.dumps(convswap.report(new).recipe.to_dict()))
    assert [(step["group"], step["options"]["share_positions"]) for step in recipe["steps"]] == [
        *[("a", "group")] * 2,
        *[("c", "group")] * 2,
    ]
    again = convswap.apply(recipe, model)
    assert_shared(again)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in new.state_dict().items())


def test_recipes_with_groups_of_different_options(model: Any) -> None:
    recipe = convswap.report(converted(model)).recipe.to_dict()
    recipe["steps"][1]["options"]["kernel_count"] = 3
    with pytest.raises(ConvswapError, match="a, b are to share parameters, and have not the same options"):
        convswap.apply(recipe, model)
    recipe["steps"][1]["group"] = 3
    with pytest.raises(ConvswapError, match="a step of the recipe must have"):
        convswap.apply(recipe, model)
    for step in recipe["steps"]:
        step["group"] = "all"
    recipe["steps"][1]["options"]["kernel_count"] = 9
    other = Stages()
    other.c = nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False)
    with pytest.raises(ConvswapError, match="a, b, c, d cannot be converted to dcls: to share positions"):
        convswap.apply(recipe, other)


def test_plans_are_for_other_models_too(model: Any) -> None:
    plan = convswap.plan(model, "dcls", "!stem", share_positions="stage", example_inputs=SIZE)
    assert_shared(convswap.apply(plan, Stages()))


@pytest.mark.parametrize("trained", [False, True])
def test_files_keep_every_bit_and_the_sharing(model: Any, tmp_path: Path, trained: bool) -> None:
    new = converted(model, kernel_count=12, version="gauss")
    if trained:
        optimizer = torch.optim.SGD(new.parameters(), lr=0.1)
        new(torch.randn(2, *SIZE).double()).square().mean().backward()
        optimizer.step()
    convswap.save(new, tmp_path / "new.safetensors")
    aliases = read_info(tmp_path / "new.safetensors").aliases
    assert aliases == {"b.P": "a.P", "b.SIG": "a.SIG", "d.P": "c.P", "d.SIG": "c.SIG"}
    loaded: Any = convswap.load(tmp_path / "new.safetensors", model=Stages())
    assert_shared(loaded)
    assert loaded.a.SIG is loaded.b.SIG
    assert list(loaded.state_dict()) == list(new.state_dict())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in new.state_dict().items())
    assert convswap.report(loaded) == convswap.report(new)


def test_what_was_separated_is_loaded_separated(model: Any, tmp_path: Path) -> None:
    new = converted(model)
    new.b.P = nn.Parameter(new.b.P.detach() + 0.25)
    convswap.save(new, tmp_path / "new.safetensors")
    loaded: Any = convswap.load(tmp_path / "new.safetensors", model=Stages())
    assert loaded.c.P is loaded.d.P
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in new.state_dict().items())


def test_parts_of_larger_models_keep_their_groups_apart(model: Any) -> None:
    pair: Any = nn.ModuleDict({"x": converted(model, kernel_count=4), "y": converted(model, kernel_count=4)})
    recipe = convswap.report(pair).recipe
    assert [step.group for step in recipe.steps] == ["x.a", "x.a", "x.c", "x.c", "y.a", "y.a", "y.c", "y.c"]
    again: Any = convswap.apply(recipe, nn.ModuleDict({"x": model, "y": copy.deepcopy(model)}))
    assert_shared(again["x"])
    assert again["x"].a.P is not again["y"].a.P


def test_new_parameters_are_named_once(model: Any) -> None:
    new = converted(model)
    assert list(convswap.new_parameters(new)) == ["a.P", "c.P"]


def test_gradients_of_all_layers_meet(model: Any) -> None:
    new, apart = (converted(model, share, kernel_count=12) for share in ("stage", "none"))
    apart.load_state_dict(new.state_dict())
    x = torch.randn(2, *SIZE).double()
    for one in (new, apart):
        one(x).square().mean().backward()
    assert relative_error(new.a.P.grad, apart.a.P.grad + apart.b.P.grad) < 1e-12


# What they cost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "gauss"])
def test_shared_parameters_are_counted_once(model: Any, version: str) -> None:
    plan = convswap.plan(model, "dcls", "!stem", share_positions="stage", example_inputs=SIZE, version=version)
    made, new = convswap.report(plan), convswap.apply(plan, model)
    before, after = made.total("before"), made.total("after")
    now = sum(parameter.numel() for parameter in new.parameters())
    assert made.parameters + after.parameters - before.parameters == now
    positions = 2 * 4 * 9 * (2 if version == "gauss" else 1)
    costs = {step.name: step.after.parameters for step in made.swaps}
    assert costs["a"] - costs["b"] == positions
    assert costs["d"] - costs["c"] + positions == 4  # d has a bias
    assert after.parameter_bytes - before.parameter_bytes == 8 * (now - made.parameters)
    assert convswap.report(new).total("after") == after
    assert {step.name: step.after.multiply_adds for step in made.swaps}["b"] is not None


CONVNEXT = {"kernel_count": 34, "dilated_kernel_size": 17, "share_positions": "stage"}


@pytest.mark.parametrize("source", ["timm:convnext_tiny", "torchvision:convnext_tiny"])
def test_convnext_becomes_the_published_model(source: str) -> None:
    """ConvNeXt-T-dcls: 28.6 M parameters, 5.0 G multiply-adds."""
    library, _, name = source.partition(":")
    with torch.device("meta"):
        if library == "timm":
            model = importlib.import_module("timm").create_model(name)
        else:
            model = importlib.import_module("torchvision").models.get_model(name, weights=None)
    large = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (7, 7)]
    assert len(large) == 18
    plan = convswap.plan(model, "dcls", large, **CONVNEXT)
    heads = [step.site.name for step in plan.swaps if step.group == step.site.name]
    assert [sum(step.group == head for step in plan.swaps) for head in heads] == [3, 3, 9, 3]
    made = convswap.report(plan)
    before, after = made.total("before"), made.total("after")
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    multiply_adds = counter.get_total_flops() // 2 + after.multiply_adds - before.multiply_adds  # type: ignore[operator]
    parameters = made.parameters + after.parameters - before.parameters
    assert round(parameters / 1e6, 1) == 28.6
    assert round(multiply_adds / 1e9, 1) == 5.0
    new = convswap.apply(plan, model)
    assert sum(parameter.numel() for parameter in new.parameters()) == parameters
    assert {step.fidelity for step in plan.swaps} == {"approximate"}


def test_converted_convnext_has_the_planned_parameters() -> None:
    model = importlib.import_module("timm").create_model("convnext_tiny")
    new = convswap.convert(model, "dcls", "*conv_dw", **CONVNEXT)
    assert sum(parameter.numel() for parameter in new.parameters()) == 28_587_688
    positions = {id(module.P) for module in new.modules() if isinstance(module, Dcls2d)}
    assert len(positions) == 4
