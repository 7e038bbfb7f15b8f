"""Hypernets of the user's own whose code fails, needs numbers, or makes something else than features."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convswap
from convswap.errors import ConvswapError, OptionError

from .models import relative_error
from .test_guided_targets import SIZE, every_target, varied
from .test_report import forms

Factory = Callable[[int, int], nn.Module]


class Body(nn.Module):
    """A 1×1 convolution, and whatever else ``then`` does."""

    def __init__(self, channels: int, hidden: int, then: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, hidden, 1)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.conv(x))


def branches(y: Tensor) -> Tensor:
    return -y if y.sum() > 0 else y


def scales(y: Tensor) -> Tensor:
    return y * torch.tensor([0.5, 2.0], dtype=y.dtype)[:1]


def with_norm(channels: int, hidden: int) -> nn.Module:
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, hidden)
    return nn.Sequential(*pooled, nn.BatchNorm1d(hidden, affine=True))


def branching(channels: int, hidden: int) -> nn.Module:
    return Body(channels, hidden, branches)


def scaling(channels: int, hidden: int) -> nn.Module:
    return Body(channels, hidden, scales)


def reads_weights(channels: int, hidden: int) -> nn.Module:
    made = Body(channels, hidden)
    made.scale = 1 / made.conv.weight.abs().max().item()
    random.random()
    torch.rand(1, device="cpu")
    return made


def fails(channels: int, hidden: int) -> nn.Module:
    return nn.Linear(channels, hidden // 0)


def exits(channels: int, hidden: int) -> nn.Module:
    raise SystemExit(3)


def too_wide(channels: int, hidden: int) -> nn.Module:
    return nn.Conv2d(channels, hidden + 1, 3, padding=1)


def too_wide_by_numbers(channels: int, hidden: int) -> nn.Module:
    return Body(channels, hidden + 1, branches)


def as_tokens(channels: int, hidden: int) -> nn.Module:
    return Body(channels, hidden, lambda y: y.flatten(2).mT)


def as_pair(channels: int, hidden: int) -> nn.Module:
    return Body(channels, hidden, lambda y: (y, y))


NEEDS_NUMBERS = [branching, scaling]


# What its layers cost ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hypernet", [with_norm, *NEEDS_NUMBERS, reads_weights])
@pytest.mark.parametrize("training", [False, True])
def test_models_can_be_reported_copied_and_saved(hypernet: Factory, training: bool, tmp_path: Any) -> None:
    model = varied().train(training)
    new = convswap.convert(model, "guided", "dense", example_inputs=SIZE, hypernet=hypernet)
    made = convswap.report(new)
    (step,) = made.swaps
    assert step.after.parameters == sum(p.numel() for p in new.dense.parameters())
    assert step.after.kernel_bytes == 8 * model.dense.weight.numel()
    known = hypernet not in NEEDS_NUMBERS
    assert (step.after.multiply_adds is not None) == (step.after.activation_bytes is not None) == known
    assert str(made).count("?") == (0 if known else 1)
    for copied in (copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        assert convswap.report(copied).swaps == made.swaps
    convswap.save(new, tmp_path / "new.safetensors")
    loaded = convswap.load(tmp_path / "new.safetensors", model=varied(), trust_source=True)
    assert convswap.report(loaded) == made
    assert {module.training for module in new.modules()} == {training}
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    assert relative_error(new.eval()(x), model.eval()(x)) < 1e-10


def test_multiply_adds_of_a_body_that_wants_several_samples_in_training() -> None:
    of = {
        training: convswap.plan(varied().train(training), "guided", "dense", example_inputs=SIZE, hypernet=with_norm)
        for training in (False, True)
    }
    costs = [plan.swaps[0].after for plan in of.values()]
    assert costs[0] == costs[1]
    assert costs[0].multiply_adds == of[True].swaps[0].before.multiply_adds + 3 * 8 + 8 * 8 * 27


@pytest.mark.parametrize("hypernet", NEEDS_NUMBERS)
def test_totals_are_of_the_same_convolutions_before_and_after(hypernet: Factory) -> None:
    swaps = [convswap.Swap("grouped", "dynamic"), convswap.Swap("dense", "guided", hypernet=hypernet)]
    made = convswap.report(convswap.plan(varied(), swaps, example_inputs=SIZE))
    unknown = next(step for step in made.steps if step.name == "dense")
    for field in ("multiply_adds", "activation_bytes"):
        for which in ("before", "after"):
            values = [getattr(getattr(step, which), field) for step in made.steps if step is not unknown]
            assert getattr(made.total(which), field) == sum(values)
    assert made.total("after").parameters == sum(step.after.parameters for step in made.steps)
    for shown in forms(made):
        assert "→ ?" in shown


@every_target
def test_planning_leaves_the_global_generators_alone(to: str) -> None:
    for hypernet in (reads_weights, branching):
        states = random.getstate(), torch.get_rng_state()
        plan = convswap.plan(varied(), to, example_inputs=SIZE, hypernet=hypernet)
        torch.set_rng_state(states[1])
        str(convswap.report(plan))
        assert random.getstate() == states[0]
        assert torch.equal(torch.get_rng_state(), states[1])


# What cannot be used ----------------------------------------------------------------------------------------------


@every_target
@pytest.mark.parametrize(
    ("hypernet", "words"),
    [
        (fails, r"tests\.test_guided_body:fails, failed with guide_channels=\d+ and hidden=5 \(ZeroDivisionError: "),
        ("tests.test_guided_body:fails", r"tests\.test_guided_body:fails, failed with .* \(ZeroDivisionError: "),
        (exits, r"tests\.test_guided_body:exits, failed with .* \(SystemExit: 3\)"),
        (lambda channels, hidden: fails(channels, hidden), r"<lambda> of tests\.test_guided_body, failed with "),
        (functools.partial(fails, hidden=3), r"partial of functools, failed with .* \(TypeError: "),
        (too_wide, r"test_guided_body:too_wide, makes \(2, 6, 16, 16\) of a guide \(2, \d+, 16, 16\), and must make"),
        (as_tokens, r"body:as_tokens, makes \(2, 256, 5\) of .* \(B, 5\) or \(B, 5, h, w\), as hidden is 5"),
        (as_pair, r"test_guided_body:as_pair, makes a tuple of a guide"),
    ],
)
def test_hypernets_that_cannot_be_used(to: str, hypernet: Any, words: str) -> None:
    words = rf"^\w+ cannot be converted to {to}: its hypernet, .*{words}"
    with pytest.raises(OptionError, match=words):
        convswap.plan(varied(), to, example_inputs=SIZE, hypernet=hypernet, hidden=5)
    with pytest.raises(ConvswapError, match=words):
        convswap.convert(varied(), to, example_inputs=SIZE, hypernet=hypernet, hidden=5)


def test_what_only_numbers_tell_is_told_by_convert() -> None:
    plan = convswap.plan(varied(), "guided", "dense", example_inputs=SIZE, hypernet=too_wide_by_numbers)
    assert plan.swaps[0].after.multiply_adds is None
    assert "?" in str(plan)
    with pytest.raises(
        ConvswapError, match=r"dense cannot be .*too_wide_by_numbers, makes \(2, 9, 16, 16\) of .*hidden is 8"
    ):
        convswap.apply(plan, varied())


def test_bodies_for_guides_of_one_size_are_taken() -> None:
    """Whether their features are as many as they must be is seen when they are run."""

    def of_vectors(channels: int, hidden: int) -> nn.Module:
        return nn.Flatten()  # right for as many channels, and one pixel

    def of_images(channels: int, hidden: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * SIZE[1] * SIZE[2], hidden))

    x = torch.randn(2, *SIZE, dtype=torch.float64)
    for hypernet, options in (
        (of_vectors, {"guide": "input:guide", "guide_channels": 8}),
        (of_images, {}),
    ):
        model = varied().eval()
        new = convswap.convert(model, "guided", "dense", example_inputs=SIZE, hypernet=hypernet, **options)
        guide = (torch.randn(2, 8, dtype=torch.float64),) if options else ()
        assert relative_error(new(x, *guide), model(x)) < 1e-10


def test_trying_a_body_leaves_it_as_it_was() -> None:
    class Counts(Body):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    new = convswap.convert(varied().train(), "guided", "dense", example_inputs=SIZE, hypernet=Counts)
    body = new.dense.hypernet.body
    assert (body.calls, body.training) == (0, True)


def test_plans_with_bodies_become_json() -> None:
    plan = convswap.plan(varied(), "guided", "dense", example_inputs=SIZE, hypernet=branching)
    made = convswap.report(plan)
    data = json.loads(made.to_json())
    after = next(step["after"] for step in data["steps"] if step["name"] == "dense")
    assert (after["multiply_adds"], after["activation_bytes"]) == (None, None)
    assert type(made).from_dict(data).swaps == made.swaps
