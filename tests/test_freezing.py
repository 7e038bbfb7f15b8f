"""Freezing: what becomes a plain convolution, how far off it is, and that files and conversions go on with it."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import convswap
from convswap.errors import ConvswapError, FileError, ModelError, NothingToSwapError, OptionError, PatternError
from convswap.freeze_words import freeze_sentences
from convswap.layers import CondConv2d, Dcls2d, DynamicConv2d, GuidedConv2d
from convswap.layers.attended import AttendedConv
from convswap.recipe import Recipe, RecipeStep
from convswap.report import Report

from .models import TwoConvs, as_if_trained, library_model, relative_error

NET = "tests.models:TwoConvs"
X = torch.randn(6, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
ATTENDED = ("dynamic", "condconv", "odconv")


def trained(model: nn.Module, scale: float = 0.5) -> Any:
    with torch.no_grad():
        for parameter in convswap.new_parameters(model).values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return model.eval()


def converted(to: str, **options: Any) -> Any:
    if to == "dynamic":
        options = {"convert_first": True, **options}
    return trained(convswap.convert(as_if_trained(TwoConvs()).double(), to, **options))


def through_file(model: nn.Module, path: Path, fresh: nn.Module | None = None) -> Any:
    convswap.save(model, path, None if fresh is not None else NET, overwrite=True)
    loaded = convswap.load(path, model=fresh, trust_source=True)
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name
    assert convswap.report(loaded) == convswap.report(model)
    return loaded.eval()


# What is computed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [None, X])
def test_dcls_is_exact(data: Tensor | None) -> None:
    model = converted("dcls")
    frozen: Any = convswap.freeze(model, data)
    assert type(frozen.conv1) is type(frozen.conv2) is nn.Conv2d
    assert isinstance(model.conv1, Dcls2d)
    assert relative_error(frozen(X), model(X)) < 1e-12
    (told,) = convswap.report(frozen).freezings
    assert [(layer.name, layer.kind, layer.fidelity) for layer in told.layers] == [
        ("conv1", "Dcls2d", "exact"),
        ("conv2", "Dcls2d", "exact"),
    ]
    assert all((layer.error is None) == (data is None) for layer in told.layers)
    assert (told.samples, told.output_error is None) == ((0, True) if data is None else (6, False))


@pytest.mark.parametrize("to", ATTENDED)
def test_mean_attention(to: str) -> None:
    model = converted(to)
    inputs = {name: [] for name in ("conv1", "conv2")}
    for name, seen in inputs.items():
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
    with torch.no_grad():
        expected = model(X)
    for name in inputs:
        model.get_submodule(name)._forward_pre_hooks.clear()
    frozen: Any = convswap.freeze(model, [X[:2], (X[2:], "labels")], mode="mean")
    (told,) = convswap.report(frozen).freezings
    for layer in told.layers:
        (x,) = inputs[layer.name]
        old: Any = model.get_submodule(layer.name)
        with torch.no_grad():
            means = {what: value.mean(0) for what, value in old.attentions(x).items()}
            conv, wanted = old.freeze(means), old(x)
            made = frozen.get_submodule(layer.name)
            assert type(made) is nn.Conv2d
            assert torch.allclose(made.weight, conv.weight, rtol=1e-12, atol=1e-14)
            difference = made(x) - wanted
        assert layer.fidelity == "approximate"
        assert layer.error is not None
        assert layer.error.greatest == pytest.approx((difference.abs().max() / wanted.abs().max()).item())
        assert layer.error.mean == pytest.approx((difference.norm() / wanted.norm()).item())
        assert layer.error.mean > 1e-6
    with torch.no_grad():
        difference = frozen(X) - expected
    assert told.output_error is not None
    assert told.output_error.greatest == pytest.approx((difference.abs().max() / expected.abs().max()).item())
    assert told.output_error.mean == pytest.approx((difference.norm() / expected.norm()).item())


@pytest.mark.parametrize("to", ATTENDED)
def test_attention_that_does_not_vary_loses_nothing(to: str) -> None:
    options = {"convert_first": True} if to == "dynamic" else {}
    model = convswap.convert(as_if_trained(TwoConvs()).double(), to, **options).eval()  # as it starts: uniform
    frozen = convswap.freeze(model, X, mode="mean")
    assert relative_error(frozen(X), model(X)) < 1e-12
    (told,) = convswap.report(frozen).freezings
    assert all(layer.error is not None and layer.error.greatest < 1e-12 for layer in told.layers)


@pytest.mark.parametrize("form", ["iterator", "loader", "dict"])
def test_data_is_gone_through_twice(form: str) -> None:
    model = converted("dynamic")
    data: Any = {
        "iterator": (batch for batch in X.split(2)),
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=2, shuffle=True),
        "dict": {"input": X},
    }[form]
    expected, found = (convswap.freeze(model, given, mode="mean") for given in (X, data))
    (one,), (other,) = (convswap.report(made).freezings for made in (expected, found))
    assert other.samples == 6
    assert one.output_error is not None
    assert other.output_error is not None
    assert other.output_error.mean == pytest.approx(one.output_error.mean)
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(found.state_dict()[name], tensor, rtol=1e-12)


def test_some_layers_only() -> None:
    model = converted("dynamic")
    frozen: Any = convswap.freeze(model, X, mode="mean", where="conv2")
    assert isinstance(frozen.conv1, DynamicConv2d)
    assert type(frozen.conv2) is nn.Conv2d
    both: Any = convswap.freeze(frozen, X, mode="mean", where=lambda site: site.module.kernels == 4)
    assert type(both.conv1) is nn.Conv2d
    assert [[layer.name for layer in told.layers] for told in convswap.report(both).freezings] == [["conv2"], ["conv1"]]
    with pytest.raises(PatternError, match="'conv3' matches none of the 2 layers"):
        convswap.freeze(model, X, mode="mean", where="conv3")


# What cannot be frozen --------------------------------------------------------------------------------------------


def test_kept_with_reasons() -> None:
    class Net(nn.Sequential):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = Dcls2d(3, 3, 3, padding=1), DynamicConv2d(3, 3, 3), Dcls2d(3, 3, 3)
            self.d = GuidedConv2d(3, 3, 3).with_hypernet(guide_channels=3)

    model = Net()
    model.c.register_forward_hook(lambda *_: None)
    frozen: Any = convswap.freeze(model)
    assert type(frozen.a) is nn.Conv2d
    (told,) = convswap.report(frozen).freezings
    reasons = {layer.name: layer.reason for layer in told.kept}
    assert set(reasons) == {"b", "c", "d"}
    assert "the mode 'mean' freezes it" in reasons["b"]
    assert "it has hooks that would be lost (forward hook)" in reasons["c"]
    assert "its kernels are generated from its input" in reasons["d"]
    for shown in (str(convswap.report(frozen)), convswap.report(frozen).to_html()):
        assert "not frozen d: its kernels are generated from its input" in shown
    with pytest.raises(
        NothingToSwapError, match="nothing to freeze: Net has no layer that can be\n  b: its kernel dep"
    ):
        convswap.freeze(model, where=["b", "d"])


class Detour(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.here, self.away = DynamicConv2d(3, 3, 3), DynamicConv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.away(x) if self.training else self.here(x)


def test_layers_that_data_does_not_reach() -> None:
    frozen: Any = convswap.freeze(Detour(), X.float(), mode="mean")
    assert type(frozen.here) is nn.Conv2d
    assert isinstance(frozen.away, DynamicConv2d)
    (told,) = convswap.report(frozen).freezings
    assert [(kept.name, kept.reason) for kept in told.kept] == [
        ("away", "the data did not reach it, so its mean attention is unknown")
    ]


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (TwoConvs, {}, NothingToSwapError, "nothing to freeze: TwoConvs has no layer of convswap's"),
        (
            lambda: converted("dynamic"),
            {"mode": "mean"},
            ConvswapError,
            "the mode 'mean' takes the mean attention over dat",
        ),
        (lambda: converted("dynamic"), {"mode": "Mean"}, OptionError, "mode must be 'exact' or 'mean', got 'Mean'"),
        (lambda: converted("dynamic"), {"mode": "mean", "data": []}, ConvswapError, "the data has no samples"),
        (lambda: converted("dynamic"), {"mode": "mean", "data": X[:, :2]}, ConvswapError, "does not run on batch 0"),
        (lambda: converted("dynamic"), {"mode": "mean", "data": X * torch.nan}, ConvswapError, "is not finite"),
        (lambda: nn.DataParallel(converted("dcls")), {}, ModelError, "wrapped in DataParallel"),
    ],
)
def test_errors(model: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convswap.freeze(model(), **options)


# What is carried --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["dcls", "dynamic", "padding_free"])
def test_modes_gradients_and_precision(to: str) -> None:
    model = converted(to).to(torch.float32).train()
    model.conv1.eval()
    model.conv2.weight.requires_grad_(False)
    state, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    frozen: Any = convswap.freeze(model, X, mode="mean")
    assert frozen.training
    assert frozen.conv2.training
    assert not frozen.conv1.training
    assert not frozen.conv2.weight.requires_grad
    assert frozen.conv2.bias.requires_grad
    assert frozen.conv2.weight.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in (*model.modules(), *frozen.modules()))
    frozen(X.float()).square().sum().backward()
    assert frozen.conv1.weight.grad.any()
    assert model.conv1.weight.grad is None


@pytest.mark.parametrize("to", ["dcls", "dynamic"])
def test_memory_format(to: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)).to(
        memory_format=torch.channels_last
    )
    model = convswap.convert(net, to, "1")
    frozen: Any = convswap.freeze(model, torch.randn(2, 3, 9, 9), mode="mean")
    assert all(layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in frozen)
    plain = convswap.convert(net.to(memory_format=torch.contiguous_format), to, "1")
    contiguous: Any = convswap.freeze(plain, torch.randn(2, 3, 9, 9), mode="mean")
    assert contiguous[1].weight.is_contiguous()


class Shared(nn.Module):
    """One layer at two places, and two with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = self.again = nn.Conv2d(3, 3, 3, padding=1)
        self.b, self.c = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.c.weight = self.b.weight
        self.a.note = "noted"

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.again(self.a(x))))


