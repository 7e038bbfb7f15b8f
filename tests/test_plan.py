from __future__ import annotations

import copy
import importlib

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

import convswap
from convswap import Swap
from convswap.errors import ConvswapError, NothingToSwapError, OptionError, PatternError, UnknownNameError
from convswap.layers import DclsLayer
from convswap.sites import ConvSite
from convswap.targets import registry
from convswap.targets.dcls import Dcls, DclsOptions

from .models import TwoConvs, library_model

timm = importlib.import_module("timm")


def actions(plan: convswap.Plan) -> dict[str, str | None]:
    return {step.site.name: step.target for step in plan}


def test_every_site_gets_a_step() -> None:
    plan = convswap.plan(torchvision.models.resnet18(), to="dynamic", where="layer1.*")
    assert len(plan) == 20
    assert {step.site.name for step in plan.swaps} == {f"layer1.{i}.conv{j}" for i in (0, 1) for j in (1, 2)}
    assert {step.reason for step in plan.keeps} == {"not chosen by where"}


def test_the_first_rule_that_matches_decides() -> None:
    rules = [Swap("conv2", "dcls", version="gauss"), Swap("*", "dynamic", kernels=2, convert_first=True)]
    plan = convswap.plan(TwoConvs(), rules)
    assert actions(plan) == {"conv1": "dynamic", "conv2": "dcls"}
    assert plan.steps[0].options.kernels == 2
    assert plan.steps[1].fidelity == "approximate"


def test_rules_and_loose_options_do_not_mix() -> None:
    with pytest.raises(ConvswapError, match="belong into the Swap rules"):
        convswap.plan(TwoConvs(), Swap("*", "dcls"), kernels=3)
    with pytest.raises(ConvswapError, match="belong into the Swap rules"):
        convswap.plan(TwoConvs(), [Swap("*", "dcls")], where="conv1")
    with pytest.raises(ConvswapError, match=r"name of a target, a Swap or a list of Swaps, got .3"):
        convswap.plan(TwoConvs(), [3])  # type: ignore[list-item]


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no target 'dclss'.*Did you mean 'dcls'"):
        convswap.plan(TwoConvs(), to="dclss")
    with pytest.raises(UnknownNameError, match=r"no option 'kernel'.*Did you mean 'kernels'"):
        convswap.plan(TwoConvs(), to="dynamic", kernel=3)
    with pytest.raises(PatternError, match=r"'conv3' matches none of the 2 convolutions. Did you mean 'conv"):
        convswap.plan(TwoConvs(), to="dynamic", where="conv3")


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("dynamic", {"kernels": 1}, "kernels must be at least 2, got 1"),
        ("dynamic", {"kernels": "four"}, "'kernels' of target 'dynamic' must be .* mapping of str to int, got 'four'"),
        ("dynamic", {"reduction": True}, "must be a whole number, got True"),
        ("dynamic", {"noise": 0}, "noise must be above 0"),
        ("dynamic", {"temperature": -1.0}, "temperature must be positive"),
        ("dynamic", {"reduction": 0}, "reduction must be at least 1"),
        ("dcls", {"version": "v9"}, "must be 'v0' or 'v1' or 'max' or 'gauss', got 'v9'"),
        ("dcls", {"share_positions": "stages"}, "must be 'none' or 'stage' or 'group' or a function, got 'stages'"),
        ("dcls", {"share_positions": True}, "must be 'none' or 'stage' or 'group' or a function, got True"),
        ("dcls", {"max_kernel_bytes": 0}, "max_kernel_bytes must be at least 1"),
        ("dcls", {"max_kernel_bytes": "1 GB"}, "must be a whole number or None, got '1 GB'"),
        ("dcls", {"kernel_count": 0}, "kernel_count must be at least 1"),
        ("dcls", {"dilated_kernel_size": (0, 7)}, "dilated_kernel_size must be at least 1"),
    ],
)
def test_bad_option_values(to: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        convswap.plan(TwoConvs(), to=to, **options)


def test_a_plan_without_a_swap_lists_the_reasons() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    with pytest.raises(NothingToSwapError, match=r"all 2 convolutions of Sequential are kept\n  2 x a 1×1 kernel"):
        convswap.plan(model, to="dcls")


def test_a_model_without_convolutions() -> None:
    with pytest.raises(NothingToSwapError, match=r"Linear has no convolution to convert"):
        convswap.plan(nn.Linear(3, 3), to="dcls")
    with pytest.raises(NothingToSwapError, match=r"0: transposed convolutions are not converted"):
        convswap.plan(nn.Sequential(nn.ConvTranspose2d(3, 3, 2)), to="dcls")


class Kept(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(2, 2, 3)
        self.hooked = nn.Conv2d(2, 2, 3)
        self.hooked.register_forward_pre_hook(lambda *_: None)
        self.normed = parametrizations.weight_norm(nn.Conv2d(2, 2, 3))
        self.read = nn.Conv2d(2, 2, 3)
        self.odd = OddConv(2, 2, 3)
        self.named = NamedConv(2, 2, 3)
        self.lazy = nn.LazyConv2d(2, 3)
        self.tied_to_bias = nn.Conv2d(2, 2, 3)
        self.other = nn.Linear(2, 2)
        self.other.bias = self.tied_to_bias.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.plain(x) + self.read(x) * self.read.weight.mean()


class OddConv(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).relu()


class NamedConv(nn.Conv2d):
    """A subclass in name only."""


def test_reasons_for_keeping() -> None:
    reasons = {step.site.name: step.reason for step in convswap.plan(Kept(), to="dcls") if step.action == "keep"}
    assert set(reasons) == {"hooked", "normed", "read", "odd", "lazy", "tied_to_bias"}
    assert "forward pre-hook" in reasons["hooked"]
    assert "parametrize" in reasons["normed"]
    assert reasons["read"] == "its parameters are used by the model's own forward too, outside of its own forward"
    assert "OddConv is a subclass of Conv2d with a forward of its own" in reasons["odd"]
    assert "run a forward pass first" in reasons["lazy"]
    assert reasons["tied_to_bias"] == "it shares parameters with other.bias, which is not converted in the same way"


def test_tied_convolutions_go_together_or_not_at_all() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    model[1].weight = model[0].weight
    assert actions(convswap.plan(model, to="dcls")) == {"0": "dcls", "1": "dcls", "2": "dcls"}
    assert actions(convswap.plan(model, to="dcls", where="!1")) == {"0": None, "1": None, "2": "dcls"}
    mixed = [Swap("0", "dcls"), Swap("*", "dcls", version="gauss")]
    assert actions(convswap.plan(model, mixed)) == {"0": None, "1": None, "2": "dcls"}


def test_the_first_conv_is_left_alone_by_dynamic() -> None:
    plan = convswap.plan(torchvision.models.resnet18(), to="dynamic")
    assert [step.site.name for step in plan.keeps] == ["conv1"]
    assert "convert_first=True" in plan.keeps[0].reason
    assert convswap.plan(torchvision.models.resnet18(), to="dynamic", convert_first=True).keeps == ()


def test_dcls_options_are_resolved() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, (1, 7)), nn.Conv2d(3, 3, 3, dilation=4), nn.Conv2d(3, 3, 2)
    )
    options = [step.options for step in convswap.plan(model, to="dcls")]
    assert [o.dilated_kernel_size for o in options] == [(7, 7), (1, 15), (19, 19), (8, 8)]
    assert [o.kernel_count for o in options] == [9, 7, 9, 4]


