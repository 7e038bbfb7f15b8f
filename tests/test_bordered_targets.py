"""Models whose padding is replaced: the interior stays as it was, and plans, reports and files say what was done."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convswap
from convswap import formatting
from convswap.cli import main
from convswap.errors import (
    ConvswapError,
    GrowthWarning,
    NothingToSwapError,
    OptionError,
    VerificationError,
)
from convswap.layers import (
    ConvLayer,
    DiffConv2dLayer,
    ExplicitBoundaryConv2d,
    ExtrapolatedConv2d,
    PaddedConv2d,
    PaddingFreeConv1d,
    PaddingFreeConv2d,
    PaddingFreeConv3d,
    PartialConv2d,
    RandomPadConv2d,
)
from convswap.layers.extrapolation import noise_gain
from convswap.report import Report

from .models import TwoConvs, as_if_trained, relative_error

timm_layers = importlib.import_module("timm.layers")

SIZE = (3, 16, 16)
LAYERS: dict[str, Any] = {
    "padding_free": PaddingFreeConv2d,
    "extrapolated": ExtrapolatedConv2d,
    "partial": PartialConv2d,
    "random_pad": RandomPadConv2d,
    "explicit_boundary": ExplicitBoundaryConv2d,
}
every_target = pytest.mark.parametrize("to", LAYERS)
noise_may_grow = pytest.mark.filterwarnings("ignore::convswap.errors.GrowthWarning")
X = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Net(nn.Sequential):
    """Every kind of padding there is, and none."""

    def __init__(self) -> None:
        super().__init__()
        self.zeros = nn.Conv2d(3, 4, 3, padding=1)
        self.reflect = nn.Conv2d(4, 4, 5, padding=2, padding_mode="reflect", groups=2)
        self.replicate = nn.Conv2d(4, 4, (1, 3), padding=(0, 1), padding_mode="replicate", bias=False)
        self.circular = nn.Conv2d(4, 4, 3, stride=2, padding=1, padding_mode="circular")
        self.pointwise = nn.Conv2d(4, 4, 1)
        self.same = nn.Conv2d(4, 4, 3, padding="same", dilation=2)
        self.dynamic_same = timm_layers.Conv2dSame(4, 4, 3, stride=2)
        self.valid = nn.Conv2d(4, 2, 3, padding="valid")


PADDED = ("zeros", "reflect", "replicate", "circular", "same", "dynamic_same")


def net() -> Any:
    torch.manual_seed(0)
    return as_if_trained(Net()).double().eval()


def one(conv: nn.Module) -> Any:
    return nn.Sequential(conv)


def notes(model: nn.Module, to: str, **options: Any) -> list[str]:
    """Those of all layers, which must be one text for all that are alike."""
    shown = str(convswap.report(convswap.plan(model, to, **options))).replace("\n", " ")
    found = [step.note for step in convswap.plan(model, to, **options).swaps]
    assert all(note is None or note in " ".join(shown.split()) for note in found)
    return list(dict.fromkeys(note for note in found if note is not None))


# Conversion --------------------------------------------------------------------------------------------------------


@noise_may_grow
@every_target
def test_all_padding_is_replaced_and_keeps_its_widths(to: str) -> None:
    model = net()
    new = convswap.convert(model, to, example_inputs=SIZE, verify=X)
    assert {name for name, layer in new.named_children() if type(layer) is LAYERS[to]} == set(PADDED)
    for name in PADDED:
        conv, layer = model.get_submodule(name), new.get_submodule(name)
        assert torch.equal(layer.weight, conv.weight)
        assert layer.padding == ("same" if "same" in name else conv.padding)
    made = convswap.report(new)
    assert made.verification is not None
    assert made.verification.passed
    checks = {check.name: check for check in made.verification.layers}
    exact = {"zeros", "same", "dynamic_same"} if to == "explicit_boundary" else set()
    assert {name for name, check in checks.items() if check.fidelity == "exact"} == exact
    assert {name for name, check in checks.items() if check.fidelity == "interior"} == set(PADDED) - exact
    assert {check.limit for check in checks.values()} == {1e-10}
    assert checks["reflect"].compared == (12 / 16) ** 2
    assert checks["replicate"].compared == 14 / 16
    assert all(0 < check.compared < 1 for check in checks.values() if check.fidelity == "interior")
    for shown in (made.to_markdown(), made.to_html()):
        assert shown.count("identical (") == len(PADDED) - len(exact)
    assert {step.reason for step in made.keeps} == {"it pads nothing, so there is no border to treat in another way"}
    assert not torch.equal(new(X), model(X))


@every_target
def test_files_and_recipes(to: str, tmp_path: Path) -> None:
    options = {"order": (2, 1), "train_edge_kernel": True} if to == "padding_free" else {}
    new = convswap.convert(net(), to, example_inputs=SIZE, **options)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(0.01 * torch.rand_like(parameter))
    convswap.save(new, tmp_path / "net.safetensors")
    loaded = convswap.load(tmp_path / "net.safetensors", model=net())
    recipe = json.loads(json.dumps(convswap.report(new).recipe.to_dict()))
    applied = convswap.apply(recipe, net())
    applied.load_state_dict(new.state_dict())
    for other in (loaded, applied):
        outputs = []
        for model in (new, other):
            torch.manual_seed(3)
            outputs.append(model(X))
        assert torch.equal(*outputs)
        assert [type(layer) for layer in other] == [type(layer) for layer in new]
        assert [repr(layer) for layer in other] == [repr(layer) for layer in new]
    assert convswap.report(loaded) == convswap.report(new)


@every_target
def test_costs(to: str) -> None:
    plan = convswap.plan(net(), to, example_inputs=SIZE)
    new = convswap.convert(net(), to, example_inputs=SIZE)
    for step in plan.swaps:
        layer: Any = new.get_submodule(step.site.name)
        assert step.after.multiply_adds == step.before.multiply_adds
        assert step.after.parameters == sum(parameter.numel() for parameter in layer.parameters())
        assert step.after.kernel_bytes == 0
        image = sum(math.prod(call.input_shape) for call in step.site.calls) * layer.weight.element_size()
        assert step.before.activation_bytes is not None
        assert step.after.activation_bytes is not None
        assert step.before.activation_bytes >= image
        assert step.after.activation_bytes >= image
        if to in ("padding_free", "extrapolated"):  # the extended image is made anew in the backward pass
            assert step.after.activation_bytes == image
        grown = 1 if to != "explicit_boundary" else len(layer.boundary_distances) + 1
        assert step.after.parameters == grown * step.before.parameters
    kernels = {"zeros": 9, "reflect": 25, "replicate": 3, "circular": 9, "same": 25, "dynamic_same": 9}
    if to == "explicit_boundary":
        assert {s.site.name: s.after.parameters // s.before.parameters for s in plan.swaps} == kernels


def test_edge_kernels_double_the_parameters_and_are_new() -> None:
    new = convswap.convert(net(), "padding_free", "zeros", train_edge_kernel=True, keep_img_grad_at_invalid=False)
    assert set(convswap.new_parameters(new)) == {"zeros.edge_weight", "zeros.edge_bias"}
    assert torch.equal(new.zeros.edge_weight, new.zeros.weight)
    assert not new.zeros.keep_img_grad_at_invalid
    (step,) = convswap.report(new).swaps
    assert step.after.parameters == 2 * step.before.parameters


@pytest.mark.parametrize("dims", [1, 3])
def test_one_and_three_axes(dims: int) -> None:
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[dims](2, 2, 3, padding=1)
    model = one(conv).double().eval()
    x = torch.randn(1, 2, *(6,) * dims, dtype=torch.float64)
    new = convswap.convert(model, "padding_free", verify=x)
    assert type(new[0]) is {1: PaddingFreeConv1d, 3: PaddingFreeConv3d}[dims]
    axes = f"{dims} spatial {'axis' if dims == 1 else 'axes'}"
    for to in set(LAYERS) - {"padding_free"}:
        with pytest.raises(
            NothingToSwapError, match=rf"it has {axes}, and {to} layers have 2: use to=\"padding_free\""
        ):
            convswap.plan(model, to)


def test_random_padding_is_another_one_each_time() -> None:
    new = convswap.convert(net(), "random_pad", "zeros", example_inputs=SIZE)
    assert not torch.equal(new(X), new(X))
    (note,) = notes(net(), "random_pad")
    assert "drawn anew in each call" in note


def test_in_place_as_a_graph_and_alone() -> None:
    new = convswap.convert(net(), "padding_free", order=1, example_inputs=SIZE)
    in_place = convswap.convert_(net(), "padding_free", order=1, example_inputs=SIZE)
    graph = convswap.convert(net(), "padding_free", order=1, example_inputs=SIZE, as_graph=True)
    assert torch.equal(in_place(X), new(X))
    assert torch.equal(graph(X), new(X))
    alone = convswap.convert(net().zeros, "partial", verify=X)
    assert type(alone) is PartialConv2d
    assert "border: the model, with relative errors" in " ".join(str(convswap.report(alone)).split())


# What is kept ------------------------------------------------------------------------------------------------------


@every_target
@pytest.mark.parametrize(
    "conv", [nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1, padding="same"), nn.Conv2d(3, 3, 3, 2, "valid")]
)
def test_nothing_to_pad(to: str, conv: nn.Module) -> None:
    with pytest.raises(NothingToSwapError, match="1 x it pads nothing, so there is no border to treat in another way"):
        convswap.plan(one(conv), to)


@every_target
def test_same_padding_depends_on_the_size(to: str) -> None:
    """A kernel of 2 with a stride of 2 is padded where the size is odd."""
    model = one(timm_layers.Conv2dSame(3, 3, 2, stride=2)).eval()
    with pytest.raises(NothingToSwapError, match=r"at 8×8 pixels it pads nothing, .* of another size"):
        convswap.plan(model, to, example_inputs=(3, 8, 8))
    for size in (None, (3, 8, 9)):
        assert len(convswap.plan(model, to, example_inputs=size).swaps) == 1
    new = convswap.convert(model, to, verify=(3, 9, 9))
    assert new(torch.randn(1, 3, 9, 9)).shape[2:] == (5, 5)


# Orders ------------------------------------------------------------------------------------------------------------


def test_the_default_order_is_at_most_two() -> None:
    model = nn.Sequential(*(nn.Conv2d(3, 3, k, padding=2) for k in (1, 2, 3, 5, (1, 7))))
    plan = convswap.plan(model, "padding_free")
    assert [step.options.order for step in plan.swaps] == [(0, 0), (1, 1), (2, 2), (2, 2), (0, 2)]
    new = convswap.convert(model, "padding_free")
    assert [layer.order for layer in new] == [tuple((o, o) for o in step.options.order) for step in plan.swaps]
    assert [step.options.order for step in convswap.plan(model, "padding_free", order=4)] == [(4, 4)] * 5
    assert [step.options.order for step in convswap.plan(model, "padding_free", order=[3, 0])] == [(3, 0)] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": -1}, "target 'padding_free': order must be from 0 to 50, got -1"),
        ({"order": (2, -3)}, r"order must be from 0 to 50, got \(2, -3\)"),
        ({"order": 51}, "order must be from 0 to 50, got 51"),
        ({"order": 1.5}, "'order' .* must be a whole number or several of int or None, got 1.5"),
        ({"order": True}, "'order' .* got True"),
        ({"train_edge_kernel": "maybe"}, "must be true or false, got 'maybe'"),
    ],
)
def test_values_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        convswap.plan(TwoConvs(), "padding_free", **options)


@pytest.mark.parametrize("order", [(1,), (1, 1, 1), ()])
def test_as_many_orders_as_axes(order: tuple[int, ...]) -> None:
    with pytest.raises(NothingToSwapError, match=rf"has {len(order)} numbers for a convolution of 2 axes"):
        convswap.plan(TwoConvs(), "padding_free", order=order)


def test_maps_that_are_too_small() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.AvgPool2d(4), nn.Conv2d(3, 3, 5, padding=2))
    plan = convswap.plan(model, "padding_free", example_inputs=(3, 8, 16))
    assert [step.reason for step in plan.keeps] == [
        "order 2 extrapolates from 3 pixels of each axis, and its map is 2×4: choose a lower order (order=1) or larger "
        "inputs"
    ]
    assert len(convswap.plan(model, "padding_free", example_inputs=(3, 8, 16), order=1).swaps) == 2
    assert len(convswap.plan(model, "padding_free", example_inputs=(3, 8, 16), order=(1, 3)).swaps) == 2
    assert len(convswap.plan(model, "padding_free", example_inputs=(3, 12, 12)).swaps) == 2
    assert len(convswap.plan(model, "padding_free").swaps) == 2
    (kept,) = convswap.plan(model, "extrapolated", example_inputs=(3, 8, 16)).keeps
    assert kept.reason == (
        "a padding of 2 is extrapolated from 3 pixels of each axis, and its map is 2×4: give larger inputs, or take "
        'to="padding_free", whose order is an option'
    )
    new = convswap.convert(model, "padding_free")
    with pytest.raises(ValueError, match="take a lower order or a larger image"):
        new(torch.randn(1, 3, 8, 16))


def test_an_axis_that_is_not_padded_may_be_short() -> None:
    model = one(nn.Conv2d(3, 3, (1, 3), padding=(0, 1)))
    assert convswap.plan(model, "padding_free", example_inputs=(3, 1, 8), order=2).swaps
    assert convswap.plan(model, "extrapolated", example_inputs=(3, 1, 8)).swaps
    with pytest.raises(NothingToSwapError, match=r"its map is 1×8: choose a lower order \(order=7\)"):
        convswap.plan(model, "padding_free", example_inputs=(3, 1, 8), order=8)


def test_same_padding_of_one_side_takes_the_order_of_that_side() -> None:
    """A map of 2 pixels is padded behind only, and by one pixel."""
    model = one(timm_layers.Conv2dSame(3, 3, 3, stride=2))
    assert convswap.plan(model, "extrapolated", example_inputs=(3, 2, 2)).swaps
    with pytest.raises(NothingToSwapError, match="order 2 extrapolates from 3 pixels"):
        convswap.plan(model, "padding_free", example_inputs=(3, 2, 2))


# What is said ------------------------------------------------------------------------------------------------------


def test_orders_are_told_with_what_they_magnify() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1),
        nn.Conv2d(3, 3, 3, 2, padding=1),
        nn.Conv2d(3, 3, 5, padding=2),
        nn.Conv2d(3, 3, (1, 7), padding="same"),
        nn.Conv2d(3, 3, (3, 7), padding="same"),
        nn.Conv2d(3, 3, 3, padding=4, dilation=4),
    )
    assert (noise_gain(1, 2), noise_gain(2, 2), noise_gain(2, 4), noise_gain(3, 6)) == (7, 17, 129, 2815)
    assert notes(model, "padding_free") == [
        "extrapolation of order 2 for kernels of 3×3, padded by 1, magnifies noise up to 7× along an axis; it is the "
        "method's own order",
        "extrapolation of order 2 for kernels of 5×5, padded by 2, magnifies noise up to 17× along an axis; the "
        "method's own, up to 129×, is order=4",
        "extrapolation of order 2 for kernels of 1×7, padded by 3, magnifies noise up to 31× along an axis; the "
        "method's own, up to 2815×, is order=6",
        "extrapolation of order 2 for kernels of 3×7, padded by 3, magnifies noise up to 31× along an axis; the "
        "method's own, up to 2815×, is order=(2, 6)",
        "extrapolation of order 2 for kernels of 3×3, padded by 4, magnifies noise up to 49× along an axis; it is the "
        "method's own order",
    ]
    assert notes(model[:2], "padding_free", order=0) == [
        "extrapolation of order 0 for kernels of 3×3, padded by 1, magnifies no noise; the method's own, up to 7×, is "
        "order=2"
    ]
    assert notes(model[4:5], "padding_free", order=(1, 2)) == [
        "extrapolation of order (1, 2) for kernels of 3×7, padded by 3, magnifies noise up to 31× along an axis; the "
        "method's own, up to 2815×, is order=(2, 6)"
    ]
    assert notes(model[:3], "extrapolated") == [
        "extrapolation of order 1, the padding, magnifies noise up to 3× along an axis; the order is an option of "
        "padding_free",
        "extrapolation of order 2, the padding, magnifies noise up to 17× along an axis; the order is an option of "
        "padding_free",
    ]


def test_notes_are_joined() -> None:
    model = one(timm_layers.StdConv2d(3, 3, 3, padding=1))
    (note,) = notes(model, "padding_free")
    assert note.startswith("weight standardisation folded into the weights")
    assert "; extrapolation of order 2" in note


def test_explicit_boundaries_tell_how_many_kernels_they_have() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, (1, 5), padding="same"), timm_layers.Conv2dSame(3, 3, 3, 2)
    )
    new = convswap.convert(model, "explicit_boundary")
    assert notes(model, "explicit_boundary") == [
        "9 kernels, one for each of 3×3 distances to the interior, each with its bias",
        "5 kernels, one for each of 1×5 distances to the interior, each with its bias",
    ]
    assert [len(layer.boundary_distances) + 1 for layer in new] == [9, 5, 9]


def test_noise_that_grows_from_layer_to_layer_is_warned_of() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(2, 2, 5, padding=2, bias=False) for _ in range(4))).double()
    x = torch.randn(1, 2, 16, 16, dtype=torch.float64)
    with pytest.warns(GrowthWarning, match=r"in 4 of 4 .* grow by more than 100, .*: 3 \(.* order=1"):
        made = convswap.report(convswap.convert(model, "padding_free", order=4, verify=x))
    assert made.verification is not None
    assert made.verification.passed
    growths = [check.growth for check in made.verification.layers]
    assert growths == sorted(growths)
    assert growths[-1] > 1e4
    assert made.verification.grown[0].name == "3"
    assert Report.from_dict(json.loads(made.to_json())) == made
    for shown in (str(made), made.to_markdown(), made.to_html()):
        assert "activations grow by more than 100" in " ".join(shown.split())
    with torch.no_grad():
        original, new = model(x), convswap.convert(model, "padding_free", order=4)(x)
    assert growths[-1] == pytest.approx((new.abs().max() / original.abs().max()).item())


def test_an_output_that_overflows_is_told_from_other_code() -> None:
    model = one(nn.Conv2d(3, 4, 3, padding=1)).half()
    x = 20000 * torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0)).half()
    nn.init.constant_(model[0].weight, 0.1)
    message = r"the model's output overflows: in 1 of 1 .* \(overflow\)\. .* order=1"
    with pytest.raises(VerificationError, match=message), pytest.warns(GrowthWarning):
        convswap.convert(model, "padding_free", order=2, verify=x)


def test_notes_of_a_model_that_is_a_convolution_name_it() -> None:
    (names,) = formatting.notes(convswap.report(convswap.plan(nn.Conv2d(3, 3, 3, padding=1), "padding_free"))).values()
    assert names == ["the model"]


# Freezing ----------------------------------------------------------------------------------------------------------


@noise_may_grow
@pytest.mark.parametrize(
    ("to", "options"), [("padding_free", {}), ("padding_free", {"order": 0}), ("extrapolated", {})]
)
def test_frozen_to_a_convolution_with_an_explicit_pad(to: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = net().to(memory_format=torch.channels_last)
    new = convswap.convert(model, to, example_inputs=SIZE, **options)
    frozen = convswap.freeze(new, X)
    for name in PADDED:
        made: Any = frozen.get_submodule(name)
        replicates = options == {"order": 0} and name != "dynamic_same"
        assert type(made) is (nn.Conv2d if replicates else PaddedConv2d)
        assert made.padding_mode == ("replicate" if replicates else "extrapolate")
        assert made.weight.is_contiguous(memory_format=torch.channels_last)
        assert set(dict(made.named_parameters())) <= {"weight", "bias"}
    assert torch.allclose(frozen(X), new(X), rtol=1e-12, atol=1e-12)
    report = convswap.report(frozen)
    (told,) = report.freezings
    assert {layer.fidelity for layer in told.layers} == {"exact"}
    assert all(layer.error is not None and layer.error.greatest < 1e-12 for layer in told.layers)
    assert f"1 to {to}" not in str(report)
    assert f"({len(PADDED)} to {to}, {len(PADDED)} frozen)" in str(report)
    checked = convswap.verify(model, frozen, X)
    assert checked.passed
    assert {check.fidelity for check in checked.layers} == {"interior"}
    convswap.save(frozen, tmp_path / "frozen.safetensors")
    loaded = convswap.load(tmp_path / "frozen.safetensors", model=net())
    applied = convswap.apply(report.recipe, net())
    for other in (loaded, applied):
        assert torch.allclose(other(X), frozen(X), rtol=1e-12, atol=1e-12)
        assert [repr(layer) for layer in other] == [repr(layer) for layer in frozen]
    assert convswap.report(loaded) == report


def test_frozen_models_are_converted_again(tmp_path: Path) -> None:
    frozen = convswap.freeze(convswap.convert(net(), "padding_free", ["zeros", "same"], example_inputs=SIZE))
    again = convswap.convert(frozen, "partial", example_inputs=SIZE, verify=X)
    made = convswap.report(again)
    assert made.frozen().keys() == {"zeros", "same"}
    assert {step.name: step.target for step in made.swaps} == {
        **dict.fromkeys(PADDED, "partial"),
        **dict.fromkeys(("zeros", "same"), "padding_free"),
    }
    with pytest.raises(
        NothingToSwapError, match="1 x it extrapolates its image before it convolves, as what padding-f"
    ):
        convswap.plan(frozen, "dcls", "zeros")
    order_zero = convswap.freeze(convswap.convert(net(), "padding_free", "zeros", order=0, example_inputs=SIZE))
    replaced = convswap.convert(order_zero, "padding_free", "zeros", order=0, example_inputs=SIZE)
    assert type(replaced.zeros) is PaddingFreeConv2d
    assert torch.allclose(replaced(X), order_zero(X), rtol=1e-12, atol=1e-12)
    for model in (again, replaced):
        convswap.save(model, tmp_path / "net.safetensors", overwrite=True)
        loaded = convswap.load(tmp_path / "net.safetensors", model=net())
        assert torch.equal(loaded(X), model(X))
        assert convswap.report(loaded) == convswap.report(model)


def test_comparing_with_a_model_that_was_frozen() -> None:
    new = convswap.convert(net(), "padding_free", example_inputs=SIZE)
    assert convswap.verify(convswap.freeze(new), new, X).passed


def test_files_of_layers_are_frozen_after_loading(tmp_path: Path) -> None:
    new = convswap.convert(net(), "padding_free", example_inputs=SIZE)
    convswap.save(new, tmp_path / "net.safetensors")
    frozen = convswap.freeze(convswap.load(tmp_path / "net.safetensors", model=net()))
    assert torch.allclose(frozen(X), new(X), rtol=1e-12, atol=1e-12)


class Wide(nn.Module):
    """Layers of ours in a model's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.a = PaddingFreeConv2d(3, 3, 3, padding=1)
        self.b = ExtrapolatedConv2d(3, 3, 3, padding=1, train_edge_kernel=True)
        self.c = DiffConv2dLayer(3, 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


def test_layers_of_the_architecture_itself(tmp_path: Path) -> None:
    model = Wide().double()
    frozen: Any = convswap.freeze(model)
    assert type(frozen.a) is type(frozen.c) is PaddedConv2d
    assert torch.allclose(frozen(X), model(X), rtol=1e-12, atol=1e-12)
    assert isinstance(frozen.b, ConvLayer)
    convswap.save(frozen, tmp_path / "net.safetensors")
    loaded = convswap.load(tmp_path / "net.safetensors", model=Wide())
    assert torch.equal(loaded(X), frozen(X))
    recipe = convswap.report(frozen).recipe.to_dict()
    recipe["steps"][0]["name"] = "b"
    with pytest.raises(ConvswapError, match="the recipe freezes 'b', which is a ExtrapolatedConv2d: it has a second"):
        convswap.apply(recipe, Wide())


# The command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "given", "words"),
    [
        ("padding_free", "order=0", [0, 0]),
        ("padding_free", "order=1,2", [1, 2]),
        ("padding_free", "order=none", [2, 2]),
        ("padding_free", "order=-1", "target 'padding_free': order must be from 0 to 50, got -1"),
        ("padding_free", "order=x", "option 'order' of target 'padding_free' must be a whole number or several of int"),
        ("padding_free", "order=1,1,1", "order (1, 1, 1) has 3 numbers for a convolution of 2 axes: give one for each"),
        ("padding_free", "degree=1", "has no option 'degree'. Did you mean 'order'? Options: order, train_edge"),
        ("padding-free", "order=1", "there is no target 'padding-free'. Did you mean 'padding_free'?"),
        ("extrapolated", "order=1", "target 'extrapolated' has no option 'order'. Options: train_edge_kernel"),
        ("partial", "order=1", "target 'partial' has no option 'order'. Options: none."),
    ],
)
def test_options_on_the_command_line(to: str, given: str, words: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["plan", "tests.models:TwoConvs", "--to", to, "--option", given, "--json"])
    captured = capsys.readouterr()
    assert code == isinstance(words, str), captured
    if code:
        assert words in " ".join(captured.err.split())
    else:
        (order,) = {tuple(step["options"]["order"]) for step in json.loads(captured.out)["steps"]}
        assert list(order) == words