@pytest.mark.parametrize("to", ["dcls", "condconv", "padding_free"])
def test_shared_layers_and_notes(to: str, tmp_path: Path) -> None:
    model = convswap.convert(Shared(), to)
    frozen: Any = convswap.freeze(model, X.float(), mode="mean")
    assert frozen.a is frozen.again
    assert frozen.a.note == "noted"
    assert frozen.c.weight is frozen.b.weight
    loaded = through_file(frozen, tmp_path / "a.safetensors", fresh=Shared())
    assert loaded.a is loaded.again
    assert loaded.c.weight is loaded.b.weight
    assert loaded.a.note == "noted"
    with torch.no_grad():
        for layer in (model.b, model.c) if to == "dcls" else ():
            layer.P.add_(torch.randn(layer.P.shape))
    if to == "dcls":
        apart: Any = convswap.freeze(model)
        assert not torch.equal(apart.c.weight, apart.b.weight)
        assert through_file(apart, tmp_path / "b.safetensors", fresh=Shared()).c.weight is not apart.b.weight


@pytest.mark.parametrize("to", ["dcls", "condconv", "padding_free"])
def test_one_of_two_layers_with_one_weight(to: str, tmp_path: Path) -> None:
    model = convswap.convert(Shared(), to).eval()
    frozen: Any = convswap.freeze(model, X.float(), mode="mean", where="b")
    assert frozen.b.weight is not frozen.c.weight
    assert frozen.b.weight.shape == (3, 3, *((7, 7) if to == "dcls" else (3, 3)))
    loaded = through_file(frozen, tmp_path / "net.safetensors", fresh=Shared())
    assert torch.equal(loaded(X.float()), frozen(X.float()))


