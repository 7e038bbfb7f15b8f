"""Reverting and freezing where numbers are not finite, what they cost, and many layers at once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import StdConv2d, create_conv2d
from torch import Tensor, nn

import convswap
from convswap.chosen_layers import chosen_layers
from convswap.errors import PatternError
from convswap.layers import PartialConv2d
from convswap.modules import within
from convswap.report import Report

from .growth import assert_linear
from .models import TwoConvs, as_if_trained

X = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
IMAGE = 9 * 9 * 8  # bytes of a channel


def converted(to: str, **options: Any) -> Any:
    return convswap.convert(as_if_trained(TwoConvs()).double().eval(), to, example_inputs=X[:1], **options)


def spoilt(model: Any) -> Any:
    with torch.no_grad():
        model.conv2.weight.fill_(math.nan)
    return model


@pytest.mark.parametrize("verb", ["frozen", "reverted"])
def test_nothing_finite_to_compare(verb: str) -> None:
    model = spoilt(converted("condconv"))
    made = convswap.freeze(model, X, mode="mean") if verb == "frozen" else convswap.revert(model, data=X)
    report = convswap.report(made)
    told: Any = (*report.freezings, *report.reversions)[0]
    assert [layer.error.compared for layer in told.layers] == [True, False]
    assert told.layers[1].error.greatest == told.layers[1].error.mean == told.output_error.greatest == math.inf
    shown, error = str(report), told.layers[0].error
    assert f"{verb} layers compared over 2 samples: greatest relative error {error.greatest:.1e}" in shown
    assert f"{verb} layers with nothing finite to compare over 2 samples: conv2" in shown
    assert f"{verb} model at the output: nothing finite was there to compare" in shown
    assert f"{told.layers[1].fidelity}, nothing to compare" in report.to_markdown()
    data = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert Report.from_dict(data) == report


class Empty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = PartialConv2d(3, 3, 3, padding=1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y[:0]


def test_an_output_of_no_values() -> None:
    (told,) = convswap.report(convswap.revert(Empty(), data=X)).reversions
    assert told.output_error is not None
    assert (told.output_error.greatest, told.output_error.compared) == (math.inf, False)
    assert told.layers[0].error is not None
    assert 0 < told.layers[0].error.greatest < 2


@pytest.mark.parametrize("name", ["weight", "P"])
def test_kernels_that_are_not_finite(name: str) -> None:
    model = converted("dcls")
    with torch.no_grad():
        getattr(model.conv2, name).fill_(math.nan)
    (kept,) = convswap.report(convswap.revert(model)).reversions[0].kept
    assert kept.reason.startswith("its weights or positions are not finite")


# What it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["revert", "freeze"])
def test_what_plain_convolutions_keep(verb: str) -> None:
    model = convswap.convert(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)).double(), "dcls", example_inputs=X[:1])
    made: Any = convswap.revert(model) if verb == "revert" else convswap.freeze(model)
    (step,) = convswap.report(made).swaps
    (found,) = convswap.plan(made, "condconv", example_inputs=X[:1]).steps
    assert step.after == found.before
    assert step.after.activation_bytes == 3 * IMAGE
    assert step.after.multiply_adds == 3 * 4 * 5 * 5 * made[0].weight[0, 0].numel()


@pytest.mark.parametrize(
    "conv",
    [
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        lambda: nn.Conv2d(3, 4, 3, padding="same"),
        lambda: create_conv2d(3, 4, 3, stride=2, padding="same"),
        lambda: StdConv2d(3, 4, 3, padding=1),
    ],
)
def test_what_is_not_claimed(conv: Any) -> None:
    """What was kept before included padded copies, or a weight that was made anew."""
    model = convswap.convert(nn.Sequential(conv()).double().eval(), "partial", example_inputs=X[:1])
    made = convswap.revert(model)
    (step,) = convswap.report(made).swaps
    (found,) = convswap.plan(made, "condconv", example_inputs=X[:1]).steps
    assert step.before.activation_bytes is not None
    assert step.after.activation_bytes is None
    assert step.after.multiply_adds == found.before.multiply_adds


# Which layers -----------------------------------------------------------------------------------------------------


def test_what_is_within_what() -> None:
    assert within("a.b.c", {"a.b"})
    assert within("a", {""})
    assert not within("a.bc", {"a.b"})
    assert not within("a.b", {"a.b", "b"})
    assert not within("", {""})


def test_many_layers_are_found_in_linear_time() -> None:
    def choose(number: int) -> Callable[[], object]:
        model = nn.Sequential(*(PartialConv2d(1, 1, 1, device="meta") for _ in range(number)))
        return lambda: chosen_layers(model, "*", "revert")

    assert_linear(choose, (50, 100, 200))


@pytest.mark.parametrize("verb", [convswap.revert, convswap.freeze])
def test_names_of_what_is_no_layer(verb: Any) -> None:
    model = convswap.convert(TwoConvs(), "dcls", "conv1")
    with pytest.raises(PatternError, match=r"but what is a plain convolution already \(conv2: Conv2d\)"):
        verb(model, where="conv2")
    with pytest.raises(PatternError, match="the where function chose none of the 1 layers"):
        verb(model, where=lambda site: site.kind == "Conv2d")


def test_what_functions_are_shown() -> None:
    model = converted("dcls")
    chosen = convswap.revert(model, where=lambda site: site.kind == "Dcls2d" and site.module.kernel_size == (3, 3))
    assert set(convswap.report(chosen).reverted()) == {"conv1", "conv2"}
    with pytest.raises(PatternError, match="a Dcls2d amounts to no plain convolution"):
        convswap.revert(model, where=lambda site: site.plain is not None)
