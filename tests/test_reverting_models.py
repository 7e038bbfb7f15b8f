"""Reverted models: files, recipes, further conversions, parts, guides from elsewhere, and graphs."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import convswap
from convswap.errors import ConvswapError
from convswap.generated_forward import further_inputs, guided_forward
from convswap.layers import CondConv2d, Dcls2d, HypernetConv2d
from convswap.recipe import Recipe, RecipeStep
from convswap.report import Report
from convswap.revert_words import revert_sentences

from .guided import Net, awake, images, net
from .models import TwoConvs, as_if_trained, relative_error

NET = "tests.models:TwoConvs"
X = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def plain() -> Any:
    torch.manual_seed(1)
    return as_if_trained(TwoConvs()).double().eval()


def converted(to: str, where: Any = "*", **options: Any) -> Any:
    if to == "dynamic":
        options = {"convert_first": True, **options}
    return convswap.convert(plain(), to, where, example_inputs=(3, 9, 9), **options)


def through_file(model: nn.Module, path: Path, fresh: nn.Module | None = None) -> Any:
    convswap.save(model, path, None if fresh is not None else NET, overwrite=True)
    loaded = convswap.load(path, model=fresh, trust_source=True)
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert convswap.report(loaded) == convswap.report(model)
    return loaded.eval()


# Files, recipes, reports ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["dynamic", "dcls", "guided_local", "partial"])
def test_save_load_and_apply(tmp_path: Path, to: str) -> None:
    model = converted(to)
    with torch.no_grad():
        model.conv2.bias.add_(1)
    made: Any = convswap.revert(model)
    loaded = through_file(made, tmp_path / "net.safetensors")
    assert type(loaded.conv2) is nn.Conv2d
    assert torch.equal(loaded(X), made(X))
    recipe = json.loads(json.dumps(convswap.report(made).recipe.to_dict()))
    applied: Any = convswap.apply(recipe, plain())
    assert type(applied.conv1) is type(applied.conv2) is nn.Conv2d
    assert relative_error(applied(X), plain()(X)) < 1e-10
    assert convswap.report(applied).recipe == convswap.report(made).recipe
    assert set(convswap.report(applied).reverted()) == {"conv1", "conv2"}


def test_what_is_reverted_needs_no_functions_of_the_users(tmp_path: Path) -> None:
    made = convswap.revert(converted("guided", hypernet=lambda channels, hidden: nn.Conv2d(channels, hidden, 1)))
    assert torch.equal(through_file(made, tmp_path / "net.safetensors", TwoConvs().double())(X), made(X))


def test_report_in_all_forms() -> None:
    made = convswap.report(convswap.revert(converted("dcls", version="gauss"), data=X))
    assert Report.from_dict(json.loads(made.to_json())) == made
    told = made.reverted()["conv2"]
    assert told.error is not None
    for shown in (str(made), made.to_markdown(), made.to_html(), made._repr_html_()):
        assert "2 of 2 convolutions converted (2 to dcls, 2 reverted)" in shown
        assert (
            "reverted to plain convolutions (approximate: they compute something else than the layers did): conv1"
            in shown
        )
        assert "lost in reverting conv1, conv2: the learned positions and widths of its elements" in shown
        assert f"approximate, {told.error.greatest:.1e}" in shown
        assert "part of a kernel that was lost: up to" in shown
    for step in made.swaps:
        assert (step.after.parameters, step.after.multiply_adds) == (step.before.parameters, step.before.multiply_adds)
    old = made.to_dict()
    del old["reversions"]
    for step in old["recipe"]["steps"]:
        del step["reverted"]
    assert Report.from_dict(old).reversions == ()


def test_diff_says_so(tmp_path: Path) -> None:
    model = converted("dynamic")
    for name, one in (("a", model), ("b", convswap.revert(model))):
        convswap.save(one, tmp_path / f"{name}.safetensors", NET)
    assert "dynamic, reverted" in str(convswap.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors"))
    assert not convswap.diff(plain(), convswap.revert(model)).layers or all(
        layer.shapes[0] == layer.shapes[1] for layer in convswap.diff(plain(), convswap.revert(model)).layers
    )


def test_a_loaded_layer_knows_the_padding_that_it_has_replaced(tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")).double()

    loaded = through_file(convswap.convert(fresh(), "partial"), tmp_path / "net.safetensors", fresh())
    assert convswap.revert(copy.deepcopy(loaded))[0].padding_mode == "reflect"  # type: ignore[index]


def test_converted_again_and_reverted_again(tmp_path: Path) -> None:
    first = "guided"
    made = convswap.revert(converted(first))
    again: Any = convswap.convert(made, "dcls", "conv2", verify=X)
    assert torch.equal(through_file(again, tmp_path / "net.safetensors")(X), again(X))
    report = convswap.report(again)
    assert [(step.name, step.target, step.reverted, step.stage) for step in report.recipe.steps] == [
        ("conv1", first, True, 0),
        ("conv2", first, True, 0),
        ("conv2", "dcls", False, 1),
    ]
    assert set(report.reverted()) == {"conv1"}
    assert next(step.note for step in report.swaps if step.name == "conv2") == (
        f"was converted to {first} and reverted before"
    )
    assert not any("conv2" in sentence for sentence in revert_sentences(report))
    back = convswap.revert(again)
    assert relative_error(through_file(back, tmp_path / "net.safetensors")(X), plain()(X)) < 1e-10
    assert [(s.name, s.reverted, s.stage) for s in convswap.report(back).recipe.steps][-1] == ("conv2", True, 1)


def test_two_reverts_and_a_freeze(tmp_path: Path) -> None:
    model = converted("dynamic")
    part: Any = convswap.revert(model, "conv1")
    assert not isinstance(part.conv2, nn.Conv2d)
    both = convswap.revert(part)
    assert [[layer.name for layer in told.layers] for told in convswap.report(both).reversions] == [
        ["conv1"],
        ["conv2"],
    ]
    frozen = convswap.freeze(part, X, mode="mean")
    assert set(convswap.report(frozen).plain()) == {"conv1", "conv2"}
    for made in (both, frozen):
        assert torch.equal(through_file(made, tmp_path / "net.safetensors")(X), made(X))
    again = convswap.convert(frozen, "dcls")
    notes = {step.name: step.note for step in convswap.report(again).swaps}
    assert notes == {
        "conv1": "was converted to dynamic and reverted before",
        "conv2": "was converted to dynamic and frozen before",
    }


def test_groups(tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        return nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))).double()

    model = convswap.convert(fresh(), "dcls", share_positions="group", kernel_count=5)
    made = convswap.revert(model, "1")
    again = convswap.convert(made, "dynamic", "1", convert_first=True)
    for one in (made, again):
        loaded = through_file(one, tmp_path / "net.safetensors", fresh())
        assert loaded[0].P is loaded[2].P
        assert torch.equal(loaded(X), one.eval()(X))


def test_layers_of_the_architecture_itself(tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        return nn.Sequential(Dcls2d(3, 4, 3, dtype=torch.float64), CondConv2d(4, 2, 3, dtype=torch.float64)).eval()

    model = fresh()
    made: Any = convswap.revert(model)
    assert type(made[0]) is type(made[1]) is nn.Conv2d
    assert made[0].kernel_size == (7, 7)  # which is what that layer shows
    assert torch.equal(made[1].weight, model[1].freeze().weight)  # type: ignore[index]
    assert torch.equal(through_file(made, tmp_path / "net.safetensors", fresh())(X), made(X))
    applied = convswap.apply(convswap.report(made).recipe, model)
    assert torch.equal(applied(X), made(X))
    again = convswap.convert(made, "dynamic", "1")
    assert torch.equal(through_file(again, tmp_path / "net.safetensors", fresh())(X), again(X))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = TwoConvs()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


def test_a_part_reverted_on_its_own(tmp_path: Path) -> None:
    model: Any = convswap.convert(as_if_trained(Outer()).double().eval(), "dcls")
    expected = model(X)
    model.inner = convswap.revert(model.inner)
    made = convswap.report(model)
    assert set(made.reverted()) == {"inner.conv1", "inner.conv2"}
    loaded = through_file(model, tmp_path / "net.safetensors", Outer())
    assert relative_error(loaded(X), expected) < 1e-12
    again = convswap.convert(model, "dynamic", "inner.conv2").eval()
    assert torch.equal(through_file(again, tmp_path / "net.safetensors", Outer())(X), again(X))
    again.inner = convswap.convert(convswap.revert(again.inner), "condconv", "conv2").eval()  # type: ignore[assignment,arg-type]
    assert next(step.note for step in convswap.report(again).swaps if step.name == "inner.conv2") == (
        "was converted to dynamic and reverted before"
    )
    assert torch.equal(through_file(again, tmp_path / "net.safetensors", Outer())(X), again(X))


def changed_file(path: Path, change: Any) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        info = json.loads(file.metadata()["convswap"])
    change(info["report"]["recipe"]["steps"])
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"format": "pt", "convswap": json.dumps(info)})


def test_files_whose_recipe_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    convswap.save(convswap.revert(converted("dcls")), path, NET)
    changed_file(path, lambda steps: steps[0].update(frozen=True))
    with pytest.raises(ConvswapError, match="a step of the recipe must have a name, a target"):
        convswap.load(path, trust_source=True)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (RecipeStep("conv9", None, {}, reverted=True), "the recipe reverts 'conv9', which is not there"),
        (
            RecipeStep("norm", None, {}, reverted=True),
            "the recipe reverts 'norm', which is a BatchNorm2d: a BatchNorm2d",
        ),
    ],
)
def test_recipes_that_cannot_be(step: RecipeStep, message: str) -> None:
    with pytest.raises(ConvswapError, match=message):
        convswap.apply(Recipe((step,)), TwoConvs())


# Guides from elsewhere --------------------------------------------------------------------------------------------


def guided(where: Any, guide: str, **options: Any) -> Any:
    return awake(convswap.convert(net(), "guided", where, guide=guide, example_inputs=images()[:1], **options))


def unguided(model: nn.Module, *names: str) -> Any:
    """``model`` with layers that do not heed their guide."""
    made = copy.deepcopy(model)
    for name in names:
        layer: Any = made.get_submodule(name)
        nn.init.zeros_(layer.hypernet.expand.weight)
    return made


def test_the_last_guided_layer_gives_the_class_back(tmp_path: Path) -> None:
    model = guided("second.conv2", "first")
    made = convswap.revert(model)
    assert type(made) is Net
    assert type(model) is not Net
    assert isinstance(model.second.conv2, HypernetConv2d)
    expected = unguided(model, "second.conv2")
    for mode in (False, True):
        torch.testing.assert_close(made.train(mode)(images()), expected.train(mode)(images()), **EXACT)
    assert made.eval().forward_features(images()).shape == (2, 6, 6, 6)
    assert not any("convswap" in name for name in vars(made) if name != "_convswap_report")
    fresh = convswap.revert(convswap.convert(net(), "guided", "second.*", guide="first", guide_channels=4))
    torch.testing.assert_close(fresh(images()), net()(images()), **EXACT)
    loaded = through_file(made, tmp_path / "net.safetensors", Net().double())
    assert type(loaded) is Net
    applied = convswap.apply(convswap.report(made).recipe, net())
    assert type(applied) is Net
    torch.testing.assert_close(applied(images()), net()(images()), **EXACT)


def test_some_guided_layers_of_several(tmp_path: Path) -> None:
    rules = [
        convswap.Swap("second.conv1", "guided", guide="input:depth", guide_channels=2),
        convswap.Swap("second.conv2", "guided", guide="first"),
        convswap.Swap("down", "guided", guide="input:map", guide_channels=1),
    ]
    model: Any = awake(convswap.convert(net(), rules, example_inputs=images()[:1]))
    depth, other = images(channels=2, seed=5), images(channels=1, seed=6)
    part: Any = convswap.revert(model, ["second.conv2", "down"])
    assert list(inspect.signature(part.forward).parameters) == ["x", "scale", "flip", "depth"]
    assert isinstance(part, Net)
    assert part.second.conv1.guide == "input:depth"
    expected = unguided(model, "second.conv2", "down")
    for mode in (False, True):
        torch.testing.assert_close(
            part.train(mode)(images(), depth=depth), expected.train(mode)(images(), map=other, depth=depth), **EXACT
        )
    part.eval()
    for one in (
        copy.deepcopy(part),
        pickle.loads(pickle.dumps(part)),
        through_file(part, tmp_path / "net.safetensors", Net().double()),
    ):
        torch.testing.assert_close(one(images(), depth=depth), part(images(), depth=depth), **EXACT)
    applied: Any = convswap.apply(convswap.report(part).recipe, net())
    torch.testing.assert_close(applied(images(), depth=depth), net()(images()), **EXACT)
    whole = convswap.revert(part)
    assert type(whole) is Net
    again: Any = convswap.convert(whole, "guided", "down", guide="stem", guide_channels=4)
    torch.testing.assert_close(again(images()), whole(images()), **EXACT)


def test_distances_with_further_inputs() -> None:
    model = guided("down", "input:map", guide_channels=1)
    made = convswap.revert(model, data=[{"x": images(), "map": images(channels=1)}])
    (told,) = convswap.report(made).reversions
    assert told.output_error is not None
    difference = made(images()) - model(images(), map=images(channels=1))
    assert told.output_error.greatest == pytest.approx(
        (difference.abs().max() / model(images(), map=images(channels=1)).abs().max()).item()
    )


def test_a_part_with_guides_of_its_own() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = guided(["second.conv2", "down"], "first")

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.part(x)
            return y

    model = Whole().double().eval()
    made: Any = convswap.revert(model, "part.down")
    torch.testing.assert_close(made(images()), unguided(model, "part.down")(images()), **EXACT)
    assert guided_forward(made.part) is not None
    assert made.part.second.conv2.guide == "first"
    last: Any = convswap.revert(made)
    assert type(last.part) is Net
    assert type(last) is Whole


class Constant(nn.Module):
    """Its code holds a tensor, which a graph must hold on the module."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x)
        z: Tensor = self.two(y * torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype)[:, None, None])
        return self.three(z)  # type: ignore[no-any-return]