class Noisy(nn.Module):
    """Draws random numbers, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Dcls2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + torch.randn(x.shape))


def test_both_models_see_the_same_random_numbers() -> None:
    (told,) = convswap.report(convswap.freeze(Noisy(), [X.float(), X.float()])).freezings
    assert told.output_error is not None
    assert told.output_error.greatest < 1e-5


def test_meta_device_copies_and_pickles() -> None:
    frozen: Any = convswap.freeze(converted("dcls").to("meta"))
    assert frozen.conv1.weight.is_meta
    frozen = convswap.freeze(converted("dcls"))
    for other in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert torch.equal(other(X), frozen(X))
        assert convswap.report(other) == convswap.report(frozen)


def test_a_single_layer_and_graphs() -> None:
    layer = convswap.convert(nn.Conv2d(3, 4, 3).double(), "dcls")
    assert type(convswap.freeze(layer, X)) is nn.Conv2d
    graph = convswap.convert(as_if_trained(TwoConvs()).double().eval(), "dcls", as_graph=True)
    frozen: Any = convswap.freeze(graph, X)
    assert type(frozen.conv1) is nn.Conv2d
    assert relative_error(frozen(X), graph(X)) < 1e-12


# What reports say -------------------------------------------------------------------------------------------------


def test_report() -> None:
    net = as_if_trained(TwoConvs()).double()
    model = trained(convswap.convert(net, "dcls", "conv1", example_inputs=(3, 9, 9)))
    model = trained(convswap.convert(model, "dynamic", "conv2", example_inputs=(3, 9, 9)))
    frozen = convswap.freeze(model, X, mode="mean")
    made = convswap.report(frozen)
    assert Report.from_dict(json.loads(made.to_json())) == made
    told = {layer.name: layer for layer in made.freezings[0].layers}
    assert made.frozen() == told
    error = told["conv2"].error
    assert error is not None
    for shown in (str(made), made.to_markdown(), made.to_html(), made._repr_html_()):
        assert "2 of 2 convolutions converted (1 to dcls, 1 to dynamic, 2 frozen)" in shown
        assert f"approximate, {error.greatest:.1e}" in shown
        assert "frozen to plain convolutions (exact): conv1" in shown
        assert "frozen layers compared over 6 samples" in shown
    after = {step.name: step.after for step in made.swaps}
    assert after["conv1"].parameters == frozen.get_parameter("conv1.weight").numel()
    assert after["conv1"].multiply_adds == 8 * 3 * 49 * 81
    assert after["conv2"].multiply_adds == 8 * 8 * 9 * 25
    total = made.total("after").parameters - made.total("before").parameters
    assert made.parameters + total == sum(p.numel() for p in frozen.parameters())
    picture = next(step.picture for step in made.swaps if step.name == "conv1")
    assert picture is not None
    assert picture.moved  # as it was when it was frozen


def test_verify_looks_at_frozen_layers() -> None:
    net = as_if_trained(TwoConvs()).double().eval()
    frozen = convswap.freeze(convswap.convert(net, "dcls"))
    found = convswap.verify(net, frozen, X)
    assert [check.name for check in found.layers] == ["conv1", "conv2"]
    assert found.passed


def test_diff_says_so(tmp_path: Path) -> None:
    model = converted("dcls")
    for name, one in (("a", model), ("b", convswap.freeze(model))):
        convswap.save(one, tmp_path / f"{name}.safetensors", NET)
    shown = str(convswap.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors"))
    assert "dcls, frozen" in shown


def test_sentences_are_of_what_still_is_so() -> None:
    model = converted("dynamic")
    for _ in range(3):
        model = trained(convswap.convert(convswap.freeze(model, X, mode="mean"), "dynamic", "conv2"))
    made = convswap.report(model)
    assert len(made.freezings) == 3
    assert freeze_sentences(made)[0].endswith(": conv1")
    assert "conv2" not in " ".join(freeze_sentences(made))
    assert not any("at the output" in sentence for sentence in freeze_sentences(made))
    model = trained(convswap.convert(converted("dcls", where="conv1"), "dynamic", "conv2"))
    first = convswap.freeze(model, X)
    assert "not frozen conv2" in freeze_sentences(convswap.report(first))[-1]
    assert freeze_sentences(convswap.report(first))
    then = convswap.freeze(first, X, mode="mean")
    assert not any("not frozen" in sentence for sentence in freeze_sentences(convswap.report(then)))
    assert sum("at the output" in sentence for sentence in freeze_sentences(convswap.report(then))) == 2


class Growing(nn.Module):
    """Gives all values that are above zero: how many there are depends on rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = DynamicConv2d(3, 3, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y[y > 0]


def test_errors_that_are_no_numbers_in_json() -> None:
    made = convswap.report(convswap.freeze(trained(Growing()), X, mode="mean"))
    (told,) = made.freezings
    assert told.output_error is not None
    assert told.output_error.greatest == told.output_error.mean == math.inf
    data = json.loads(made.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert data["freezings"][0]["output_error"] == {"greatest": None, "mean": None, "compared": True}
    assert Report.from_dict(data) == made


# Files and what follows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["dcls", *ATTENDED])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_save_and_load(tmp_path: Path, to: str, dtype: torch.dtype) -> None:
    frozen = convswap.freeze(converted(to).to(dtype), X, mode="mean")
    loaded = through_file(frozen, tmp_path / "net.safetensors")
    assert type(loaded.conv2) is nn.Conv2d
    assert torch.equal(loaded(X.to(dtype)), frozen(X.to(dtype)))
    applied = convswap.apply(convswap.report(frozen).recipe, as_if_trained(TwoConvs()).to(dtype))
    applied.load_state_dict(frozen.state_dict())
    assert torch.equal(applied.eval()(X.to(dtype)), frozen(X.to(dtype)))


def test_applied_recipes_keep_the_function() -> None:
    recipe = convswap.report(convswap.freeze(converted("dynamic"), X, mode="mean")).recipe
    net = as_if_trained(TwoConvs()).double().eval()
    applied: Any = convswap.apply(json.loads(json.dumps(recipe.to_dict())), net)
    assert type(applied.conv2) is nn.Conv2d
    assert relative_error(applied(X), net(X)) < 1e-12
    assert convswap.report(applied).recipe == recipe
    assert "approximate, at neutral attention, without data): conv1, conv2" in str(convswap.report(applied))


@pytest.mark.parametrize(
    "attention", [lambda channels, hidden: nn.Conv2d(channels, hidden, 1), "tests.test_freezing:body"]
)
def test_what_is_frozen_needs_no_functions_of_the_users(attention: Any, tmp_path: Path) -> None:
    frozen = convswap.freeze(converted("dynamic", attention=attention), X, mode="mean")
    convswap.save(frozen, tmp_path / "net.safetensors")
    loaded: Any = convswap.load(tmp_path / "net.safetensors", model=TwoConvs())
    assert torch.equal(loaded.eval()(X), frozen(X))
    assert type(convswap.apply(convswap.report(frozen).recipe, TwoConvs()).conv2) is nn.Conv2d


def body(channels: int, hidden: int) -> nn.Module:
    return nn.Conv2d(channels, hidden, 1)


@pytest.mark.parametrize("first", ["dcls", "dynamic"])
def test_converted_again(tmp_path: Path, first: str) -> None:
    """Convert, freeze, convert, freeze, convert: a name has three steps then."""
    model = converted(first)
    for to in ("dcls", "dynamic"):
        frozen = convswap.freeze(model, X, mode="mean")
        model = trained(convswap.convert(frozen, to, "conv2", verify=X))
        assert isinstance(model.conv2, Dcls2d | DynamicConv2d)
        loaded = through_file(model, tmp_path / "net.safetensors")
        assert torch.equal(loaded(X), model(X))
    made = convswap.report(model)
    assert [(step.name, step.target, step.frozen, step.stage) for step in made.recipe.steps] == [
        ("conv1", first, True, 0),
        ("conv2", first, True, 0),
        ("conv2", "dcls", True, 1),
        ("conv2", "dynamic", False, 2),
    ]
    assert sorted(step.name for step in made.steps) == ["conv1", "conv2"]
    assert set(made.frozen()) == {"conv1"}
    note = next(step.note for step in made.swaps if step.name == "conv2")
    assert note == "was converted to dcls and frozen before"
    total = made.total("after").parameters - made.total("before").parameters
    assert made.parameters + total == sum(p.numel() for p in model.parameters())
    in_place = convswap.convert_(copy.deepcopy(convswap.freeze(model, X, mode="mean")), "dcls", "conv1")
    assert torch.equal(through_file(in_place, tmp_path / "net.safetensors")(X), in_place(X))


def test_models_that_say_what_they_are(tmp_path: Path) -> None:
    model = convswap.convert(library_model("timm:test_byobnet"), "dcls", "stages.0.*", dilated_kernel_size=5)
    frozen = convswap.freeze(model)
    for name, made in (("a", frozen), ("b", convswap.convert(frozen, "dynamic", "stages.0.*"))):
        convswap.save(made, tmp_path / name)
        loaded = convswap.load(tmp_path / name)
        assert convswap.report(loaded) == convswap.report(made)
        assert all(torch.equal(one, other) for one, other in zip(loaded.parameters(), made.parameters(), strict=True))


def test_groups_before_and_after(tmp_path: Path) -> None:
    net = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))).double()
    model = trained(convswap.convert(net, "dcls", ["0", "1"], share_positions="group"))
    assert model[0].P is model[1].P
    frozen = convswap.freeze(model, where="0")
    again = trained(convswap.convert(frozen, "dcls", ["0", "2"], share_positions="group", dilated_kernel_size=9))
    alone = convswap.convert(convswap.freeze(model), "dynamic", "1").eval()  # of no group any more
    assert torch.equal(through_file(alone, tmp_path / "net.safetensors", fresh=copy.deepcopy(net))(X), alone(X))
    loaded = through_file(again, tmp_path / "net.safetensors", fresh=copy.deepcopy(net))
    assert torch.equal(loaded(X), again(X))
    assert [(step.name, step.group) for step in convswap.report(loaded).recipe.steps] == [
        (step.name, step.group) for step in convswap.report(again).recipe.steps
    ]


