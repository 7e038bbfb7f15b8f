"""Reverting: what becomes the convolution again that it was, what is lost, and what is kept."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from timm.layers import StdConv2d, create_conv2d
from torch import Tensor, nn

import convswap
from convswap.conv_classes import Conv
from convswap.errors import ConvswapError, ModelError, NothingToSwapError, PatternError
from convswap.layers import (
    CondConv2d,
    ConvLayer,
    Dcls2_1d,
    Dcls2d,
    DclsDilated2d,
    DynamicConv2d,
    GuidedConv2d,
    PatchDynamicConv2d,
    SeparableGuidedConv2d,
)
from convswap.sites import ConvSite
from convswap.targets import Fidelity, Target, all_targets

from .models import TwoConvs, as_if_trained, relative_error

X = torch.randn(2, 4, 11, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(7))

APPROXIMATE = "guided_separable"  # which cuts dense kernels to rank one


class Kinds(nn.Sequential):
    """Convolutions of all kinds, in evaluation mode and double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(4, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 6, (3, 2), stride=(1, 2), padding=1, groups=2, bias=False)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6, padding_mode="replicate")
        self.same = create_conv2d(6, 4, 3, stride=2, padding="same")
        self.reflected = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.pointwise = nn.Conv2d(4, 3, 1)
        as_if_trained(self).double().eval()


def options_of(to: str) -> dict[str, Any]:
    kind: Any = all_targets()[to].options
    options: dict[str, Any] = {}
    if "convert_first" in kind.__dataclass_fields__:
        options["convert_first"] = True
    return {**options, "hidden": 2} if to == "hybrid" or to.startswith("guided") else options


def converted(to: str, where: Any = "*", net: nn.Module | None = None, **options: Any) -> Any:
    model = Kinds() if net is None else net
    return convswap.convert(model, to, where, example_inputs=X[:1], **{**options_of(to), **options})


def trained(model: nn.Module, scale: float = 0.3) -> Any:
    """All parameters of converted layers moved."""
    with torch.no_grad():
        for layer in layers_of(model).values():
            for parameter in layer.parameters():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
                parameter.add_(scale * noise.to(parameter))
    return model


def layers_of(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ConvLayer)}


def same_geometry(one: Any, other: Any) -> bool:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups", "padding_mode")
    return all(getattr(one, name) == getattr(other, name) for name in names)


# What is computed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", all_targets())
def test_a_fresh_conversion_is_undone(to: str) -> None:
    net = Kinds()
    model = converted(to, net=net)
    made: Any = convswap.revert(model)
    (told,) = convswap.report(made).reversions
    assert not told.kept
    assert {layer.name for layer in told.layers} == {step.name for step in convswap.report(model).swaps}
    assert list(made.state_dict()) == list(net.state_dict())
    x = X
    for name, conv in net.named_children():
        there = made.get_submodule(name)
        assert same_geometry(there, conv)
        exact = to != APPROXIMATE or name == "depthwise" or name == "pointwise"
        if exact:
            assert relative_error(there(x), conv(x)) <= 1e-10, name
        else:
            assert relative_error(there(x), conv(x)) > 1e-3, name
        x = conv(x)
    if to != APPROXIMATE:
        assert relative_error(made(X), net(X)) <= 1e-10
        assert to not in ("dcls", "partial") or convswap.verify(net, made, X).passed
        assert all(layer.kernel_error in (None, 0) for layer in told.layers)
    else:
        assert "what the conversion to guided_separable could only approximate" in str(convswap.report(made))
    assert not layers_of(made)
    assert convswap.new_parameters(made) == {}
    dropped = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in made.parameters())
    assert sum(layer.dropped for layer in told.layers) == dropped


