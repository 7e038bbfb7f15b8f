from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convswap
from convswap.errors import NothingToSwapError, OptionError, UnknownNameError
from convswap.layers import (
    GuidedChannelWiseConv2d,
    GuidedConv2d,
    GuidedDepthWiseConv2d,
    GuidedLocalConv2d,
    HypernetConv2d,
    SeparableGuidedConv2d,
)
from convswap.plan import Step

from .models import as_if_trained, relative_error

TARGETS = {
    "guided": GuidedConv2d,
    "guided_local": GuidedLocalConv2d,
    "guided_channelwise": GuidedChannelWiseConv2d,
    "guided_pointwise": GuidedDepthWiseConv2d,
    "guided_separable": SeparableGuidedConv2d,
}
every_target = pytest.mark.parametrize("to", TARGETS)
COMBINATIONS = [
    *((to, options) for to in TARGETS for options in ({}, {"generate_bias": True})),
    *(("guided_local", {"rank": 3, "generate_bias": generate_bias}) for generate_bias in (False, True)),
]


class Varied(nn.Sequential):
    """One convolution of each kind, with what is seldom used, on images of 12×10."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.depthwise = nn.Conv2d(8, 16, (3, 2), padding=(2, 1), dilation=(2, 1), groups=8)
        self.pointwise = nn.Conv2d(16, 8, 1, groups=2)
        self.grouped = nn.Conv2d(8, 4, 3, padding=1, groups=2, padding_mode="reflect")
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()


SIZE = (3, 12, 10)


def varied() -> nn.Module:
    torch.manual_seed(0)
    return as_if_trained(Varied()).double()


def steps_of(to: str, model: nn.Module | None = None, **options: Any) -> dict[str, Step]:
    options = {"example_inputs": SIZE, **options}
    return {step.site.name: step for step in convswap.plan(varied() if model is None else model, to, **options)}


# Which convolutions, and why not ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "swapped"),
    [
        ("guided", {"dense", "depthwise", "pointwise", "grouped"}),
        ("guided_local", {"dense", "depthwise", "pointwise", "grouped"}),
        ("guided_channelwise", {"depthwise"}),
        ("guided_pointwise", {"pointwise"}),
        ("guided_separable", {"dense", "depthwise", "grouped"}),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_what_is_converted_computes_the_same(to: str, swapped: set[str], training: bool) -> None:
    model = varied().train(training)
    new = convswap.convert(model, to, example_inputs=SIZE)
    made = {name for name, module in new.named_modules() if isinstance(module, HypernetConv2d)}
    assert made == swapped == {step.name for step in convswap.report(new).swaps}
    assert all(type(new.get_submodule(name).conv) is TARGETS[to] for name in made)
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    if to != "guided_separable":
        assert relative_error(copy.deepcopy(new)(x), copy.deepcopy(model)(x)) < 1e-10
    assert new.training == training
    assert convswap.verify(model, new, x).passed
    assert type(model.dense) is nn.Conv2d


def test_fidelity() -> None:
    for to in TARGETS:
        promised = {name: step.fidelity for name, step in steps_of(to).items() if step.action == "swap"}
        approximate = {"dense", "depthwise", "grouped"} if to == "guided_separable" else set()
        assert {name for name, fidelity in promised.items() if fidelity == "approximate"} == approximate
        assert set(promised.values()) <= {"exact", "approximate"}
    model = nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 6, (1, 3), groups=3)).double()
    new = convswap.convert(model, "guided_separable", max_kernel_bytes=None)
    assert [step.fidelity for step in convswap.report(new).swaps] == ["exact", "approximate"]
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    assert relative_error(new[0](x), model[0](x)) < 1e-10


@pytest.mark.parametrize(
    ("to", "name", "words"),
    [
        ("guided_channelwise", "dense", "it mixes channels (groups=1), which a kernel for each channel does not"),
        ("guided_channelwise", "grouped", "it mixes channels (groups=2)"),
        ("guided_pointwise", "dense", 'it is 3×3, not 1×1: use to="guided"'),
        ("guided_pointwise", "depthwise", "it is 3×2, not 1×1"),
        ("guided_separable", "pointwise", 'it is 1×1, so there are no taps to separate'),
    ],
)  # fmt: skip
def test_reasons_name_the_target_to_use(to: str, name: str, words: str) -> None:
    step = steps_of(to)[name]
    assert step.action == "keep"
    assert words in step.reason
    assert 'use to="guided' in step.reason


@every_target
def test_other_dimensions_are_kept(to: str) -> None:
    for conv, words in ((nn.Conv1d(2, 2, 1, groups=2), "1 spatial axis"), (nn.Conv3d(2, 2, 3), "3 spatial axes")):
        with pytest.raises(NothingToSwapError, match=f'it has {words}, and guided layers have 2: use to="dynamic"'):
            convswap.plan(nn.Sequential(conv), to)


@every_target
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guide": ""}, "guide must be 'input', 'input:<name>' or the name of a module or node, got ''"),
        ({"guide": "input:"}, "guide must name an input of the model as in 'input:depth', got 'input:'"),
        ({"guide_channels": 0}, "guide_channels must be at least 1, got 0"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"max_kernel_bytes": 0}, "max_kernel_bytes must be at least 1, got 0"),
        ({"hypernet": "no name"}, 'hypernet must be a function, or its name as "package.module:function", got \'no'),
        ({"hypernet": 3}, "must be a function or str or None, got 3"),
        ({"hidden": 2.5}, "must be a whole number, got 2.5"),
    ],
)
def test_values_that_are_not_allowed(to: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as told:
        convswap.plan(varied(), to, **options)
    assert words in str(told.value)


def test_rank_is_an_option_of_local_alone() -> None:
    with pytest.raises(OptionError, match="rank must be at least 1, got 0"):
        convswap.plan(varied(), "guided_local", rank=0)
    with pytest.raises(UnknownNameError, match="target 'guided' has no option 'rank'"):
        convswap.plan(varied(), "guided", rank=2)


def test_guide_channels_of_its_own_input() -> None:
    resolved = {name: step.options.guide_channels for name, step in steps_of("guided").items()}
    assert resolved == {"dense": 3, "depthwise": 8, "pointwise": 16, "grouped": 8}
    steps = steps_of("guided", guide_channels=8)
    assert {name for name, step in steps.items() if step.action == "swap"} == {"depthwise", "grouped"}
    assert "guide_channels is 8, and its guide is its own input, which has 3 channels" in steps["dense"].reason


# How much they generate -------------------------------------------------------------------------------------------


def generated(pair: HypernetConv2d, x: Tensor) -> int:
    """Numbers that the hypernet returns for one sample, counted; of low rank with what is made of them to be mixed."""
    counted = []

    def count(module: nn.Module, args: Any, output: Any) -> None:
        tensors = output if pair.hypernet.outputs > 1 else (output,)
        for value in tensors:
            if isinstance(value, tuple):  # each coefficient is for a kernel, which gives all outputs
                counted.extend([value[1]] * (1 + pair.out_channels))
            else:
                counted.append(value)

    handle = pair.hypernet.register_forward_hook(count)
    pair(x)
    handle.remove()
    return sum(tensor[0].numel() for tensor in counted)


@pytest.mark.parametrize(("to", "options"), COMBINATIONS)
def test_kernel_bytes_are_those_of_what_is_generated(to: str, options: dict[str, Any]) -> None:
    model = varied()
    new = convswap.convert(model, to, example_inputs=SIZE, **options).eval()
    planned = {step.name: step.after.kernel_bytes for step in convswap.report(new).swaps}
    inputs: dict[str, Tensor] = {}
    for name in planned:
        new.get_submodule(name).register_forward_pre_hook(lambda _, args, n=name: inputs.update({n: args[0]}))
    new(torch.randn(1, *SIZE, dtype=torch.float64))
    assert planned == {name: 8 * generated(new.get_submodule(name), x) for name, x in inputs.items()}


def test_dynamic_generates_a_kernel_and_dcls_and_plain_convolutions_none() -> None:
    dynamic = steps_of("dynamic", where="depthwise")["depthwise"]
    assert dynamic.after.kernel_bytes == 8 * varied().depthwise.weight.numel()
    assert dynamic.before.kernel_bytes == 0
    assert steps_of("dynamic", where="depthwise")["dense"].after.kernel_bytes == 0
    assert steps_of("dcls", where="dense")["dense"].after.kernel_bytes == 0


class Twice(nn.Module):
    """Calls a convolution at two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3)) + self.conv(x[..., ::2, ::2]).mean((2, 3))