def test_dcls_fidelity() -> None:
    def fidelity(**options: object) -> set[str | None]:
        return {step.fidelity for step in convswap.plan(TwoConvs(), to="dcls", **options).swaps}

    assert fidelity() == fidelity(kernel_count=20) == {"exact"}
    assert fidelity(version="v0") == fidelity(version="max") == {"exact"}
    assert fidelity(version="gauss") == fidelity(kernel_count=5) == {"approximate"}


class Noted(Dcls):
    """Has something to say about some of its layers."""

    name = "noted"

    def note(self, site: ConvSite, options: DclsOptions) -> str | None:
        return None if site.module.stride == (2, 2) else f"{options.kernel_count} elements for {site.dims} axes"


def test_targets_have_a_word_in_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_targets", dict(registry._targets))
    convswap.register(Noted())
    plan = convswap.plan(TwoConvs(), "noted")
    assert [step.note for step in plan] == ["9 elements for 2 axes", None]
    converted = convswap.convert(TwoConvs(), "noted")
    made = convswap.report(convswap.apply(convswap.report(converted).recipe, TwoConvs()))
    assert [step.note for step in made.swaps] == ["9 elements for 2 axes", None]
    standardised = nn.Sequential(timm.layers.StdConv2d(3, 3, 3))
    (step,) = convswap.plan(standardised, "noted")
    assert step.note == (
        "weight standardisation folded into the weights: they train without it from here on; 9 elements for 2 axes"
    )
    assert {step.note for step in convswap.plan(TwoConvs(), "dcls")} == {None}


def test_padding_that_cannot_grow() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), nn.Conv2d(3, 3, 3))
    plan = convswap.plan(model, to="dcls", example_inputs=(3, 4, 4), dilated_kernel_size=11)
    assert plan.steps[0].reason.startswith("its circular padding would grow to 5 pixels, too wide for a map of 4")
    assert convswap.plan(model, to="dcls", example_inputs=(3, 8, 8), dilated_kernel_size=11).keeps == ()
    assert "give example_inputs" in convswap.plan(model, to="dcls").steps[0].reason