@pytest.mark.parametrize(
    ("to", "what"),
    [
        ("dynamic", "its attention to the input, and the differences of its 4 kernels"),
        ("condconv", "its attention to the input"),
        ("odconv", "its attention to the input"),
        ("guided", "that its kernels depend on a guide, its own input"),
        ("guided_local", "that its kernels depend on a guide"),
        ("guided_channelwise", "that its kernels depend on a guide"),
        ("guided_separable", "that its kernels depend on a guide"),
        ("guided_pointwise", "that its kernels depend on a guide"),
        ("hybrid", "the kernels that it predicts for each patch"),
    ],
)
def test_what_depends_on_the_input_is_lost(to: str, what: str) -> None:
    fresh = converted(to)
    made = convswap.revert(fresh)
    assert {layer.fidelity for layer in convswap.report(made).reversions[0].layers} == {"exact"}
    assert relative_error(made(X), fresh(X)) <= 1e-10
    model = trained(fresh, 0.1)
    reverted: Any = convswap.revert(model, data=X)
    (told,) = convswap.report(reverted).reversions
    assert told.samples == 2
    assert told.output_error is not None
    difference = reverted(X) - model(X)
    assert told.output_error.mean == pytest.approx((difference.norm() / model(X).norm()).item())
    for layer in told.layers:
        assert layer.fidelity == "approximate"
        assert layer.lost[0].startswith(what)
        assert layer.error is not None
        assert layer.error.mean > 1e-6
    shown = str(convswap.report(reverted))
    assert f"lost in reverting {told.layers[0].name}" in shown
    assert what in shown
    assert "parameters dropped in reverting: " in shown


def without_guide(layer: Any) -> None:
    """No influence of the guide, all else as trained."""
    for name, child in layer.hypernet.named_children():
        if name.startswith("expand"):
            nn.init.zeros_(child.weight)


@pytest.mark.parametrize(
    ("to", "options"),
    [
        ("guided", {}),
        ("guided", {"generate_bias": True}),
        ("guided_local", {}),
        ("guided_local", {"rank": 2, "generate_bias": True}),
        ("guided_channelwise", {}),
        ("guided_separable", {}),
        ("guided_pointwise", {}),
        ("hybrid", {}),
    ],
)
def test_what_is_the_same_for_all_inputs_stays(to: str, options: dict[str, Any]) -> None:
    """All that was trained is in the convolution, but for what depends on the guide or the patch."""
    model = trained(converted(to, **options))
    for layer in layers_of(model).values():
        if isinstance(layer, PatchDynamicConv2d):
            nn.init.zeros_(layer.predictors.last_weight)
        elif hasattr(layer, "hypernet"):
            without_guide(layer)
    made = convswap.revert(model)
    assert {layer.fidelity for layer in convswap.report(made).reversions[0].layers} == {"exact"}
    assert relative_error(made(X), model(X)) <= 1e-10


def test_attention_is_neutral_in_what_is_left() -> None:
    model = trained(converted("odconv", "grouped"))
    made: Any = convswap.revert(model)
    assert torch.equal(made.grouped.weight, model.grouped.freeze().weight)


@pytest.mark.parametrize("to", ["padding_free", "extrapolated", "random_pad", "partial", "explicit_boundary"])
def test_the_padding_is_as_it_was(to: str) -> None:
    options = {"train_edge_kernel": True} if to in ("padding_free", "extrapolated") else {}
    fresh = converted(to, **options)
    fidelities = {layer.name: layer.fidelity for layer in convswap.report(convswap.revert(fresh)).reverted().values()}
    as_before = {"dense", "grouped", "same"} if to == "explicit_boundary" else set()
    assert {name for name, fidelity in fidelities.items() if fidelity == "exact"} == as_before
    model = trained(fresh)
    made: Any = convswap.revert(model)
    for name, layer in layers_of(model).items():
        conv = made.get_submodule(name)
        assert torch.equal(conv.weight, layer.weight)
        assert conv.padding_mode == getattr(Kinds(), name).padding_mode
        told = convswap.report(made).reverted()[name]
        assert told.fidelity == "interior"
        mode = conv.padding_mode
        assert told.lost[0] == f"its own treatment of the border, where the convolution pads ({mode})"
        assert len(told.lost) == (2 if options or to in ("explicit_boundary", "partial") else 1)
    inside = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    layer, conv = model.reflected, made.reflected
    x = torch.randn(1, 4, 12, 12, dtype=torch.float64)
    assert relative_error(conv(x)[inside], layer(x)[inside]) <= 1e-12


def test_a_border_that_is_treated_alike() -> None:
    model = converted("padding_free", "depthwise", order=0)  # repeats the pixels at the border, as that convolution did
    made = convswap.revert(model)
    assert convswap.report(made).reverted()["depthwise"].fidelity == "exact"
    assert relative_error(made(X), model(X)) <= 1e-12


# DCLS -------------------------------------------------------------------------------------------------------------


