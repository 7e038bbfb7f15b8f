"""Models whose kernels are attended to: what each convolution gets, what it costs, and files of it."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convswap
from convswap.cli import main
from convswap.errors import ConvswapError, OptionError
from convswap.layers import AttendedConv, CondConv2d, DynamicConv2d, ODConv2d

from .models import as_if_trained, relative_error

SIZE = (3, 16, 16)
LAYERS = {"dynamic": DynamicConv2d, "condconv": CondConv2d, "odconv": ODConv2d}
every_target = pytest.mark.parametrize("to", LAYERS)


class Net(nn.Module):
    """Convolutions of several kinds, executed in another order than they are listed in."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(12, 6, 1)
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.body = nn.Sequential()
        self.body.dense = nn.Conv2d(8, 12, 3, padding=2, dilation=2)
        self.body.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.body.grouped = nn.Conv2d(12, 12, (1, 3), padding="same", groups=3, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.body(torch.relu(self.stem(x)))))


ORDER = ["stem", "body.dense", "body.depthwise", "body.grouped", "last"]


def net() -> Any:
    torch.manual_seed(0)
    return as_if_trained(Net()).double().eval()


def batch() -> Tensor:
    return torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def kernels_of(model: nn.Module) -> dict[str, int]:
    return {name: module.kernels for name, module in model.named_modules() if isinstance(module, AttendedConv)}


def planned_kernels(to: str, **options: Any) -> dict[str, int]:
    return {step.site.name: step.options.kernels for step in convswap.plan(net(), to, **options).swaps}


def by_means(channels: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, hidden), nn.Tanh())


def too_wide(channels: int, hidden: int) -> nn.Module:
    return nn.Conv2d(channels, hidden + 1, 3)


def fails(channels: int, hidden: int) -> nn.Module:
    raise RuntimeError("no net today")


# Conversion --------------------------------------------------------------------------------------------------------


@every_target
def test_models_compute_what_they_did_and_then_learn(to: str) -> None:
    model, x = net(), batch()
    new = convswap.convert(model, to, example_inputs=SIZE)
    assert set(kernels_of(new)) == set(ORDER) - (set() if to == "condconv" else {"stem"})
    assert all(type(module) is LAYERS[to] for module in new.modules() if isinstance(module, AttendedConv))
    assert relative_error(new(x), model(x)) < 1e-12
    start = {name: value.detach().clone() for name, value in convswap.new_parameters(new).items()}
    assert start
    assert all(".attention." in name for name in start)
    optimiser = torch.optim.SGD(new.train().parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        new(x).square().mean().backward()
        optimiser.step()
    for name, value in convswap.new_parameters(new).items():
        assert (value - start[name]).abs().max() > 1e-12, name


@every_target
def test_first_convolution_on_request(to: str) -> None:
    options = {} if to == "condconv" else {"convert_first": True}
    assert list(planned_kernels(to, **options)) == ORDER


@every_target
def test_files_hold_how_many_kernels_each_has(to: str, tmp_path: Path) -> None:
    new = convswap.convert(net(), to, where=["body.*", "last"], kernels=(2, 3, 4, 5), example_inputs=SIZE)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(0.01)
    convswap.save(new, tmp_path / "new.safetensors")
    loaded = convswap.load(tmp_path / "new.safetensors", model=net())
    assert kernels_of(loaded) == kernels_of(new) == dict(zip(ORDER[1:], (2, 3, 4, 5), strict=True))
    assert torch.equal(loaded(batch()), new(batch()))


@every_target
def test_plans_count_what_is_mixed_for_each_sample(to: str) -> None:
    model = net()
    (step,) = convswap.plan(model, to, where="body.dense", kernels=3, example_inputs=SIZE).swaps
    weight = model.body.dense.weight
    assert step.after.kernel_bytes == 8 * weight.numel()
    new = convswap.convert(model, to, where="body.dense", kernels=3)
    assert step.after.parameters == sum(parameter.numel() for parameter in new.body.dense.parameters())
    assert step.after.parameters > 3 * weight.numel()
    assert step.fidelity == "exact"


def test_convolutions_of_other_dimensions() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Conv1d(3, 3, 3))
    assert convswap.plan(model, "dynamic", kernels=(3,)).swaps[0].options.kernels == 3
    for to in ("condconv", "odconv"):
        with pytest.raises(ConvswapError, match=rf"1 spatial axis, and {to} layers have 2: use to=\"dynamic\""):
            convswap.plan(model, to)