def test_kernels_that_are_too_large_are_kept() -> None:
    """The dilated convolutions of deeplabv3: with a dilation of 36 the grid is 147×147."""
    with torch.device("meta"):
        model = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)
    reasons = {step.site.name: step.reason for step in convswap.plan(model, to="dcls").steps}
    assert reasons["classifier.0.convs.3.0"] == (
        "its kernel of 256×2048×147×147 numbers would take 42.2 GiB, built anew in each forward pass, and "
        "max_kernel_bytes is 256 MiB: choose a smaller dilated_kernel_size, or raise max_kernel_bytes"
    )


def test_size_of_a_kernel_is_counted_in_its_dtype_and_for_the_grid_that_is_chosen() -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2)
    needed = 6 * 2 * 49

    def plan(model: nn.Module, **options: object) -> convswap.Plan:
        return convswap.plan(model, to="dcls", **options)

    for model, item in ((copy.deepcopy(conv), 4), (copy.deepcopy(conv).double(), 8), (copy.deepcopy(conv).half(), 2)):
        assert plan(model, max_kernel_bytes=needed * item).keeps == ()
        with pytest.raises(NothingToSwapError, match="its kernel of 6×2×7×7 numbers would take"):
            plan(model, max_kernel_bytes=needed * item - 1)
    assert plan(conv, max_kernel_bytes=6 * 2 * 25 * 4, dilated_kernel_size=5).keeps == ()
    with torch.device("meta"):
        large = nn.Conv2d(2048, 256, 3, dilation=12)
    assert plan(large, max_kernel_bytes=None).keeps == ()


def test_wrong_sizes_for_dcls_say_what_to_use() -> None:
    with pytest.raises(NothingToSwapError, match=r"dilated_kernel_size 8 has not the parity .* use 7 or 9"):
        convswap.plan(TwoConvs(), to="dcls", dilated_kernel_size=8)
    with pytest.raises(NothingToSwapError, match=r"dilated_kernel_size 1 is smaller than the 3 pixels"):
        convswap.plan(TwoConvs(), to="dcls", dilated_kernel_size=1)
    with pytest.raises(NothingToSwapError, match=r"has 3 numbers for a convolution of 2 axes"):
        convswap.plan(TwoConvs(), to="dcls", dilated_kernel_size=(7, 7, 7))


@pytest.mark.parametrize("to", ["dynamic", "dcls"])
@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:mobilenetv3_small_100"])
def test_costs_are_what_torch_counts(to: str, name: str) -> None:
    model = library_model(name).eval()
    plan = convswap.plan(model, to=to)
    new = convswap.convert(model, to=to).eval()
    for module in new.modules():
        if isinstance(module, DclsLayer):
            module.formula = "dense"  # the way that the plan counts: others may do with less
    for which, counted in (("before", model), ("after", new)):
        total = sum(getattr(step, which).multiply_adds for step in plan)
        with FlopCounterMode(display=False) as counter:
            counted(torch.zeros(1, 3, 224, 224))
        heads = sum(2 * m.in_features * m.out_features for n, m in counted.named_modules()
                    if isinstance(m, nn.Linear) and "attention" not in n)  # fmt: skip
        assert 2 * total == counter.get_total_flops() - heads
    added = sum(p.numel() for p in new.parameters()) - sum(p.numel() for p in model.parameters())
    assert added == sum(step.after.parameters - step.before.parameters for step in plan)


def test_activation_bytes_of_a_plain_conv_are_its_input() -> None:
    plan = convswap.plan(TwoConvs(), to="dcls", where="conv1", example_inputs=(3, 16, 16))
    assert plan.steps[0].before.activation_bytes == 3 * 16 * 16 * 4
    assert plan.steps[0].after.activation_bytes > 3 * 16 * 16 * 4  # the kernel that was built


def test_costs_are_unknown_without_shapes() -> None:
    step = convswap.plan(TwoConvs(), to="dcls").steps[0]
    assert (step.before.multiply_adds, step.after.multiply_adds) == (None, None)
    assert step.after.parameters == 8 * 3 * 9 * 3


def test_planning_allocates_no_weights() -> None:
    with torch.device("meta"):
        huge = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(2**17, 2**17, 3))  # 600 GB
    plan = convswap.plan(huge, to="dynamic", where="1")
    assert plan.steps[1].after.parameters > 4 * 2**34 * 9


def test_plan_prints_as_its_report() -> None:
    assert "2 of 2 convolutions converted (2 to dcls)" in str(convswap.plan(TwoConvs(), to="dcls"))


def test_weight_standardisation_is_noted() -> None:
    plan = convswap.plan(timm.create_model("nfnet_l0"), to="dcls")
    assert {"weight standardisation" in (step.note or "") for step in plan.swaps} == {True}
