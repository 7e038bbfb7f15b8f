"""Models with guided layers: hypernets of one's own, files, ties, and whole networks."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import convswap
from convswap import Swap
from convswap.errors import ConvswapError, NothingToSwapError, OptionError
from convswap.input_files import read_input
from convswap.layers import GuidedChannelWiseConv2d, GuidedConv2d, HypernetConv2d
from convswap.options import code_named_by
from examples import samples

from .models import library_model, relative_error
from .test_guided_targets import COMBINATIONS, SIZE, every_target, varied


def body(channels: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, hidden, 3, padding=1), nn.Tanh())


def local_body() -> Callable[[int, int], nn.Module]:
    def inner(channels: int, hidden: int) -> nn.Module:
        return body(channels, hidden)

    return inner


NAME = "tests.test_guided_models:body"


@every_target
def test_everything_moves_in_two_steps(to: str) -> None:
    for hypernet in (None, body):
        new = convswap.convert(varied(), to, example_inputs=SIZE, hypernet=hypernet, generate_bias=True)
        start = {name: parameter.detach().clone() for name, parameter in new.named_parameters()}
        optimiser = torch.optim.SGD(new.parameters(), lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            new(torch.randn(4, *SIZE, dtype=torch.float64)).square().sum().backward()
            optimiser.step()
        new_ones = convswap.new_parameters(new)
        assert {name.split(".")[1] for name in new_ones} == {"hypernet"}
        for name, parameter in new.named_parameters():
            if name in new_ones or ".hypernet." in name:
                assert (parameter - start[name]).abs().max() > 0, name


@pytest.mark.parametrize("hypernet", [body, NAME])
def test_a_hypernet_of_ones_own(hypernet: Callable[[int, int], nn.Module] | str, tmp_path: Path) -> None:
    model = varied()
    new = convswap.convert(model, "guided", "dense", hypernet=hypernet, hidden=5)
    (convolution,) = [module for module in new.dense.modules() if isinstance(module, nn.Conv2d)]
    assert (convolution.in_channels, convolution.out_channels) == (3, 5)
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    assert relative_error(new.eval()(x), model.eval()(x)) < 1e-10
    (step,) = convswap.report(new).recipe.steps
    assert step.options["hypernet"] == NAME
    assert code_named_by(step.target, step.options) == NAME
    again = convswap.apply(json.loads(json.dumps(convswap.report(new).recipe.to_dict())), model, trust_source=True)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in new.state_dict().items())
    assert NAME in convswap.report(new).to_html()


def test_a_hypernet_without_a_name_is_for_this_process_alone(tmp_path: Path) -> None:
    model = varied()
    new = convswap.convert(model, "guided", "dense", hypernet=lambda channels, hidden: body(channels, hidden))
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    assert relative_error(new.eval()(x), model.eval()(x)) < 1e-10
    assert "&lt;lambda&gt; of tests.test_guided_models" in convswap.report(new).to_html()
    assert relative_error(convswap.apply(convswap.report(new).recipe, model).eval()(x), model.eval()(x)) < 1e-10
    with pytest.raises(
        ConvswapError, match=r"the hypernet of 'dense' is .*<lambda> of .*, which cannot be written down"
    ):
        convswap.save(new, tmp_path / "new.safetensors")
    assert not list(tmp_path.iterdir())
    assert convswap.report(copy.deepcopy(new)).recipe == convswap.report(new).recipe
    assert convswap.apply(convswap.report(copy.deepcopy(new)).recipe, model)
    unpickled = pickle.loads(pickle.dumps(convswap.convert(model, "guided", "dense", hypernet=local_body())))
    assert relative_error(unpickled.eval()(x), model(x)) < 1e-10
    with pytest.raises(
        OptionError, match=r"hypernet must be a function, or its name .*, got 'local_body.<locals>.inner of"
    ):
        convswap.apply(convswap.report(unpickled).recipe, model, trust_source=True)
    plan = convswap.plan(model, "guided", "dense", hypernet=lambda channels, hidden: body(channels, hidden))
    assert json.loads(convswap.report(plan).to_json())["steps"][0]["options"]["hypernet"].endswith(
        "<lambda> of tests.test_guided_models"
    )


@pytest.mark.parametrize(("to", "options"), [*COMBINATIONS, ("guided", {"hypernet": body})])
def test_files(to: str, options: dict[str, Any], tmp_path: Path) -> None:
    new = convswap.convert(varied(), to, example_inputs=SIZE, **options).eval()
    convswap.save(new, tmp_path / "new.safetensors")
    if "hypernet" in options:
        with pytest.raises(ConvswapError, match=f"{NAME}, which would be imported"):
            convswap.load(tmp_path / "new.safetensors", model=varied())
    loaded = convswap.load(tmp_path / "new.safetensors", model=varied().eval(), trust_source="hypernet" in options)
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    assert torch.equal(loaded(x), new(x))
    assert convswap.report(loaded) == convswap.report(new)


@pytest.mark.parametrize(
    ("hypernet", "words"),
    [
        ("tests.no_such_module:f", "there is no module 'tests.no_such_module'"),
        ("tests.test_guided_models:bodi", "has no function 'bodi'. Did you mean 'body'"),
        (lambda channels, hidden: 3, "int"),
        (lambda channels: nn.Identity(), "takes 1 positional argument"),
    ],
)
def test_hypernets_that_cannot_be_made(hypernet: Any, words: str) -> None:
    with pytest.raises(ConvswapError) as told:
        convswap.convert(varied(), "guided", "dense", hypernet=hypernet)
    assert words in str(told.value)


def test_a_guide_from_elsewhere_is_told_to_the_layer() -> None:
    target = convswap.targets.get_target("guided_channelwise")
    conv = nn.Conv2d(4, 4, 3, groups=4, padding=1)
    options = target.options(guide="input", guide_channels=3)
    pair = target.build(conv, options, None)
    assert (pair.guide, pair.guide_channels) == ("input", 3)
    with pytest.raises(ValueError, match="unknown how many channels its guide 'input' has: give guide_channels"):
        target.build(conv, target.options(guide="input"), None)


# Ties ---------------------------------------------------------------------------------------------------------------


@every_target
def test_tied_convolutions_stay_tied(to: str) -> None:
    groups, size = (4, 3) if to == "guided_channelwise" else (1, 1) if to == "guided_pointwise" else (2, 3)
    made = lambda: nn.Conv2d(4, 4, size, padding="same", groups=groups)
    model = nn.Sequential(made(), nn.ReLU(), made(), made()).double()
    model[2].weight = model[0].weight
    model[3].bias = model[0].bias
    new = convswap.convert(model, to, example_inputs=(4, 8, 8))
    holders = [new[i].carried_parameters() for i in (0, 2, 3)]
    held = [{n: [m._parameters[own] for m, own in places] for n, places in of.items()} for of in holders]
    assert all(a is b for a, b in zip(held[0]["weight"], held[1]["weight"], strict=True))
    assert all(a is not b for a, b in zip(held[0]["weight"], held[2]["weight"], strict=True))
    assert held[0]["bias"][0] is held[2]["bias"][0]
    assert held[0]["bias"][0] is not held[1]["bias"][0]
    x = torch.randn(2, 4, 8, 8).double()
    assert convswap.verify(model, new, x).passed
    assert len(list(copy.deepcopy(new).parameters())) == len(list(new.parameters()))


@pytest.mark.parametrize("to", ["guided", "guided_local"])
def test_ties_across_groups_hold_where_the_kernel_is_carried_whole(to: str) -> None:
    model = across_groups()
    new = convswap.convert(model, to, ["1", "2"], example_inputs=(4, 8, 8), guide="0")
    ((one, name),), ((other, _),) = (new[i].carried_parameters()["weight"] for i in (1, 2))
    assert getattr(one, name) is getattr(other, name)
    x = torch.randn(2, 4, 8, 8).double()
    assert relative_error(new(x), model(x)) < 1e-10


def test_ties_across_groups_keep_what_would_be_factored_otherwise() -> None:
    with pytest.raises(NothingToSwapError, match=r"it shares parameters with [12]\.weight, which is"):
        convswap.plan(across_groups(), "guided_separable", ["1", "2"], example_inputs=(4, 8, 8), guide="0")
    plan = convswap.plan(across_groups(), "guided", example_inputs=(4, 8, 8))  # each by its own input
    assert [step.action for step in plan] == ["swap", "keep", "keep"]
    assert plan.steps[1].reason == "it shares parameters with 2.weight, which is not converted in the same way"


def across_groups() -> nn.Module:
    """Two convolutions with one weight, the second in two groups."""
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
    ).double()
    model[2].weight = model[1].weight
    return model


# Whole models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("photo", "category"),
    [("coffee", "espresso"), ("camera", "tripod"), ("motorcycle", "moped"), ("china", "palace")],
)
def test_real_weights_see_what_is_in_the_photos(
    converted: tuple[nn.Module, nn.Module], photo: str, category: str
) -> None:
    model, new = converted
    batch = read_input(model, samples.photo(photo))
    with torch.no_grad():
        expected, actual = model(batch), new(batch)
    categories = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    assert categories[int(actual.argmax())] == category
    assert (actual - expected).abs().max() <= 1e-4


@pytest.fixture(scope="module")
def converted() -> tuple[nn.Module, nn.Module]:
    """MobileNetV2 as it is, and with depthwise convolutions guided by pixel, the 1×1 ones by sample."""
    model = torchvision.models.mobilenet_v2()
    model.load_state_dict(torch.load(samples.mobilenet_v2_checkpoint(), weights_only=True))
    rules = [
        Swap(lambda site: site.depthwise, "guided_channelwise"),
        Swap(lambda site: site.module.kernel_size == (1, 1), "guided"),
    ]
    new = convswap.convert(model, rules)
    kinds = [type(module.conv) for module in new.modules() if isinstance(module, HypernetConv2d)]
    assert (kinds.count(GuidedChannelWiseConv2d), kinds.count(GuidedConv2d)) == (17, 34)
    return model.eval(), new.eval()


def test_resnet_made_separable_is_off_by_the_singular_values_that_were_discarded() -> None:
    model = library_model("torchvision:resnet18").eval()
    new = convswap.convert(model, "guided_separable", example_inputs=(3, 64, 64), verify=torch.randn(1, 3, 64, 64))
    made = convswap.report(new)
    assert len(made.swaps) == 17
    assert made.verification is not None
    errors = {check.name: check.relative_error for check in made.verification.layers}
    for step in made.swaps:
        weight = model.get_submodule(step.name).weight.detach().double()
        values = torch.linalg.svdvals(weight.transpose(0, 1).flatten(2))  # of outputs × taps, for each input channel
        discarded = values[:, 1:].norm().item()
        assert step.kernel_error is not None
        assert step.kernel_error.norm == pytest.approx(discarded, rel=1e-6)
        assert step.kernel_error.relative == pytest.approx(discarded / weight.norm().item(), rel=1e-6)
        assert math.isfinite(errors[step.name])
        assert f"{step.kernel_error.relative:.1e}" in str(made)
        assert f"{errors[step.name]:.1e}" in str(made)
    assert {step.name for step in made.keeps} == {f"layer{i}.0.downsample.0" for i in (2, 3, 4)}