def test_all_calls_count_and_the_largest_is_limited() -> None:
    each = 4 * 3 * 9 * 4
    step = steps_of("guided_local", Twice(), example_inputs=(3, 8, 8))["conv"]
    assert step.after.kernel_bytes == each * 64 + each * 16
    assert steps_of("guided", Twice(), example_inputs=(3, 8, 8))["conv"].after.kernel_bytes == 2 * each
    limit = each * 64
    assert steps_of("guided_local", Twice(), example_inputs=(3, 8, 8), max_kernel_bytes=limit)["conv"].action == "swap"
    with pytest.raises(NothingToSwapError, match=r"its kernels would take 27648 B .* is 27647 B:"):
        steps_of("guided_local", Twice(), example_inputs=(3, 8, 8), max_kernel_bytes=limit - 1)


@every_target
def test_limit_is_kept_to_the_byte(to: str) -> None:
    largest = max(step.after.kernel_bytes for step in steps_of(to).values() if step.action == "swap")
    swapped = {name for name, step in steps_of(to).items() if step.action == "swap"}
    assert {n for n, s in steps_of(to, max_kernel_bytes=largest).items() if s.action == "swap"} == swapped
    if len(swapped) == 1:
        with pytest.raises(NothingToSwapError, match="its kernels would take"):
            steps_of(to, max_kernel_bytes=largest - 1)
    else:
        steps = steps_of(to, max_kernel_bytes=largest - 1)
        (kept,) = swapped - {name for name, step in steps.items() if step.action == "swap"}
        assert "its kernels would take" in steps[kept].reason