def test_layers_of_the_architecture_itself(tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        return nn.Sequential(Dcls2d(3, 4, 3, dtype=torch.float64), nn.ReLU(), CondConv2d(4, 2, 3, dtype=torch.float64))

    model = fresh()
    frozen: Any = convswap.freeze(model, X, mode="mean")
    loaded = through_file(frozen, tmp_path / "net.safetensors", fresh=fresh())
    assert type(loaded[0]) is type(loaded[2]) is nn.Conv2d
    assert torch.equal(loaded(X), frozen(X))
    recipe = convswap.report(frozen).recipe
    with pytest.raises(
        ConvswapError, match="the recipe freezes 2 of the architecture's own at a mean attention, which"
    ):
        convswap.apply(recipe, fresh())
    exact = convswap.apply(convswap.report(convswap.freeze(model)).recipe, model)
    assert relative_error(exact(X), model(X)) < 1e-12
    again = convswap.convert(frozen, "dynamic", "2")
    assert torch.equal(through_file(again, tmp_path / "net.safetensors", fresh=fresh())(X), again.eval()(X))


def test_a_part_frozen_on_its_own(tmp_path: Path) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = TwoConvs()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model: Any = trained(convswap.convert(as_if_trained(Outer()).double(), "dcls"))
    expected = model(X)
    model.inner = convswap.freeze(model.inner)
    made = convswap.report(model)
    assert set(made.frozen()) == {"inner.conv1", "inner.conv2"}
    loaded = through_file(model, tmp_path / "net.safetensors", fresh=Outer())
    assert relative_error(loaded(X), expected) < 1e-12
    again = convswap.convert(model, "dynamic", "inner.conv2").eval()
    assert torch.equal(through_file(again, tmp_path / "net.safetensors", fresh=Outer())(X), again(X))
    of_part = convswap.convert(Outer().double(), "dynamic", "inner.conv2")
    of_part.inner = convswap.freeze(convswap.convert(TwoConvs().double(), "dcls"))  # in the place of what was converted
    assert set(convswap.report(of_part).frozen()) >= {"inner.conv1"}


def test_files_without_a_word_of_freezing(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    model = converted("dynamic")
    convswap.save(model, path, NET)
    with safetensors.safe_open(path, framework="pt") as file:
        info = json.loads(file.metadata()["convswap"])
    for step in info["report"]["recipe"]["steps"]:
        del step["frozen"], step["stage"]
    del info["report"]["freezings"], info["report"]["attention"]
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"format": "pt", "convswap": json.dumps(info)})
    loaded = convswap.load(path, trust_source=True).eval()
    assert torch.equal(loaded(X), model(X))


