from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import convswap
from convswap.costs import known
from convswap.errors import OptionError
from convswap.layers import PatchDynamicConv2d

from .models import as_if_trained, relative_error

SIZE = (3, 12, 10)


class Varied(nn.Sequential):
    """One convolution of each kind on images of 12×10, and one over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 16, (3, 2), padding=(2, 1), dilation=(2, 1), groups=8)
        self.pointwise = nn.Conv2d(16, 8, 1, groups=2)
        self.reflected = nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect")
        self.flat = nn.Flatten(2)
        self.sequence = nn.Conv1d(4, 4, 3)


def varied() -> nn.Module:
    torch.manual_seed(0)
    return as_if_trained(Varied()).double()


@pytest.mark.parametrize("training", [False, True])
def test_what_is_converted_computes_the_same(training: bool) -> None:
    model = varied().train(training)
    new = convswap.convert(model, "hybrid", example_inputs=SIZE, hidden=3)
    swapped = {name for name, module in new.named_modules() if isinstance(module, PatchDynamicConv2d)}
    assert swapped == {"dense", "depthwise", "pointwise", "reflected"}
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    assert relative_error(copy.deepcopy(new)(x), copy.deepcopy(model)(x)) < 1e-10
    assert new.training == training
    assert {step.fidelity for step in convswap.report(new).swaps} == {"exact"}
    assert convswap.verify(model, new, x).passed
    (kept,) = [step for step in convswap.report(new).steps if step.action == "keep"]
    assert kept.name == "sequence"
    assert kept.reason == 'it has 1 spatial axis, and hybrid layers have 2: use to="dynamic"'


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_trained_model_is_saved_and_loaded_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    new = convswap.convert(varied(), "hybrid", example_inputs=SIZE, hidden=3).train()
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    optimiser = torch.optim.Adam(new.parameters(), lr=0.01)
    for _ in range(2):
        optimiser.zero_grad()
        new(x).square().mean().backward()
        optimiser.step()
    new.to(dtype)
    path = tmp_path / "hybrid.safetensors"
    convswap.save(new, path)
    again = convswap.load(path, model=varied().float())
    state = again.state_dict()
    for name, value in new.state_dict().items():
        assert state[name].dtype == value.dtype, name
        assert torch.equal(state[name], value), name
    assert torch.equal(again.eval()(x.to(dtype)), new.eval()(x.to(dtype)))
    assert "dense.predictors.7.0.powers" in state
    assert {name.split(".", 1)[0] for name in convswap.new_parameters(new)} == {
        "dense", "depthwise", "pointwise", "reflected",
    }  # fmt: skip


def test_what_it_costs_is_what_it_takes() -> None:
    steps = {step.site.name: step for step in convswap.plan(varied(), "hybrid", example_inputs=SIZE, hidden=3)}
    new = convswap.convert(varied(), "hybrid", example_inputs=SIZE, hidden=3)
    cost = known(steps["dense"].cost_after)
    assert cost.parameters == sum(value.numel() for value in new.get_submodule("dense").parameters())
    pixels, outputs, hidden, features = 6 * 5, 8, 3, 27
    assert cost.multiply_adds == pixels * outputs * (features + 2 * hidden * features + hidden**2)
    assert cost.kernel_bytes == 0


def test_same_padding_as_tensorflow_is_kept() -> None:
    torch.manual_seed(0)
    model = timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=4).eval().double()
    new = convswap.convert(model, "hybrid", where=["conv_stem", "blocks.0.*"], hidden=2, example_inputs=(3, 33, 34))
    assert new.conv_stem.padding == "same"
    x = torch.randn(1, 3, 33, 34, dtype=torch.float64)
    assert relative_error(new(x), model(x)) < 1e-10


def test_predictors_that_are_too_large_are_kept_with_a_reason() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 64, 3))
    (small, large) = convswap.plan(model, "hybrid", example_inputs=SIZE, max_parameter_bytes=100_000)
    assert small.action == "swap"
    assert large.action == "keep"
    assert "its 64 predictors, for patches of 36 numbers, would have 401 KiB" in str(large.reason)
    assert "97.7 KiB" in str(large.reason)
    steps = convswap.plan(model, "hybrid", example_inputs=SIZE, max_parameter_bytes=None)
    assert [step.action for step in steps] == ["swap", "swap"]
    needed = known(steps.steps[1].cost_after).parameter_bytes - 4 * (64 * 36 + 64)
    (_, exact) = convswap.plan(model, "hybrid", example_inputs=SIZE, max_parameter_bytes=needed)
    (_, less) = convswap.plan(model, "hybrid", example_inputs=SIZE, max_parameter_bytes=needed - 1)
    assert (exact.action, less.action) == ("swap", "keep")


@pytest.mark.parametrize("name", ["hidden", "max_parameter_bytes"])
def test_options_are_checked(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name} must be at least 1, got 0"):
        convswap.plan(varied(), "hybrid", **{name: 0})


def test_shared_convolutions_stay_shared() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    second.weight = first.weight
    new = convswap.convert(nn.Sequential(first, second), "hybrid", example_inputs=SIZE)
    assert new[0].weight is new[1].weight
    assert new[0].bias is not new[1].bias
