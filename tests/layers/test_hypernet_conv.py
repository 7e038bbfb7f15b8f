"""The pair of a guided convolution and its hypernet: where its guide comes from, and what it shows of its kernel."""

import copy
import math
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from convswap.layers import (
    GuidedChannelWiseConv2d,
    GuidedConv2d,
    GuidedDepthWiseConv2d,
    GuidedLocalConv2d,
    HypernetConv2d,
    SeparableGuidedConv2d,
)
from convswap.layers.guided_base import GuidedLayer
from convswap.layers.hypernet import fit_guide

from .helpers import relative_error

DENSE, DEPTHWISE = ({"padding": 1, "stride": 2, "dtype": torch.float64} for _ in range(2))
CASES = {
    "guided": (GuidedConv2d, lambda: nn.Conv2d(4, 6, 3, groups=2, **DENSE), {}),
    "local": (GuidedLocalConv2d, lambda: nn.Conv2d(4, 6, (3, 2), groups=2, **DENSE), {}),
    "low rank": (GuidedLocalConv2d, lambda: nn.Conv2d(4, 6, (3, 2), groups=2, **DENSE), {"rank": 2}),
    "channelwise": (GuidedChannelWiseConv2d, lambda: nn.Conv2d(4, 8, 3, groups=4, **DENSE), {}),
    "depthwise": (GuidedDepthWiseConv2d, lambda: nn.Conv2d(4, 6, 1, groups=2, **DENSE), {}),
    "separable": (SeparableGuidedConv2d, lambda: nn.Conv2d(4, 4, 3, groups=4, **DENSE), {}),
}
every_case = pytest.mark.parametrize("name", CASES)


def from_conv(name, **options):
    layer_class, make, own = CASES[name]
    conv = make()
    return layer_class.from_conv(conv, guide_channels=3, **own, **options), conv