def test_dcls_kernels_that_are_on_the_taps() -> None:
    net = Kinds()
    model = converted("dcls", net=net, kernel_count=12)  # further elements have no weight yet
    with torch.no_grad():
        model.depthwise.weight.mul_(2)  # on its taps, 2 pixels apart
    made: Any = convswap.revert(model)
    assert relative_error(made(X), model(X)) <= 1e-10
    assert torch.allclose(made.depthwise.weight, 2 * net.depthwise.weight, rtol=1e-12)
    told = convswap.report(made).reverted()
    assert {layer.lost for layer in told.values()} == {("the learned positions of its elements",)}


def test_dcls_kernels_with_something_beside_the_taps() -> None:
    model = converted("dcls")
    with torch.no_grad():
        model.dense.P.add_(0.25)
    made: Any = convswap.revert(model)
    assert isinstance(made.dense, Dcls2d)
    (told,) = convswap.report(made).reversions
    ((name, reason),) = [(layer.name, layer.reason) for layer in told.kept]
    assert name == "dense"
    kernel = model.dense.construct_kernel()
    beside = kernel.clone()
    beside[..., 2:5, 2:5] = 0
    part = (beside.norm() / kernel.norm()).item()
    assert f"{100 * part:.2g} % of its kernel (in the Euclidean norm) is beside the 3×3 taps of a convolution" in reason
    assert "freeze makes one of the whole kernel" in reason
    frozen: Any = convswap.freeze(made)
    assert relative_error(frozen(X), model(X)) <= 1e-10
    assert set(convswap.report(frozen).reverted()) == set(layers_of(model)) - {"dense"}
    assert set(convswap.report(frozen).frozen()) == {"dense"}


def test_gaussian_elements_lose_little() -> None:
    net = Kinds()
    model = converted("dcls", net=net, version="gauss")
    made: Any = convswap.revert(model)
    for name, layer in convswap.report(made).reverted().items():
        kernel, conv = model.get_submodule(name).construct_kernel(), made.get_submodule(name)
        assert layer.fidelity == "approximate"
        lost = kernel.norm().square() - conv.weight.norm().square()
        assert layer.kernel_error == pytest.approx((lost.sqrt() / kernel.norm()).item(), rel=1e-6)
        assert 1e-4 < layer.kernel_error < 1e-2
        original = net.get_submodule(name).weight
        assert (conv.weight - original).norm() < 2e-2 * original.norm()
        assert layer.lost[0] == (
            "the learned positions and widths of its elements, and what of its kernel is beside the convolution's taps"
        )
        assert layer.lost[1].startswith("what the conversion to dcls could only approximate of the convolution's own")
    with torch.no_grad():
        model.dense.SIG.fill_(0.5)
    assert "dense" in {layer.name for layer in convswap.report(convswap.revert(model)).reversions[0].kept}


@pytest.mark.parametrize("layer", [Dcls2_1d, DclsDilated2d, Dcls2d])
def test_other_layers_with_spacings(layer: Any) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=4, dilation=(1, 2), groups=2).double()
    made = layer.from_conv(conv)
    reverted = made.revert()
    assert type(reverted) is nn.Conv2d
    assert same_geometry(reverted, conv)
    assert torch.allclose(reverted.weight, conv.weight, rtol=1e-12, atol=0)
    assert torch.equal(reverted.bias, conv.bias)
    assert made.lost_by_reverting().kernel_error == 0
    with torch.no_grad():
        made.P.add_(0.3)
    assert made.lost_by_reverting().kernel_error > 1e-2


def test_shared_positions(tmp_path: Any) -> None:
    net = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))).double()
    model = convswap.convert(net, "dcls", share_positions="group", example_inputs=X[:1])
    made: Any = convswap.revert(model, "0")
    assert type(made[0]) is nn.Conv2d
    assert made[1].P is made[2].P
    assert relative_error(made(X), net(X)) <= 1e-10
    report = convswap.report(made)
    assert report.reverted()["0"].dropped == 0  # others have its positions
    added = report.total("after").parameters - report.total("before").parameters
    assert report.parameters + added == sum(p.numel() for p in made.parameters())
    convswap.save(made, tmp_path / "net.safetensors")
    loaded: Any = convswap.load(tmp_path / "net.safetensors", model=copy.deepcopy(net))
    assert loaded[1].P is loaded[2].P
    assert torch.equal(loaded(X), made(X))
    assert convswap.report(loaded) == report


# What cannot be reverted ------------------------------------------------------------------------------------------