# How many kernels --------------------------------------------------------------------------------------------------


@every_target
def test_kernels_in_the_order_of_execution(to: str) -> None:
    chosen = {"where": "!stem"}
    assert planned_kernels(to, kernels=[2, 3, 4, 5], **chosen) == dict(zip(ORDER[1:], (2, 3, 4, 5), strict=True))
    assert planned_kernels(to, kernels=[7], where="last") == {"last": 7}
    with pytest.raises(
        OptionError,
        match=rf"kernels has 2 numbers, and 4 convolutions would be converted to {to}: {', '.join(ORDER[1:])}\.",
    ):
        convswap.plan(net(), to, kernels=(2, 3), **chosen)


@every_target
def test_kernels_by_name(to: str) -> None:
    chosen = {"where": "!stem"}
    made = planned_kernels(to, kernels={"body.d*": 2, "*d*": 3}, **chosen)
    assert made == {"body.dense": 2, "body.depthwise": 2, "body.grouped": 3, "last": 4}
    assert set(planned_kernels(to, kernels={"*": 6}, **chosen).values()) == {6}
    with pytest.raises(OptionError, match=r"'body\.dens' matches none of the 4 .* Did you mean 'body\.dense'"):
        convswap.plan(net(), to, kernels={"body.dens": 2}, **chosen)
    with pytest.raises(OptionError, match="'stem' matches none of the 4"):  # it is there, but kept
        convswap.plan(net(), to, kernels={"stem": 2}, **chosen)


