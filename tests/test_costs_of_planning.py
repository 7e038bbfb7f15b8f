"""What it costs to plan and to convert: no memory before there is something to build, and time by the model's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode

import convswap
from convswap import costs
from convswap.plan import plan_traced
from convswap.rewrite import build_layers, copy_with
from convswap.targets import all_targets

from .growth import assert_linear

SMALL = 64
"""Numbers that a tensor may have for tables, counters and the like."""


class Allocations(TorchDispatchMode):
    """Notes every real tensor of more numbers that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            real = isinstance(value, Tensor) and not isinstance(value, FakeTensor) and not value.is_meta
            if real and value.numel() > SMALL:
                self.found.append((str(func), tuple(value.shape)))
        return result


def block() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU())


@pytest.mark.parametrize("to", sorted(all_targets()))
def test_a_dry_run_allocates_nothing_with_its_costs_and_reports_too(to: str) -> None:
    model = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), block(), nn.Conv2d(8, 12, 1)).eval()
    model[1] = nn.Sequential(nn.Conv2d(12, 12, 5, padding=2, groups=12), nn.Conv2d(12, 8, 1))
    inputs = torch.rand(1, 12, 16, 16)
    with Allocations() as seen:
        plan = convswap.plan(model, to, example_inputs=inputs)
        report = convswap.report(plan)
        for shown in (str(plan), report.to_json(), report.to_markdown(), report.to_html()):
            assert shown
    assert all(step.after.activation_bytes is not None for step in plan.swaps)
    assert seen.found == []


def test_what_is_built_is_seen() -> None:
    model = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1))
    plan = convswap.plan(model, "dcls", example_inputs=(12, 16, 16))
    with Allocations() as seen:
        convswap.apply(plan, model)
    assert seen.found


SIZES = 10, 20, 40


@pytest.fixture(scope="module")
def traced() -> dict[int, tuple[nn.Module, Any]]:
    models = {size: nn.Sequential(*(block() for _ in range(size))).to("meta") for size in SIZES}
    return {size: (model, convswap.trace(model, (8, 14, 14))) for size, model in models.items()}


@pytest.mark.parametrize("to", sorted(set(all_targets()) - {"guided_pointwise"}))
def test_planning_and_building_grow_linearly(to: str, traced: dict[int, tuple[nn.Module, Any]]) -> None:
    def of_size(size: int) -> Callable[[], object]:
        model, trace = traced[size]

        def run() -> None:
            plan = plan_traced(trace, model, [convswap.Swap("*", to)])
            assert len(plan.swaps) >= size - 1  # the first one is left alone by some
            convswap.report(plan).to_json()
            copy_with(model, build_layers(plan.steps, 0))

        return run

    assert_linear(of_size, SIZES)


def test_tracing_and_converting_grow_linearly() -> None:
    def of_size(size: int) -> Callable[[], object]:
        model = nn.Sequential(*(block() for _ in range(size)))
        return lambda: convswap.convert(model, "extrapolated", example_inputs=(8, 14, 14))

    assert_linear(of_size, SIZES)


def test_layers_that_are_alike_are_costed_once() -> None:
    plan = convswap.plan(nn.Sequential(*(block() for _ in range(6))), "dcls", example_inputs=(8, 14, 14))
    assert len({id(step.cost_after) for step in plan.swaps}) == 1


@pytest.mark.parametrize("padding", [{"padding": "same"}, {"padding": 1, "padding_mode": "replicate"}])
def test_so_are_convolutions_as_they_are(padding: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[nn.Module] = []
    forward_pass = costs._forward_pass

    def noted(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
        run.append(layer)
        return forward_pass(layer, shape)

    monkeypatch.setattr(costs, "_forward_pass", noted)
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, **padding) for _ in range(6)), nn.Conv2d(8, 8, 5, **padding))
    plan = convswap.plan(model, "dcls", example_inputs=(8, 14, 14))
    assert len(run) == 2
    assert len({step.before.activation_bytes for step in plan.steps[:6]}) == 1
    assert plan.steps[5].before == costs.conv_cost(plan.steps[5].site)


def test_planning_computes_no_parametrised_weight() -> None:
    model = nn.Sequential(spectral_norm(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 8, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = convswap.plan(model, "dcls", example_inputs=(3, 8, 8))
    assert plan.steps[0].before.activation_bytes is not None
    torch.testing.assert_close(
        model.state_dict(), before, rtol=0, atol=0
    )  # a step of the power iteration is in buffers