def test_kept_with_reasons() -> None:
    class Own(DynamicConv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.hooked = CondConv2d(3, 3, 3), CondConv2d(3, 3, 3)
            self.handed, self.own = GuidedConv2d(3, 3, 3), Own(3, 3, 3)
            self.factors = SeparableGuidedConv2d(3, 3, 3).with_hypernet(guide_channels=3)
            self.published = PatchDynamicConv2d(3, 3, 3, similar_conv=False, patch_order="published")
            self.hooked.register_forward_hook(lambda *_: None)

    model = Net()
    made: Any = convswap.revert(model)
    assert type(made.a) is nn.Conv2d
    (told,) = convswap.report(made).reversions
    reasons = {layer.name: layer.reason for layer in told.kept}
    assert set(reasons) == {"hooked", "handed", "own", "factors", "published"}
    assert "it has hooks that would be lost (forward hook)" in reasons["hooked"]
    assert reasons["handed"] == "its kernels are handed in at each call"
    assert "has a forward of its own: give it a revert that matches" in reasons["own"]
    assert "a norm or a ReLU between its two factors" in reasons["factors"]
    assert "it has no convolution (similar_conv=False)" in reasons["published"]
    for shown in (str(convswap.report(made)), convswap.report(made).to_html()):
        assert "not reverted handed: its kernels are handed in at each call" in shown
    with pytest.raises(NothingToSwapError, match="nothing to revert: Net has no layer that can be\n  handed: its ker"):
        convswap.revert(model, ["handed", "factors"])


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (Kinds, {}, NothingToSwapError, "nothing to revert: Kinds has no layer of convswap's"),
        (
            lambda: convswap.freeze(converted("dcls")),
            {},
            NothingToSwapError,
            "nothing to revert: Kinds has no layer of",
        ),
        (lambda: converted("guided"), {"where": "conv3"}, PatternError, "'conv3' matches none of the 6 layers"),
        (lambda: converted("guided"), {"data": X[:, :2]}, ConvswapError, "does not run on batch 0"),
        (lambda: nn.DataParallel(converted("guided")), {}, ModelError, "wrapped in DataParallel"),
    ],
)
def test_errors(model: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convswap.revert(model(), **options)


# What is carried --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["dcls", "dynamic", "guided", "hybrid", "padding_free"])
def test_modes_gradients_and_precision(to: str) -> None:
    model = converted(to).float().train()
    model.dense.eval()
    for module, name in list(_carried(model.grouped)):
        getattr(module, name).requires_grad_(False)
    state, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        made: Any = convswap.revert(model)
    assert made.training
    assert made.grouped.training
    assert not made.dense.training
    assert not made.grouped.weight.requires_grad
    assert made.dense.weight.requires_grad
    assert made.dense.bias.requires_grad
    assert made.dense.weight.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    made(X.float()).square().sum().backward()
    assert made.dense.weight.grad.any()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("to", ["dcls", "dynamic"])
def test_half_precision(to: str) -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)).bfloat16()
    made: Any = convswap.revert(convswap.convert(net, to, **options_of(to)))
    assert made[0].weight.dtype == torch.bfloat16
    assert (made[0].weight - net[0].weight).abs().max() <= 2**-7 * net[0].weight.abs().max()  # type: ignore[union-attr,operator]


def _carried(layer: Any) -> Iterator[tuple[nn.Module, str]]:
    if hasattr(layer, "carried_parameters"):
        yield from layer.carried_parameters()["weight"]
    else:
        yield layer, "weight"


@pytest.mark.parametrize("to", ["dcls", "dynamic", "guided", "partial"])
def test_memory_format(to: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)).to(memory_format=torch.channels_last)
    made: Any = convswap.revert(convswap.convert(net, to, "1"))
    assert all(layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in made)
    plain = convswap.convert(net.to(memory_format=torch.contiguous_format), to, "1")
    assert convswap.revert(plain)[1].weight.is_contiguous()  # type: ignore[index]