def test_nothing_of_a_graph_is_left() -> None:
    model = Constant().double()
    names = {*vars(model), "_convswap_report"}
    new = awake(convswap.convert(model, "guided", ["two", "three"], guide="one", guide_channels=3))
    part = convswap.revert(new, "two")
    torch.testing.assert_close(part(images()), unguided(new, "two")(images()), **EXACT)
    assert set(vars(part)) == set(vars(new))
    assert set(vars(convswap.revert(part))) == names


@pytest.mark.parametrize("as_graph", [True, False])
def test_graphs(as_graph: bool) -> None:
    rules = [
        convswap.Swap("second.conv1", "guided", guide="input:depth", guide_channels=2),
        convswap.Swap("second.conv2", "guided", guide="first"),
        convswap.Swap("first.conv1", "guided"),
    ]
    model: Any = awake(convswap.convert(net(), rules, example_inputs=images()[:1], as_graph=as_graph))
    depth = images(channels=2, seed=5)
    part: Any = convswap.revert(model, ["second.conv2", "first.conv1"])
    assert type(part.second.conv2) is nn.Conv2d
    expected = unguided(model, "second.conv2", "first.conv1")
    for mode in (False, True):
        given = {"depth": depth}
        torch.testing.assert_close(
            part.train(mode)(images(), **given), expected.train(mode)(images(), **given), **EXACT
        )
    whole: Any = convswap.revert(part)
    assert further_inputs(part) == ("depth",)
    assert further_inputs(whole) == ()
    assert isinstance(model.second.conv1, HypernetConv2d)
    expected = unguided(expected, "second.conv1")
    for mode in (False, True):
        torch.testing.assert_close(whole.train(mode)(images()), expected.train(mode)(images(), depth=depth), **EXACT)
    if as_graph:
        whole.graph.lint()
        assert not any("hypernet" in str(node.target) for node in whole.graph.nodes)
    again: Any = copy.deepcopy(whole.eval())
    torch.testing.assert_close(again(images()), whole(images()), **EXACT)