def changed(name, seed=0, **options):
    """A pair whose guide has an effect, as after training."""
    pair, _ = from_conv(name, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return pair


X, DEPTH = torch.randn(2, 4, 8, 9, dtype=torch.float64), torch.randn(2, 3, 5, 30, dtype=torch.float64)


@every_case
def test_any_guide_starts_as_the_convolution(name):
    pair, conv = from_conv(name, generate_bias=True)
    for guide in (DEPTH, 100 * DEPTH, DEPTH[:, :, 0, 0]):
        assert relative_error(pair(X, guide), conv(X)) < 1e-12
    assert relative_error(pair(X[0], DEPTH[0]), conv(X[0])) < 1e-12


@every_case
def test_guide_has_an_effect_on_its_own_sample_alone(name):
    pair = changed(name)
    y = pair(X, DEPTH)
    assert y.shape[2:] == pair.conv.output_size((8, 9))
    other = torch.cat((DEPTH[:1], 2 * DEPTH[1:] - 1))
    z = pair(X, other)
    assert torch.equal(y[0], z[0])
    assert relative_error(z[1], y[1]) > 1e-3
    assert relative_error(pair(X[1:], DEPTH[1:]), y[1:]) < 1e-12
    assert relative_error(pair(X[1], DEPTH[1]), y[1]) < 1e-12


@every_case
def test_forward_is_fit_hypernet_and_convolution(name):
    for generate_bias in (False, True):
        pair = changed(name, generate_bias=generate_bias)
        made = pair.hypernet(fit_guide(DEPTH, X, pair.fit))
        arguments = made if pair.hypernet.outputs > 1 else (made,)
        assert len(arguments) == 1 + generate_bias + (name == "separable")
        assert torch.equal(pair(X, DEPTH), pair.conv(X, *arguments))
    assert (pair.fit is None) == (name in ("guided", "depthwise"))


@every_case
def test_the_input_is_the_guide_where_none_is_named(name):
    layer_class, make, own = CASES[name]
    pair = layer_class.from_conv(make(), **own)
    assert pair.guide is None
    assert pair.guide_channels == 4
    nn.init.normal_(pair.hypernet.expand.weight)
    assert torch.equal(pair(X), pair(X, X))


@every_case
def test_named_guide_must_be_handed_in(name):
    pair = changed(name)
    pair.guide = "layer2"
    with pytest.raises(RuntimeError, match=r"no guide in this call: .*'layer2'.*forward_features"):
        pair(X)
    assert pair(X, DEPTH).isfinite().all()
    assert "guide='layer2'" in repr(pair)


@every_case
def test_guide_of_wrong_channels_or_batch_is_refused(name):
    pair = changed(name)
    with pytest.raises(ValueError, match=r"guide_channels=3 .*got \(2, 4, 8, 9\)|guide_channels=3 .*got \(2, 4, "):
        pair(X)
    with pytest.raises(ValueError, match=r"\(1, 3, 5, 30\) and an input of shape \(2, 4, 8, 9\)"):
        pair(X, DEPTH[:1])


@every_case
def test_kernel_at_zero_guide_contribution(name):
    pair, conv = from_conv(name)
    assert relative_error(pair.weight, conv.weight) < 1e-12
    assert torch.equal(pair.bias, conv.bias)
    assert pair.bias is pair.conv.bias
    if name != "separable":
        with torch.no_grad():
            pair.weight.mul_(2)  # a view: what holds the kernel changes with it
        assert (
            relative_error(pair(X, DEPTH), 2 * (conv(X) - conv.bias[:, None, None]) + conv.bias[:, None, None]) < 1e-12
        )
    (pair.weight * conv.weight.detach()).sum().backward()
    assert all(getattr(module, key).grad.any() for module, key in pair.carried_parameters()["weight"])


@every_case
def test_carried_parameters_are_all_that_is_not_new(name):
    for bias in (True, False):
        layer_class, make, own = CASES[name]
        conv = make()
        conv.bias = conv.bias if bias else None
        for generate_bias in (False, True):
            pair = layer_class.from_conv(conv, generate_bias=generate_bias, **own)
            carried = pair.carried_parameters()
            assert set(carried) == {"weight", "bias"}
            assert len(carried["bias"]) == bias
            held = {id(getattr(module, key)) for pairs in carried.values() for module, key in pairs}
            new = {id(value) for value in pair.new_parameters().values()}
            assert held | new == {id(value) for value in pair.parameters()}
            assert not held & new
            # A second start for the bias beside the convolution's own would be the same parameter twice.
            assert ("hypernet.expand_bias.bias" in dict(pair.named_parameters())) == (generate_bias and not bias)


@every_case
def test_two_children_and_their_order(name):
    pair, _ = from_conv(name)
    assert [key for key, _ in pair.named_children()] == ["hypernet", "conv"]
    assert isinstance(pair, HypernetConv2d)


class Convolved(TorchDispatchMode):
    """The numbers that convolutions return."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.convolution.default:
            self.numbers += made.numel()
        return made


@every_case
def test_numbers_generated_for_a_sample(name):
    pair = changed(name, generate_bias=True)
    made = pair.hypernet(fit_guide(DEPTH, X, pair.fit))
    if name == "low rank":  # and what is held of each kernel's outputs, until they are mixed
        held = Convolved()
        with held:
            pair(X[:1], DEPTH[:1])
        assert pair.generated_numbers((8, 9)) == held.numbers + made[0][1][0].numel() + made[1][0].numel()
        return
    assert pair.generated_numbers((8, 9)) == sum(value[0].numel() for value in made)


class Leaves(torch.fx.Tracer):
    def is_leaf_module(self, module, name):
        return name.endswith(("hypernet", "conv"))


class Guided(nn.Module):
    def __init__(self, pair):
        super().__init__()
        self.pair = pair

    def forward(self, x, depth):
        return self.pair(x, guide=depth)


@every_case
def test_traces_to_three_nodes(name):
    model = Guided(changed(name))
    graph = Leaves().trace(model)
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    assert called == ["pair.hypernet", "pair.conv"]
    functions = [node.target for node in graph.nodes if node.op == "call_function"]
    assert functions[0] is fit_guide
    assert all(function.__name__ == "getitem" for function in functions[1:])
    assert torch.equal(torch.fx.GraphModule(model, graph)(X, DEPTH), model(X, DEPTH))


@every_case
def test_traces_by_plain_symbolic_trace(name):
    for generate_bias in (False, True):
        model = Guided(changed(name, generate_bias=generate_bias))
        traced = torch.fx.symbolic_trace(model)
        assert torch.equal(traced(X, DEPTH), model(X, DEPTH))
        assert relative_error(traced(X[:1], DEPTH[:1, :, :2]), model(X[:1], DEPTH[:1, :, :2])) < 1e-13
        with pytest.raises(ValueError, match="no guide"):
            torch.fx.symbolic_trace(model.pair)(X)


@every_case
def test_copies_with_another_guide(name):
    pair = changed(name)
    pair.guide = "input:depth"
    for other in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        assert other.guide == "input:depth"
        assert torch.equal(other(X, DEPTH), pair(X, DEPTH))


@every_case
def test_compiled_and_exported_with_a_guide_of_another_size(name):
    model, y = Guided(changed(name)), None
    y = model(X, DEPTH)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(X, DEPTH), y) < 1e-12
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (X, DEPTH), dynamic_shapes=({0: batch}, {0: batch})).module()
    more = torch.cat((X, X)), torch.cat((DEPTH, 2 * DEPTH))
    assert relative_error(program(*more), model(*more)) < 1e-12


@every_case
def test_channels_last_guide_and_input(name):
    pair = changed(name)
    y = pair(X, DEPTH)
    last = pair(*(value.contiguous(memory_format=torch.channels_last) for value in (X, DEPTH)))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(last, y) < 1e-12


LAYERS = {
    "guided": lambda **options: GuidedConv2d(2, 2, 3, **options),
    "local": lambda **options: GuidedLocalConv2d(2, 2, 3, **options),
    "channelwise": lambda **options: GuidedChannelWiseConv2d(2, **options),
    "depthwise": lambda **options: GuidedDepthWiseConv2d(2, 2, **options),
    "separable": lambda **options: SeparableGuidedConv2d(2, 2, 3, **options),
}
MOVES = {
    "made there": lambda make: make(dtype=torch.float64, device="meta"),
    "cast": lambda make: make().double(),
    "cast back": lambda make: make(dtype=torch.float64).half(),
    "moved": lambda make: make().to("meta"),
    "emptied": lambda make: make(dtype=torch.float64, device="meta").to_empty(device="cpu"),
    "copied": lambda make: copy.deepcopy(make(dtype=torch.bfloat16)),
    "stored": lambda make: pickle.loads(pickle.dumps(make(dtype=torch.float64))),
    "of a larger module": lambda make: nn.Sequential(make()).double()[0],
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_hypernet_is_made_where_the_layer_is(name, bias, move):
    layer = MOVES[move](lambda **options: LAYERS[name](bias=bias, **options))
    dtypes = {"cast back": torch.float16, "moved": torch.float32, "copied": torch.bfloat16}
    device = "meta" if move in ("made there", "moved") else "cpu"
    wanted = {(dtypes.get(move, torch.float64), device)}
    assert {(value.dtype, value.device.type) for value in layer.with_hypernet().parameters()} == wanted


@pytest.mark.parametrize("name", LAYERS)
def test_states_hold_parameters_and_the_norm_alone(name):
    layer = LAYERS[name]()
    norm = {f"norm.{key}" for key in nn.BatchNorm2d(2).state_dict()} if name == "separable" else set()
    assert set(layer.state_dict()) == norm
    pair = layer.with_hypernet()
    kept = {key for key, _ in pair.named_parameters()} | {f"conv.{key}" for key in norm}
    assert set(pair.state_dict()) == kept
    pair.load_state_dict(copy.deepcopy(pair).state_dict())


@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_a_kernel_for_each_pixel_load_kernels_when_made_and_moved(name, monkeypatch):
    """Later, in a first call that a compiler looks on at, is too late."""
    wanted = []
    monkeypatch.setattr(sys.modules[GuidedLayer.__module__], "want_kernels", lambda *where: wanted.extend(where))
    layer = LAYERS[name](device="meta")
    kinds = [value.device.type for value in wanted]
    layer = copy.deepcopy(nn.Sequential(layer).to_empty(device="cpu"))
    kinds += [value.device.type for value in wanted[1:]]
    assert kinds == (["meta", "cpu", "cpu"] if layer[0].spatial else [])


class Own(nn.Module):
    outputs = 1

    def forward(self, guide):
        return guide.new_ones(guide.shape[0], 2, 9, 2)


def test_hypernets_of_another_class_are_refused():
    with pytest.raises(TypeError, match=r"must be a convswap.layers.hypernet.Hypernet, got Own: give a function"):
        HypernetConv2d(GuidedConv2d(2, 2, 3), Own())


def test_numbers_without_which_a_separable_kernel_has_no_factors_are_named():
    conv = nn.Conv2d(2, 3, 3)
    with torch.no_grad():
        conv.weight[0, 1, 0] = torch.tensor([math.nan, math.inf, 1.0])
    assert "2 numbers that are NaN or infinite" in SeparableGuidedConv2d.unsupported_reason(conv)
    with pytest.raises(ValueError, match=r"cannot make SeparableGuidedConv2d .*2 numbers that are NaN or infinite"):
        SeparableGuidedConv2d.from_conv(conv)
    assert GuidedConv2d.from_conv(conv).weight.isnan().sum() == 1
    assert SeparableGuidedConv2d.unsupported_reason(conv.to("meta")) is None


def test_guide_without_pixels_is_refused():
    for layer_class in (GuidedConv2d, GuidedLocalConv2d, SeparableGuidedConv2d):
        pair = layer_class(2, 2, 3).with_hypernet()
        with pytest.raises(ValueError, match=r"a guide (must have pixels|of 0x5 pixels)"):
            pair(torch.randn(2, 2, 5, 5), torch.randn(2, 2, 0, 5))