class Shared(nn.Module):
    """One layer at two places, and two with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.b, self.c = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c.weight = self.b.weight
        self.a.note = "noted"

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.again(self.a(x))))


@pytest.mark.parametrize("to", ["dcls", "condconv", "guided", "guided_separable", "hybrid", "padding_free"])
def test_shared_layers_and_notes(to: str) -> None:
    model = convswap.convert(Shared().double().eval(), to, example_inputs=X[:1], **options_of(to))
    made: Any = convswap.revert(model)
    assert made.a is made.again
    assert made.a.note == "noted"
    assert made.c.weight is made.b.weight
    assert relative_error(made(X), model(X)) <= 1e-10 or to == "padding_free"
    part: Any = convswap.revert(model, "b")
    assert type(part.b) is nn.Conv2d
    assert isinstance(part.c, ConvLayer)
    assert isinstance(part.again, ConvLayer)


def test_meta_device_copies_and_pickles() -> None:
    for to in ("dcls", "guided", "explicit_boundary"):
        on_meta: Any = convswap.revert(converted(to).to("meta"))
        assert on_meta.dense.weight.is_meta
        assert same_geometry(on_meta.dense, Kinds().dense)
    made = convswap.revert(converted("guided"))
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(other(X), made(X))
        assert convswap.report(other) == convswap.report(made)


def test_a_single_layer() -> None:
    conv = nn.Conv2d(4, 4, 3).double()
    for to in ("dcls", "guided"):
        made = convswap.revert(convswap.convert(conv, to))
        assert type(made) is nn.Conv2d
        assert relative_error(made(X), conv(X)) <= 1e-10


def test_weight_standardisation_is_lost() -> None:
    net = nn.Sequential(StdConv2d(4, 4, 3)).double().eval()
    made = convswap.revert(convswap.convert(net, "dcls"))
    assert relative_error(made(X), net(X)) <= 1e-10
    assert any("weight standardisation" in what for what in convswap.report(made).reverted()["0"].lost)


# Layers of others -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoOptions:
    pass


class Scaled(nn.Module):
    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.conv, self.scale = conv, nn.Parameter(torch.ones((), dtype=conv.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale


class Revertible(Scaled):
    def revert(self) -> nn.Module:
        return self.conv  # type: ignore[no-any-return]


class ScaledTarget(Target):
    name, summary, options = "test_scaled", "for the tests", NoOptions
    layer: Any = Scaled

    def unsupported_reason(self, site: ConvSite, options: NoOptions) -> str | None:
        return None if site.plain.padding != "same" else "it pads to SAME"

    def fidelity(self, site: ConvSite, options: NoOptions) -> Fidelity:
        return "exact"

    def build(self, conv: Conv, options: NoOptions, generator: torch.Generator | None) -> nn.Module:
        made: nn.Module = self.layer(conv)
        return made


class RevertibleTarget(ScaledTarget):
    name, layer = "test_revertible", Revertible


def test_targets_of_others(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convswap.targets.registry._targets", dict(all_targets()))
    for target in (ScaledTarget(), RevertibleTarget()):
        convswap.register(target)
    net = Kinds()
    rules = [
        convswap.Swap("dense", "test_scaled"),
        convswap.Swap(["grouped", "depthwise", "reflected"], "test_revertible"),
    ]
    model: Any = convswap.convert(net, rules)
    made: Any = convswap.revert(model)
    assert type(made.grouped) is nn.Conv2d
    assert made.grouped is not model.grouped.conv
    assert made.grouped.weight is not model.grouped.conv.weight
    assert relative_error(made(X), net(X)) <= 1e-12
    (told,) = convswap.report(made).reversions
    (kept,) = told.kept
    assert kept.name == "dense"
    assert "a Scaled has no method revert() that would make a plain convolution of it" in kept.reason
    layer = told.layers[0]
    assert (layer.dropped, layer.fidelity) == (1, "approximate")
    assert layer.lost == ("what a Revertible has besides a convolution's weight and bias",)
    convswap.save(made, tmp_path / "net.safetensors")
    loaded = convswap.load(tmp_path / "net.safetensors", model=Kinds())
    assert torch.equal(loaded(X), made(X))  # with what is padded by reflection, too
    again = convswap.convert(loaded, "dynamic", ["depthwise", "reflected"])
    assert relative_error(again(X), net(X)) <= 1e-12


def test_both_verbs_on_one_model() -> None:
    net = as_if_trained(TwoConvs()).double().eval()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    model = convswap.convert(convswap.convert(net, "dcls", "conv1"), "condconv", "conv2")
    made = convswap.revert(convswap.freeze(model, where="conv1"), "conv2")
    headline = str(convswap.report(made)).splitlines()[0]
    assert "2 of 2 convolutions converted (1 to dcls, 1 to condconv, 1 frozen, 1 reverted)" in headline
    assert relative_error(made(x), net(x)) <= 1e-10