class Branches(nn.Module):
    """Its path depends on its data, and its parts are executed in another order than they are listed in."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.middle = nn.Conv2d(4, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3))
        self.first = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.mul_(2).sum() > 1e9:
            return x
        return self.last(self.middle(self.first(x)))


@every_target
def test_order_of_execution_that_depends_on_data(to: str) -> None:
    order = ["first", "middle.0", "middle.1", "last"]
    first = {} if to == "condconv" else {"convert_first": True}

    def made(where: str = "*", **options: Any) -> dict[str, int]:
        steps = convswap.plan(Branches(), to, where, **options, **first).swaps
        return {step.site.name: step.options.kernels for step in steps}

    x = torch.ones(1, *SIZE)
    for inputs in (SIZE, x):
        assert made(kernels=(2, 3, 4, 5), example_inputs=inputs) == dict(zip(order, (2, 3, 4, 5), strict=True))
    assert torch.equal(x, torch.ones(1, *SIZE))
    with pytest.raises(
        OptionError, match=r"order .* is unknown: last, middle\.0, .*Give example_inputs .*\{'last': 2, "
    ):
        made(kernels=(2, 3, 4, 5))
    with pytest.raises(OptionError, match=r"order .* is unknown"):  # stops before it comes to the second
        made(kernels=(2, 3, 4, 5), example_inputs=(x, x))
    assert made("middle.*", kernels=(2, 3)) == {"middle.0": 2, "middle.1": 3}  # traced as one
    assert set(made(kernels=(3, 3, 3, 3)).values()) == {3}
    assert set(made(kernels={"*": 6}).values()) == {6}


@pytest.mark.parametrize("to", ["dynamic", "odconv"])
def test_first_convolution_of_an_order_that_depends_on_data(to: str) -> None:
    (kept,) = convswap.plan(Branches(), to, example_inputs=SIZE).keeps
    assert (kept.site.name, kept.reason.partition(" is left")[0]) == ("first", "the network's first convolution")
    (guessed,) = convswap.plan(Branches(), to).keeps
    assert "is taken for the network's first convolution" in guessed.reason
    assert "order of execution is unknown" in guessed.reason


def test_rules_count_their_own_convolutions() -> None:
    rules = [convswap.Swap("body.*", "odconv", kernels=(1, 2, 3)), convswap.Swap("*", "dynamic", kernels=(5,))]
    steps = convswap.plan(net(), rules).swaps
    assert [(step.target, step.options.kernels) for step in steps] == [
        ("odconv", 1),
        ("odconv", 2),
        ("odconv", 3),
        ("dynamic", 5),
    ]


class Tied(nn.Module):
    """Two convolutions of one weight, one of which nothing is known, and another one."""

    def __init__(self, tied_to: str = "second") -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 3) for _ in range(3))
        getattr(self, tied_to).weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)))


def test_tied_convolutions_get_as_many_kernels_or_are_kept() -> None:
    options: dict[str, Any] = {"convert_first": True}
    alike = convswap.plan(Tied(), "dynamic", kernels=(3, 3, 2), **options)
    assert [step.options.kernels for step in alike.swaps] == [3, 3, 2]
    rules = [
        convswap.Swap("first", "dynamic", kernels=3, **options),
        convswap.Swap("*", "dynamic", kernels={"second": 3}, **options),
    ]
    assert [step.options.kernels for step in convswap.plan(Tied(), rules).swaps] == [3, 3, 4]
    unlike = convswap.plan(Tied(), "dynamic", kernels=(3, 2, 2), **options)
    assert [step.site.name for step in unlike.swaps] == ["third"]
    assert "shares parameters with second.weight" in unlike.keeps[0].reason


def test_what_is_kept_for_its_ties_gets_no_number() -> None:
    """The first convolution is left alone, and so must be the second: only the third is converted."""
    (step,) = convswap.plan(Tied(), "dynamic", kernels=(5,)).swaps
    assert (step.site.name, step.options.kernels) == ("third", 5)


@pytest.mark.parametrize("to", LAYERS)
@pytest.mark.parametrize(
    ("kernels", "words"),
    [
        (0, "kernels must be at least [12], got 0"),
        ((4, 0), "kernels must be at least [12], got 0"),
        ({"last": 0}, "got 0 for 'last'"),
        ((), "kernels has 0 numbers, and"),
        ("four", "must be a whole number or several of int or a mapping of str to int, got 'four'"),
        (2.5, r"got 2\.5"),
        ((2, "3"), r"got \(2, '3'\)"),
        ({"last": 2.5}, r"got \{'last': 2\.5\}"),
        ({3: 2}, r"got \{3: 2\}"),
        (True, "got True"),
    ],
)
def test_kernels_that_cannot_be(to: str, kernels: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        convswap.plan(net(), to, kernels=kernels)


def test_recipes_have_a_number_for_each() -> None:
    new = convswap.convert(net(), "odconv", kernels={"body.*": 2})
    data = json.loads(json.dumps(convswap.report(new).recipe.to_dict()))
    assert [step["options"]["kernels"] for step in data["steps"]] == [2, 2, 2, 4]
    recipe = type(convswap.report(new).recipe).from_dict
    assert kernels_of(convswap.apply(recipe(data), net())) == kernels_of(new)
    data["steps"][0]["options"]["kernels"] = [2, 3]
    with pytest.raises(ConvswapError, match=r"body\.dense cannot be .*kernels must be one number .*\(2, 3\)"):
        convswap.apply(recipe(data), net())


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ("kernels=2,3,4,5", 0, (2, 3, 4, 5)),
        ("kernels=3", 0, (3, 3, 3, 3)),
        ('kernels={"body.*": 2, "last": 5}', 0, (2, 2, 2, 5)),
        ("kernels=2,3", 1, "kernels has 2 numbers, and 4 convolutions"),
        ('kernels={"bodi.*": 2}', 1, "'bodi.*' matches none of the 4 convolutions"),
        ("kernels=two", 1, "a mapping of str to int, got 'two'"),
    ],
)
def test_command_line(given: str, code: int, words: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = main(["plan", "tests.test_attended_targets:Net", "--to", "dynamic", "--option", given, "--json"])
    captured = capsys.readouterr()
    assert found == code, captured
    if code:
        assert words in " ".join(captured.err.split())
    else:
        steps = [step for step in json.loads(captured.out)["steps"] if step["action"] == "swap"]
        assert tuple(step["options"]["kernels"] for step in steps) == words


# Attention of one's own --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", [by_means, "tests.test_attended_targets:by_means"], ids=["function", "name"])
def test_own_attention_by_name_in_files_that_are_trusted(attention: Any, tmp_path: Path) -> None:
    model, x, path = net(), batch(), tmp_path / "new.safetensors"
    new = convswap.convert(model, "dynamic", attention=attention, example_inputs=SIZE)
    assert relative_error(new(x), model(x)) < 1e-12
    assert isinstance(new.last.attention.body[2], nn.Linear)
    assert new.last.attention.body[2].out_features == 4
    steps = convswap.report(new).recipe.to_dict()["steps"]
    assert {step["options"]["attention"] for step in steps} == {"tests.test_attended_targets:by_means"}
    convswap.save(new, path)
    with pytest.raises(ConvswapError, match="by_means, which would be imported and run"):
        convswap.load(path, model=net())
    assert torch.equal(convswap.load(path, model=net(), trust_source=True)(x), new(x))


def test_random_starts_of_own_attention_come_from_the_seed() -> None:
    model = net()

    def first(seed: int) -> Tensor:
        weight: Tensor = convswap.convert(model, "dynamic", attention=by_means, seed=seed).last.attention.body[2].weight
        return weight

    before = torch.get_rng_state()
    one = first(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(one, first(1))
    assert not torch.equal(one, first(2))


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        (fails, r"attention, .*:fails, failed with in_channels=8 and hidden=4 \(RuntimeError: no net today\)"),
        (too_wide, r"attention, .*:too_wide, makes \(2, 5, 14, 14\) of an input \(2, 8, 16, 16\), .*\(B, 4, \*any\)"),
        ("nonsense", "attention must be a function, or its name"),
        ("tests.test_attended_targets:by_mean", "Did you mean 'by_means'"),
        (lambda channels, hidden: 3, "returned int"),
        (3, "must be a function or str or None, got 3"),
    ],
    ids=["fails", "too wide", "nonsense", "unknown", "no module", "number"],
)
def test_own_attention_that_cannot_be_used(attention: Any, words: str) -> None:
    with pytest.raises(ConvswapError, match=words):
        convswap.plan(net(), "dynamic", attention=attention, example_inputs=SIZE)


@functools.cache
def cached(channels: int, hidden: int) -> nn.Module:
    return by_means(channels, hidden)


def test_what_a_factory_returns_again_stays_its_own() -> None:
    model, x = net(), batch()
    first, second = (convswap.convert(model, "dynamic", attention=cached, example_inputs=SIZE) for _ in range(2))
    assert relative_error(first(x), model(x)) < 1e-12
    bodies = [layer.attention.body for layer in (first.last, second.last, first.body.depthwise)]
    assert len({id(body[2].weight) for body in bodies}) == 3

    kept: dict[tuple[int, int], nn.Module] = {}

    def keeps(channels: int, hidden: int) -> nn.Module:
        return kept.setdefault((channels, hidden), by_means(channels, hidden))

    convswap.plan(model, "dynamic", attention=keeps, example_inputs=SIZE)  # keeps nets without numbers
    with pytest.raises(ConvswapError, match="attention must be a function that makes a new net each time"):
        convswap.convert(model, "dynamic", attention=keeps)
    kept.update({sizes: by_means(*sizes).double() for sizes in kept})
    before = copy.deepcopy(kept)
    new = convswap.convert(model, "dynamic", attention=keeps)
    assert new.last.attention.body is not new.body.grouped.attention.body
    assert torch.equal(new.last.attention.body[2].weight, kept[12, 4][2].weight)  # type: ignore[index]
    new.half()
    for sizes, net_kept in kept.items():
        assert all(map(torch.equal, net_kept.parameters(), before[sizes].parameters()))


def test_plans_with_own_attention_draw_nothing_and_know_what_it_costs() -> None:
    model = net()
    before = torch.get_rng_state()
    (step,) = convswap.plan(model, "dynamic", "last", attention=by_means, example_inputs=SIZE).swaps
    assert step.after.multiply_adds > step.before.multiply_adds
    assert torch.equal(torch.get_rng_state(), before)
    new = convswap.convert(model, "dynamic", "last", attention=by_means)
    assert step.after.parameters == sum(parameter.numel() for parameter in new.last.parameters())
