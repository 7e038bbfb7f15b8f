from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import convswap
from convswap.errors import ConvswapError
from convswap.kernel_errors import KernelError
from convswap.report import Report

from .models import TwoConvs, as_if_trained
from .test_report import forms


def impulse_response(layer: nn.Module, size: int) -> torch.Tensor:
    """The kernel of a dense layer as it acts: what each input channel's impulse becomes, turned round."""
    channels = layer.in_channels
    impulses = torch.zeros(channels, channels, size, size, dtype=torch.float64)
    impulses[range(channels), range(channels), size // 2, size // 2] = 1
    bias = 0 if layer.bias is None else layer.bias[:, None, None]
    return (layer(impulses) - bias).transpose(0, 1).flip(2, 3)


@pytest.mark.parametrize(
    ("conv", "options"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), {"version": "gauss"}),
        (nn.Conv2d(3, 4, 3, padding=1), {"kernel_count": 4}),
        (nn.Conv2d(2, 2, (3, 5), padding=(2, 4), dilation=(2, 2), bias=False), {"version": "gauss", "kernel_count": 7}),
    ],
)
def test_kernel_error_is_that_of_the_impulse_response(conv: nn.Conv2d, options: dict[str, object]) -> None:
    model = nn.Sequential(conv).double()
    new = convswap.convert(model, "dcls", **options)
    (step,) = convswap.report(new).swaps
    assert step.fidelity == "approximate"
    assert step.kernel_error is not None
    with torch.no_grad():
        distance = (impulse_response(new[0], 31) - impulse_response(model[0], 31)).norm().item()
    assert distance > 1e-4
    assert step.kernel_error.norm == pytest.approx(distance, rel=1e-6)
    assert step.kernel_error.relative == pytest.approx(distance / conv.weight.norm().item(), rel=1e-6)


def test_only_what_approximates_has_one() -> None:
    model = as_if_trained(TwoConvs())
    assert [step.kernel_error for step in convswap.report(convswap.convert(model, "dcls")).swaps] == [None, None]
    plan = convswap.plan(model, "dcls", version="gauss")
    assert [step.kernel_error for step in convswap.report(plan).swaps] == [None, None]
    assert all(step.kernel_error for step in convswap.report(convswap.apply(plan, model)).swaps)
    with torch.device("meta"):
        empty = TwoConvs()
    assert not any(s.kernel_error for s in convswap.report(convswap.convert(empty, "dcls", version="gauss")).swaps)


def test_a_kernel_of_zeros_has_a_distance_and_no_ratio() -> None:
    model = TwoConvs()
    nn.init.zeros_(model.conv1.weight)
    made = convswap.report(convswap.convert(model, "dcls", "conv1", version="gauss"))
    assert made.swaps[0].kernel_error == KernelError(0.0, 0.0)


@pytest.fixture(scope="module")
def made() -> Report:
    torch.manual_seed(0)
    new = convswap.convert(TwoConvs(), "dcls", "conv2", version="gauss", example_inputs=(3, 8, 8), verify=(3, 8, 8))
    return convswap.report(new)


def test_there_and_back(made: Report) -> None:
    assert Report.from_dict(json.loads(made.to_json())) == made
    assert set(made.to_dict()["steps"][1]["kernel_error"]) == {"norm", "relative"}


def test_every_form_has_it_beside_the_error_of_the_output(made: Report) -> None:
    (step,) = made.swaps
    assert step.kernel_error is not None
    assert made.verification is not None
    distance, error = f"{step.kernel_error.relative:.1e}", f"{made.verification.layers[0].relative_error:.1e}"
    assert distance != error
    without = replace(made, steps=tuple(replace(s, kernel_error=None) for s in made.steps))
    for shown, bare in zip(forms(made), forms(without), strict=True):
        assert "kernel error" in shown
        assert "kernel error" not in bare
        assert distance not in bare
        row = next(line for line in shown.splitlines() if distance in line)
        assert error in row.partition(distance)[2]


@pytest.mark.parametrize(
    "damage", [3, {}, {"norm": 1.0}, {"norm": "1", "relative": 1.0}, {"norm": 1, "relative": None}]
)
def test_damaged_ones_are_refused(made: Report, damage: object) -> None:
    data = made.to_dict()
    data["steps"][1]["kernel_error"] = damage
    with pytest.raises(ConvswapError, match="the report is damaged"):
        Report.from_dict(data)
