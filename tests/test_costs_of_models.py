"""What plans say that layers cost, against what converted models do."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convswap
from benchmarks.costs import build, compare, count
from convswap.costs import conv_cost
from convswap.layers.ops import _load
from convswap.layers.ops._load import load_kernels
from convswap.targets import all_targets

timm_layers: Any = importlib.import_module("timm.layers")

SIZE = (4, 20, 18)


class ManyKinds(nn.Module):
    """Convolutions of many geometries and classes, one called three times at two sizes, and one for training only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.grouped = nn.Conv2d(8, 16, 3, padding=(2, 1), dilation=(2, 1), groups=2)
        self.point = nn.Conv2d(16, 8, 1)
        self.strided_point = nn.Conv2d(8, 8, 1, stride=2)
        self.around = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.even = nn.Conv2d(8, 8, 2, padding="same")
        self.same = timm_layers.Conv2dSame(8, 8, 3, stride=2)
        self.same_depthwise = timm_layers.Conv2dSame(8, 8, 3, stride=2, groups=8)
        self.standardised = timm_layers.StdConv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.shared(self.first(x)))
        x = self.point(self.grouped(self.depthwise(x)))
        x = self.even(self.mirrored(self.around(x)))
        y = self.shared(self.strided_point(x))
        y = self.standardised(y) + self.same(x) + self.same_depthwise(x)
        return self.head(y).mean() + y.mean() if self.training else y.mean()


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    """They are compiled before anything is counted: whether that can be done is what plans go by."""
    load_kernels("cpu")


def planned(model: nn.Module, to: str, size: tuple[int, ...], **options: Any) -> Any:
    return convswap.plan(model, to, example_inputs=size, **options)


def check(model: nn.Module, plan: Any, size: tuple[int, ...], device: str = "cpu") -> None:
    inputs = torch.rand(1, *size, device=device, requires_grad=True)
    found = compare(model, inputs, plan, count(model, inputs))
    assert found.swaps == len(plan.swaps) > 0
    assert (found.parameters, found.multiply_adds) == (0, 0)
    assert found.activation_bytes == {}
    assert found.unknown == []


@pytest.mark.parametrize("to", sorted(all_targets()))
def test_costs_are_what_torch_counts_for_every_target(to: str) -> None:
    model = ManyKinds().eval()
    check(model, planned(model, to, SIZE), SIZE)


@pytest.mark.parametrize("to", ["dcls", "guided_local"])
def test_so_they_are_without_kernels(to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)).eval()
    before = [step.after.activation_bytes for step in planned(model, to, SIZE)] if load_kernels("cpu") else None
    monkeypatch.setenv("CONVSWAP_KERNELS", "off")
    monkeypatch.setattr(_load, "_tried", {})  # nothing has been asked for yet
    plan = planned(model, to, SIZE)
    check(model, plan, SIZE)
    assert [step.after.activation_bytes for step in plan] != before
    monkeypatch.setattr(_load, "_tried", {"cpu": "it could not be compiled"})
    monkeypatch.setenv("CONVSWAP_KERNELS", "auto")
    assert planned(model, to, SIZE).steps[1].after == plan.steps[1].after


@pytest.mark.parametrize(
    ("to", "options"),
    [
        ("dcls", {"version": "gauss", "dilated_kernel_size": 7}),
        ("dcls", {"version": "max", "kernel_count": 4}),
        ("dcls", {"version": "v0", "share_positions": "group"}),
        ("dynamic", {"kernels": 3, "convert_first": True}),
        ("odconv", {"kernels": 2, "convert_first": True}),
        ("hybrid", {"hidden": 5}),
        ("padding_free", {"order": 1, "train_edge_kernel": True}),
        ("guided", {"guide": "input"}),
    ],
)
def test_so_they_are_with_options(to: str, options: dict[str, Any]) -> None:
    model = ManyKinds().eval()
    check(model, planned(model, to, SIZE, **options), SIZE)


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("torchvision:squeezenet1_1", "hybrid"),
        ("torchvision:squeezenet1_1", "dynamic"),
        ("timm:tf_mobilenetv3_small_minimal_100", "dcls"),
    ],
)
def test_so_they_are_in_models_of_libraries(name: str, to: str) -> None:
    model = build(name, "meta")
    check(model, planned(model, to, (3, 64, 64)), (3, 64, 64), "meta")


@pytest.mark.parametrize("to", ["dynamic", "dcls", "padding_free"])
@pytest.mark.parametrize("dims", [1, 3])
def test_so_they_are_on_one_axis_and_on_three(to: str, dims: int) -> None:
    kind: Any = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    model = nn.Sequential(kind(4, 8, 3, padding=1), kind(8, 8, 3, stride=2, padding=1, groups=8)).eval()
    size = (4, *(9, 8, 7)[:dims])
    check(model, planned(model, to, size), size)


def test_convolutions_as_they_are() -> None:
    model = ManyKinds().eval()
    trace = convswap.trace(model, SIZE)
    names = [site.name for site in trace]
    counted = count(model, torch.rand(1, *SIZE, requires_grad=True), names)
    run = [site for site in trace if not site.training_only]
    assert {site.name for site in trace} - {site.name for site in run} == {"head"}
    assert {site.name: conv_cost(site).activation_bytes for site in run} == counted.kept
    assert 2 * sum(site.multiply_adds for site in run) == counted.flops


def test_what_training_alone_runs_is_told_for_one_sample_too() -> None:
    head = convswap.trace(ManyKinds().eval(), SIZE)["head"]
    assert head.training_only
    assert conv_cost(head).multiply_adds == 8 * 3 * 5 * 5
    assert conv_cost(head).activation_bytes == 4 * 8 * 5 * 5


@pytest.mark.parametrize("to", ["dynamic", "dcls", "guided"])
def test_they_are_those_of_one_sample_whatever_the_batch(to: str) -> None:
    model = ManyKinds().eval()
    one, four = (convswap.plan(model, to, example_inputs=torch.rand(batch, *SIZE)) for batch in (1, 4))
    for step, other in zip(one, four, strict=True):
        assert step.before == other.before
        assert step.after == other.after


def test_a_forward_of_the_users_own_is_asked_and_not_guessed() -> None:
    class Twice(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input * self.weight.mean())

    class ByNumbers(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input if bool(self.weight.sum() > 0) else -input)

    model = nn.Sequential(Twice(4, 4, 3), ByNumbers(4, 4, 3), nn.Conv2d(4, 4, 3))
    inputs = torch.rand(1, *SIZE, requires_grad=True)
    sites = convswap.trace(model, inputs).sites
    counted = count(model, inputs, ["0", "1", "2"]).kept
    known = {site.name: conv_cost(site).activation_bytes for site in sites}
    assert counted["0"] > 4 * 4 * 20 * 18  # more than its input
    assert known["0"] == counted["0"]
    assert known["1"] is None


def test_without_shapes_there_are_no_costs_but_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    for step in convswap.plan(model, "condconv"):
        assert (step.before.multiply_adds, step.after.multiply_adds) == (None, None)
        assert (step.before.activation_bytes, step.after.activation_bytes) == (None, None)
        assert step.after.parameters > step.before.parameters > 0
