from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import convswap
from convswap.layers import HypernetConv2d
from convswap.layers.ops._load import kernels_loaded
from convswap.report import Report

from .models import TwoConvs
from .test_guided_targets import COMBINATIONS, SIZE, TARGETS, varied
from .test_report import forms


def counted(model: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *SIZE, dtype=torch.float64))
    return counter.get_total_flops()


@pytest.mark.parametrize(("to", "options"), COMBINATIONS)
def test_multiply_adds_of_guided_layers_are_what_torch_counts(to: str, options: dict[str, Any]) -> None:
    if not kernels_loaded("cpu"):
        pytest.skip("without kernels there are no ops to count")
    model = varied().eval()
    plan = convswap.plan(model, to, example_inputs=SIZE, **options)
    new = convswap.apply(plan, model).eval()
    assert 2 * sum(step.before.multiply_adds for step in plan) == counted(model)
    assert 2 * sum(step.after.multiply_adds for step in plan) == counted(new)
    added = sum(p.numel() for p in new.parameters()) - sum(p.numel() for p in model.parameters())
    assert added == sum(step.after.parameters - step.before.parameters for step in plan)


@pytest.mark.parametrize("to", TARGETS)
def test_what_is_kept_for_the_backward_pass_has_the_kernels_in_it(to: str) -> None:
    for step in convswap.plan(varied(), to, example_inputs=SIZE).swaps:
        assert step.after.activation_bytes >= step.after.kernel_bytes + step.before.activation_bytes


def test_a_guide_from_elsewhere_is_counted_at_its_own_channels() -> None:
    of_guide = {
        channels: convswap.plan(
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4, padding=1)),
            *("guided_channelwise", "1"),
            example_inputs=(4, 8, 8),
            guide="0" if channels == 4 else "input:guide",
            guide_channels=channels,
        )
        .steps[1]
        .after
        for channels in (4, 6)
    }
    assert of_guide[6].parameters - of_guide[4].parameters == 2 * 8
    assert of_guide[6].multiply_adds - of_guide[4].multiply_adds == 2 * 8 * 64
    assert of_guide[6].kernel_bytes == of_guide[4].kernel_bytes == 4 * 4 * 9 * 64


def test_costs_are_found_out_once_and_copied_as_numbers() -> None:
    after = convswap.plan(varied(), "guided", "dense", example_inputs=SIZE).steps[0].cost_after
    for copied in (copy.deepcopy(after), pickle.loads(pickle.dumps(after))):
        assert copied == after
        assert copied.kernel_bytes == 8 * 8 * 3 * 9


def test_parts_of_a_sample_count_each() -> None:
    class InQuarters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x.unflatten(3, (4, -1)).movedim(3, 1).flatten(0, 1))

    step = convswap.plan(InQuarters(), "guided", example_inputs=(3, 8, 32)).steps[0]
    assert step.after.kernel_bytes == 4 * (4 * 4 * 3 * 9)


# In reports ---------------------------------------------------------------------------------------------------------


def test_reports_tell_kernel_bytes_where_any_are_generated() -> None:
    made = convswap.report(convswap.plan(TwoConvs(), "dynamic"))
    assert made.total("before").kernel_bytes == 0
    assert made.total("after").kernel_bytes == math.prod((4, 8, 8, 9))
    for shown in forms(made):
        text = " ".join(shown.split())
        assert text.count("kernel bytes per sample") == 2  # in the table of layers, and in all
        assert "2.25 KiB" in text
    for shown in forms(convswap.report(convswap.plan(TwoConvs(), "dcls"))):
        assert "kernel bytes" not in shown


def test_reports_of_before_still_load() -> None:
    made = convswap.report(convswap.convert(TwoConvs(), "dynamic", example_inputs=(3, 8, 8)))
    data = json.loads(made.to_json())
    for step in data["steps"]:
        del step["before"]["kernel_bytes"], step["after"]["kernel_bytes"], step["kernel_error"]
    loaded = Report.from_dict(data)
    assert {step.after.kernel_bytes for step in loaded.steps} == {None}
    assert loaded.steps[1].after.activation_bytes == made.steps[1].after.activation_bytes
    for shown in forms(loaded):
        assert "kernel bytes" not in shown


def test_unknown_ones_are_shown_as_unknown() -> None:
    made = convswap.report(
        convswap.plan(
            varied(),
            [convswap.Swap("dense", "guided"), convswap.Swap("grouped", "guided_local", max_kernel_bytes=None)],
        )
    )
    row = next(line for line in made.to_markdown().splitlines() if "grouped" in line)
    assert row.endswith("| ? |")


def test_layers_tell_the_numbers_of_one_sample() -> None:
    new = convswap.convert(varied(), "guided_local", "dense", example_inputs=SIZE)
    assert isinstance(new.dense, HypernetConv2d)
    assert new.dense.generated_numbers((12, 10)) == 8 * 3 * 9 * 6 * 5