def test_converting_and_freezing_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = as_if_trained(TwoConvs()).eval()
    torch.save(model.state_dict(), tmp_path / "net.pth")
    new, frozen, source = (str(tmp_path / name) for name in ("new.safetensors", "frozen.safetensors", "net.pth"))
    given = ["--model", "tests.models:TwoConvs", "--input-size", "3", "16", "16", "--to", "padding_free"]
    assert main(["convert", source, *given, "--option", "order=9", "--out", new]) == 0
    captured = capsys.readouterr()
    assert "convswap: in 2 of 2 converted layers activations grow by more than 100" in captured.err
    assert "in 2 of 2 converted layers activations grow by more than 100" in " ".join(captured.out.split())
    assert main(["freeze", new, "--out", frozen, "--trust-source"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "frozen to plain convolutions (exact): conv1, conv2" in captured.out
    loaded = [convswap.load(path, trust_source=True).eval() for path in (new, frozen)]
    assert [type(each.conv2) for each in loaded] == [PaddingFreeConv2d, PaddedConv2d]
    assert relative_error(*(each(X.float()) for each in loaded)) < 1e-5


@pytest.mark.parametrize(
    ("to", "options"),
    [
        ("explicit_boundary", {}),
        ("padding_free", {"train_edge_kernel": True}),
        ("extrapolated", {"train_edge_kernel": True}),
    ],
)
def test_planned_and_converted_in_inference_mode(to: str, options: dict[str, Any]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    with torch.inference_mode():
        plan = convswap.plan(net, to, example_inputs=(3, 9, 9), **options)
        made = convswap.convert(net, to, **options)
    assert plan.steps[0].after == convswap.plan(net, to, example_inputs=(3, 9, 9), **options).steps[0].after
    assert not any(parameter.is_inference() for parameter in made.parameters())
