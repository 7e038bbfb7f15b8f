"""The census' numbers, on tiny models: that they are right, that what is wrong is noticed, and that all is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import benchmarks.census.numbers as numbers_of
import benchmarks.census.training as training_of
from benchmarks.census import carried_gradients, turns
from benchmarks.census.budget import LATER, LEFT_OUT, groups, memory_limit
from benchmarks.census.carried_gradients import carried_errors
from benchmarks.census.catalogue import all_names, families
from benchmarks.census.number_tables import number_tables, training_tables
from benchmarks.census.numbers import NO_INTERIOR, compare, numbers
from benchmarks.census.prepared import as_if_trained, in_double, without_randomness
from benchmarks.census.smallest import SmallestInput, smallest_input, smallest_models
from benchmarks.census.training import training, training_models, training_step, with_labels
from convswap import Swap, trace
from convswap.errors import ConvswapError
from convswap.plan import Plan, plan_traced
from convswap.targets import all_targets

from .models import TwoConvs

BORDER_TARGETS = {"padding_free", "extrapolated", "partial", "random_pad"}


@pytest.mark.parametrize(
    "name", ["timm:test_efficientnet", "timm:test_nfnet", "timm:test_convnext", "timm:test_vit", "timm:test_mambaout"]
)
def test_every_target_keeps_its_promise(name: str) -> None:
    record = numbers(name)
    assert set(record["targets"]) == set(all_targets())
    assert any(outcome["swapped"] for outcome in record["targets"].values())
    for outcome in record["targets"].values():
        assert "error" not in outcome
        if outcome["swapped"]:
            compared = sum(outcome["verified"].values()) + sum(outcome.get("not_compared", {}).values())
            assert compared == outcome["swapped"]
            assert outcome["worst"].get("exact", 0) < 1e-13
            assert outcome["worst"].get("interior", 0) < 1e-13
            assert set(outcome["worst"]) != {"exact"} or outcome["output"] < 1e-12


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("timm:test_efficientnet", ["dynamic", "explicit_boundary", "padding_free"]),
        ("timm:test_nfnet", ["dcls", "condconv"]),
        ("timm:test_resnet", ["guided_local", "guided_separable", "random_pad"]),
    ],
)
def test_training_steps_agree(name: str, targets: list[str]) -> None:
    record = training(name, targets)
    assert list(record["targets"]) == targets
    for to, outcome in record["targets"].items():
        assert "error" not in outcome
        if to in BORDER_TARGETS:
            interior = outcome["interior"]
            assert interior["layers"] + interior["without_interior"] == outcome["swapped"]
            assert interior["layers"] > 0
            assert max(interior[what] for what in ("outputs", "read", "carried")) < 1e-10
        elif to == "guided_separable":
            assert outcome["not_compared"] == {"it is approximate": outcome["swapped"]}
        else:
            exact = outcome["exact"]
            assert exact["layers"] + sum(outcome.get("not_compared", {}).values()) == outcome["swapped"]
            assert exact["outputs"] < 1e-13
            assert max(exact["others"], exact["carried"]) < 1e-10


def small_plan(
    to: str, model: nn.Module | None = None, example: tuple[int, ...] = (3, 8, 8), **options: Any
) -> tuple[nn.Module, Plan]:
    model = (TwoConvs() if model is None else model).double()
    found = trace(model, example)
    return model, plan_traced(found, model, [Swap("*", to, **options)])


def test_a_broken_promise_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan = small_plan("dcls")
    built = numbers_of.build_layers

    def wrong(*args: Any) -> Any:
        layers = built(*args)
        for layer in layers.values():
            layer.weight.data *= 1 + 1e-8
        return layers

    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert "error" not in compare(model, plan.trace, "dcls", (x,))
    monkeypatch.setattr(numbers_of, "build_layers", wrong)
    assert "2 layers break their promise" in compare(model, plan.trace, "dcls", (x,))["error"]


def test_exceptions_of_a_target_are_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no such\nlayer")

    monkeypatch.setattr(all_targets()["dcls"], "build", fails)
    targets = numbers("timm:test_vit", ["dcls", "guided"])["targets"]
    assert targets["guided"]["verified"] == {"exact": 1}
    assert "cannot be converted to dcls: no such" in targets["dcls"]["error"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:test_efficientnet", "3×32×32"),
        ("timm:test_vit", "3×32×32 (img_size=32)"),
        ("torchvision:vit_b_16", "3×32×32 (image_size=32)"),
        ("torchvision:r3d_18", "3×4×32×32"),
        ("torchvision:mvit_v2_s", "3×16×224×224"),
    ],
)
def test_smallest_input(name: str, words: str) -> None:
    assert str(smallest_input(name)) == words


def test_least_size_and_inputs_that_nothing_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert smallest_input("timm:test_efficientnet", least=90).shape == (3, 96, 96)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        raise ValueError("not today")

    model = nn.Conv2d(3, 3, 3)
    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    with pytest.raises(ConvswapError, match=r"none of the inputs.*ValueError: not today"):
        smallest_input("timm:test_efficientnet", model)


def test_the_smallest_of_each_family() -> None:
    sizes = {name: (name.count("9"), len(name)) for name in all_names()}
    chosen = smallest_models(sizes)
    with_convs = [[name for name in names if "9" in name] for names in families().values()]
    assert [len(name) for name in chosen] == [min(map(len, names)) for names in with_convs if names]
    assert set(training_models()) <= set(all_names())
    assert len(set(training_models())) >= 60


def test_calls_are_repeatable() -> None:
    for kind in ("image", "two images", "list of images"):
        given = SmallestInput((3, 8, 8), kind)
        first, second = (torch.utils._pytree.tree_leaves(given.call()) for _ in range(2))
        assert len(first) == {"image": 1, "two images": 2, "list of images": 2}[kind]
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    images, labels = with_labels(given, given.call())
    assert len(images) == len(labels) == 2


def both_gradients(to: str, **options: Any) -> tuple[Plan, nn.Module, dict[int, Tensor], dict[int, Tensor]]:
    model, plan = small_plan(to, **options)
    converted = numbers_of.carried_out(plan, model)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    old, new = (dict(training_step(m.train(), (x,)).gradients) for m in (model, converted))
    return plan, converted, old, new


def slopes(plan: Plan, converted: nn.Module, old: dict[int, Tensor], new: dict[int, Tensor]) -> dict[str, float]:
    layers = {step.site.name: converted.get_submodule(step.site.name) for step in plan.swaps}
    errors = carried_errors(plan.swaps, layers, old, new)
    return {name: error for name, error in errors.items() if error is not None}


@pytest.mark.parametrize("to", ["condconv", "dcls", "guided", "hybrid", "explicit_boundary"])
def test_gradients_are_carried_and_wrong_ones_noticed(to: str) -> None:
    plan, converted, old, new = both_gradients(to)
    errors = slopes(plan, converted, old, new)
    assert set(errors) == {"conv1", "conv2"}
    assert max(errors.values()) < 1e-10
    for parameter in plan.swaps[1].site.module.parameters():
        held = old[id(parameter)]
        old[id(parameter)] = held * (1 + 1e-6)
        assert slopes(plan, converted, old, new)["conv2"] > 1e-9
        old[id(parameter)] = torch.roll(held, 1)
        assert slopes(plan, converted, old, new)["conv2"] > 1e-3
        old[id(parameter)] = held
    new[id(next(iter(converted.conv2.parameters())))] = torch.zeros(())
    del old[id(plan.swaps[0].site.module.weight)]
    assert slopes(plan, converted, old, new)["conv1"] > 1e-3


def test_of_dynamic_convolution_it_is_the_sum_over_the_kernels() -> None:
    plan, converted, old, new = both_gradients("dynamic", convert_first=True)
    assert max(slopes(plan, converted, old, new).values()) < 1e-10
    for step in plan.swaps:
        layer = converted.get_submodule(step.site.name)
        total = new[id(layer.weight)].unflatten(0, (layer.kernels, -1)).sum(0)
        assert torch.allclose(total, old[id(step.site.module.weight)], rtol=1e-12, atol=1e-14)


def test_maps_that_bend_where_weights_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.Flatten())
    with torch.no_grad():
        model[1].weight[0] *= 1e-3
    plan, converted, old, new = both_gradients("guided_separable", model=model)
    assert [step.fidelity for step in plan.swaps] == ["exact"]
    assert slopes(plan, converted, old, new)["1"] < 1e-8
    monkeypatch.setattr(carried_gradients, "STEPS", (1e-3,))
    assert "1" not in slopes(plan, converted, old, new)


def test_weights_that_are_tied_are_compared_together() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 3, 3, padding=1))
    model[2].weight = model[0].weight
    plan, converted, old, new = both_gradients("dcls", model=model)
    errors = slopes(plan, converted, old, new)
    assert list(errors) == ["0"]
    assert errors["0"] < 1e-10


def test_a_step_leaves_the_model_as_it_was() -> None:
    model = TwoConvs().double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, state = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.get_rng_state()
    step = training_step(model, (x,), [model.conv2])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert step.reads[id(model.conv2)].shape == (2, 8, 8, 8)
    assert set(step.gradients) == {id(parameter) for parameter in model.parameters()}


def test_layers_that_are_too_large_together_are_left_out() -> None:
    _, plan = small_plan("hybrid")
    smallest = min(plan.swaps, key=lambda step: step.after.parameter_bytes)
    needed = [step.after.parameter_bytes + 2 * (step.after.activation_bytes or 0) for step in plan.swaps]
    (fitting,) = groups(plan, sum(needed) - 1, 1)
    assert [step.reason for step in fitting.keeps] == [LEFT_OUT]
    assert fitting.swaps[0].site.name == smallest.site.name
    both = groups(plan, sum(needed) - 1, 2)
    assert [[step.reason for step in part.keeps] for part in both] == [[LATER], [LATER]]
    assert {part.swaps[0].site.name for part in both} == {"conv1", "conv2"}
    _, many = small_plan(
        "hybrid",
        nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6)), nn.Conv2d(4, 4, 1)),
        example=(4, 8, 8),
    )
    parts = groups(
        many, 2 * max(step.after.parameter_bytes + 2 * (step.after.activation_bytes or 0) for step in many.swaps), 4
    )
    assert sorted(step.site.name for part in parts for step in part.swaps) == [step.site.name for step in many.swaps]
    (none,) = groups(plan, min(needed) - 1, 4)
    assert [step.reason for step in none.keeps] == [LEFT_OUT, LEFT_OUT]
    assert len(groups(plan, 2**40, 4, training=True)[0].swaps) == 2


def test_groups_are_compared_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan = small_plan("hybrid")
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    monkeypatch.setattr(numbers_of, "PARAMETER_LIMIT", max(step.after.parameter_bytes for step in plan.swaps) + 10**5)
    monkeypatch.setattr(numbers_of, "groups", lambda plan, limit, most, batch: groups(plan, limit, 2, batch=batch))
    outcome = compare(model, plan.trace, "hybrid", (x,))
    assert (outcome["swapped"], outcome["verified"], outcome["not_compared"]) == (2, {"exact": 2}, {})
    monkeypatch.setattr(numbers_of, "PARAMETER_LIMIT", 1)
    outcome = compare(model, plan.trace, "hybrid", (x,))
    assert (outcome["swapped"], outcome["verified"], outcome["not_compared"]) == (2, {}, {LEFT_OUT: 2})
    assert "error" not in outcome


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no limits")
def test_asking_for_too_much_memory_fails_alone() -> None:
    with memory_limit(2**28):
        with pytest.raises(RuntimeError, match="memory"):
            torch.ones(2**30)
        torch.ones(8)
    torch.ones(2**28)


def test_no_target_is_begun_after_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers_of, "TIME_LIMIT", -1)
    assert numbers("timm:test_vit", ["dcls"])["targets"] == {"dcls": {"error": turns.NO_TIME}}


class Backward(torch.autograd.Function):
    """Gives back NaN for each gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * float("nan")