def test_what_is_too_large_says_how_large_and_what_to_do() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 8, 1))
    plan = convswap.plan(model, "guided_local", example_inputs=(64, 56, 56))
    assert plan.steps[0].reason == (
        "its kernels would take 441 MiB for each sample (116 M numbers), and max_kernel_bytes is 256 MiB: choose a "
        "(smaller) rank, or convolutions of fewer channels, or raise max_kernel_bytes"
    )
    assert plan.steps[1].action == "swap"
    low = convswap.plan(model, "guided_local", "0", example_inputs=(64, 56, 56), rank=8).steps[0]
    assert (low.action, low.after.kernel_bytes) == ("swap", 4 * 9 * (64 + 1) * 56 * 56)
    with pytest.raises(
        NothingToSwapError, match=r"what its 9 kernels give at each pixel, .*, would take 7 MiB for each"
    ):
        convswap.plan(model, "guided_local", "0", example_inputs=(64, 56, 56), rank=8, max_kernel_bytes=2**20)
    all_of_it = convswap.plan(model, "guided_local", "0", example_inputs=(64, 56, 56), max_kernel_bytes=None)
    assert all_of_it.steps[0].after.kernel_bytes == 4 * 64 * 9 * 64 * 56 * 56
    with torch.device("meta"):
        wide = nn.Sequential(nn.Conv2d(2**14, 2**14, 3))
    with pytest.raises(NothingToSwapError, match=r"its kernels would take 9 GiB for each sample \(2\.42 G numbers\)"):
        convswap.plan(wide, "guided")


def test_unknown_shapes() -> None:
    per_sample = {"guided", "guided_pointwise"}
    for to in TARGETS:
        if to in per_sample:
            plan = convswap.plan(varied(), to)
            assert all(step.after.kernel_bytes > 0 for step in plan.swaps)
            continue
        with pytest.raises(
            NothingToSwapError, match=r"whose size is unknown: give example_inputs that reach it, or max"
        ):
            convswap.plan(varied(), to)
        unlimited = convswap.plan(varied(), to, max_kernel_bytes=None)
        assert {step.after.kernel_bytes for step in unlimited.swaps} == {None}
        assert all(step.after.parameters > 0 for step in unlimited.swaps)


def test_planning_allocates_no_weights() -> None:
    with torch.device("meta"):
        huge = nn.Sequential(nn.Conv2d(2**17, 2**17, 3))  # 600 GB
    plan = convswap.plan(huge, "guided", max_kernel_bytes=None)
    assert plan.steps[0].after.parameters > 9 * 2**34 * 9  # a kernel for each of 8 features, and one that is carried