def test_a_file_that_does_not_fit_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    again = convswap.convert(convswap.freeze(converted("dcls")), "dynamic", "conv2")
    convswap.save(again, path)
    other = TwoConvs()
    other.head = nn.Linear(8, 7)
    convs = other.conv1, other.conv2
    with pytest.raises(FileError, match="does not fit the architecture TwoConvs"):
        convswap.load(path, model=other)
    assert (other.conv1, other.conv2) == convs
    assert all(one is two for one, two in zip((other.conv1, other.conv2), convs, strict=True))


def test_files_that_ask_for_more_than_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    convswap.save(convswap.freeze(converted("dcls")), path, NET)
    with safetensors.safe_open(path, framework="pt") as file:
        info = json.loads(file.metadata()["convswap"])
    info["report"]["recipe"]["steps"][0]["options"]["dilated_kernel_size"] = [7001, 7001]
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"format": "pt", "convswap": json.dumps(info)})
    wanted = 8 * 3 * 7001**2 + 8 * 8 * 49 + 8
    with pytest.raises(FileError, match=f"there its recipe asks for {wanted} parameters of new layers alone"):
        convswap.load(path, trust_source=True)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([RecipeStep("conv2", "guided", {}, frozen=True)], "the recipe freezes 'conv2', which is a HypernetConv2d"),
        ([RecipeStep("conv9", None, {}, frozen=True)], "the recipe freezes 'conv9', which is not there"),
        ([RecipeStep("conv2", None, {}, frozen=True)], "the recipe freezes 'conv2', which is a Conv2d"),
        (
            [RecipeStep("conv2", "dcls", {}), RecipeStep("conv2", "dcls", {}, stage=1)],
            "the recipe converts 'conv2', and TwoConvs has no convolution of that name",
        ),
    ],
)
def test_recipes_that_cannot_be(steps: list[RecipeStep], message: str) -> None:
    with pytest.raises(ConvswapError, match=message):
        convswap.apply(Recipe(tuple(steps)), TwoConvs())


def test_frozen_layers_are_no_layers_any_more() -> None:
    frozen = convswap.freeze(converted("odconv"), X, mode="mean")
    assert not any(isinstance(module, AttendedConv) for module in frozen.modules())
    assert convswap.new_parameters(frozen) == {}
    with pytest.raises(ConvswapError, match="no layer that attends"):
        convswap.attention_statistics(frozen, X)