@pytest.mark.parametrize("to", ["dcls", "padding_free"])
@pytest.mark.parametrize("where", ["input", "weights"])
def test_gradients_that_are_not_numbers_are_noticed(monkeypatch: pytest.MonkeyPatch, to: str, where: str) -> None:
    model, plan = small_plan(to)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    without_randomness(model).train()
    original = training_step(model, (x,), [site.module for site in plan.trace.sites])
    compared = training_of._compare(model, original, plan.trace, to, (x,))
    assert "error" not in compared
    built = training_of.carried_out

    def wrong(*args: Any) -> nn.Module:
        converted = built(*args)
        if where == "input":
            converted.conv2.register_forward_pre_hook(lambda _, args: (Backward.apply(args[0]),))
        else:
            for parameter in converted.conv2.parameters():
                parameter.register_hook(lambda gradient: gradient * float("nan"))
        return converted

    monkeypatch.setattr(training_of, "carried_out", wrong)
    assert "not as before" in training_of._compare(model, original, plan.trace, to, (x,))["error"]


class Partly(nn.Module):
    """Has a layer that never runs, and gives the numbers that are large."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.never = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.least = 0.5

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y if self.training else y[y > self.least]


@pytest.mark.parametrize("to", ["dcls", "partial"])
def test_layers_that_do_not_run_are_counted_apart(to: str) -> None:
    model, x = Partly().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = trace(model, (x.float(),), real_pass=True)
    original = training_step(model.train(), (x,), [site.module for site in found.sites])
    outcome = training_of._compare(model, original, found, to, (x,))
    assert outcome["not_compared"] == {"it does not run in training mode": 1}
    assert (outcome.get("exact") or outcome["interior"])["layers"] == 1
    assert (outcome["swapped"], "error" in outcome) == (2, False)


def test_outputs_of_other_shapes_are_an_error_of_exact_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan = small_plan("dcls")
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    original = training_step(without_randomness(model).train(), (x,), [site.module for site in plan.trace.sites])
    built = training_of.carried_out

    def cut(*args: Any) -> nn.Module:
        converted = built(*args)
        converted.register_forward_hook(lambda module, args, output: output[:1])
        return converted

    monkeypatch.setattr(training_of, "carried_out", cut)
    assert "outputs of exact layers" in training_of._compare(model, original, plan.trace, "dcls", (x,))["error"]


def test_outputs_that_cannot_be_compared_are_told() -> None:
    torch.manual_seed(0)
    model, x = Partly().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = trace(model, (x.float(),), real_pass=True)
    outcome = compare(model, found, "partial", (x,))
    assert (outcome["output"], outcome["output_not_compared"]) == (None, "the outputs have other shapes")
    assert "error" not in outcome
    assert outcome["least_compared"] == 36 / 64
    model.least = 1e9
    outcome = compare(model, found, "dcls", (x,))
    assert (outcome["output"], outcome["output_not_compared"]) == (None, "the output has no numbers")
    assert "error" not in outcome


def test_layers_without_an_interior_get_larger_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers_of, "ROOM", 32)
    record = numbers("timm:test_resnet", ["partial"])
    assert (record["roomy_input"], record["roomiest_input"]) == ("3×32×32", "3×224×224")
    outcome = record["targets"]["partial"]
    assert outcome["verified"] == {"interior": outcome["swapped"]}
    assert "not_compared" not in outcome
    assert 0 < outcome["least_compared"] < 1


@pytest.mark.parametrize("swapped", [0, 1])
def test_layers_that_are_kept_on_larger_inputs_are_told(swapped: int) -> None:
    outcome: dict[str, Any] = {"verified": {}, "not_compared": {}, "worst": {}, "output": None, "least_compared": None}
    record = {**outcome, "swapped": 3, "not_compared": {NO_INTERIOR: 2}}
    again = {**outcome, "swapped": 1, "verified": {"interior": 1}} if swapped else {"swapped": 0}
    numbers_of._add(record, again)
    assert record["error"].endswith("without an interior are kept on larger inputs")
    assert sum(record["verified"].values()) == swapped


def test_casts_to_single_precision_stay_double() -> None:
    with in_double():
        x = torch.ones(2, dtype=torch.float32) + torch.arange(2).float() + torch.zeros(2)
        assert x.to(torch.float32).dtype == torch.float64
        assert x.to(torch.float16).dtype == torch.float16
    assert torch.zeros(2).float().dtype == torch.float32


def test_prepared_models() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5))
    as_if_trained(model)
    assert model[1].running_mean.abs().min() > 0
    assert len({*model[1].weight.tolist(), *model[0].bias.tolist()}) == 6
    assert without_randomness(model)[2].p == 0


def test_tables_name_every_exception() -> None:
    records = {
        "timm:a": {"input": "3×32×32", "targets": {"dcls": {"swapped": 3, "error": "2 layers break their promise"}}},
        "timm:b": {"failure": "stopped after 900 s"},
        "timm:c": {"input": "3×64×64", "targets": {"dcls": {"error": "ValueError: x | y"}, "guided": {"swapped": 0}}},
    }
    records["timm:a"]["targets"]["dcls"] |= {
        "least_compared": 0.25,
        "verified": {"exact": 1},
        "worst": {"exact": 2e-15},
        "output": 0.25,
        "not_compared": {"it does not run in evaluation mode": 1},
    }
    text = number_tables(records)
    for words in (
        "2 of 3 models",
        "| 2 layers break",
        "stopped after 900 s",
        "x \\| y",
        "| `dcls` | 1 | 1 | 1 | 3 | 1 |",
        "| 2e-15 |",
        "| 25 % |",
        "does not run in",
    ):
        assert words in text
    trained = {
        "swapped": 2,
        "not_compared": {},
        "exact": {"layers": 2, "outputs": 0.0, "others": 1e-15, "carried": 0.0},
    }
    text = training_tables({"timm:a": {"targets": {"dcls": trained}}})
    assert "| `dcls` | 1 | 1 | 2 | 0e+00 | 1e-15 | 0e+00 |" in text
