"""What holds for every layer. A new kind of layer is one more line in KINDS."""

import copy
import inspect
import pickle
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models.feature_extraction import create_feature_extractor

from convswap.layers import (
    BorderedConv,
    CondConv2d,
    ConvLayer,
    Dcls1d,
    Dcls2_1d,
    Dcls2d,
    Dcls2dK1d,
    Dcls3_1d,
    Dcls3d,
    DclsDilated1d,
    DclsDilated2d,
    DclsLayer,
    DiffConv2dLayer,
    DynamicConv1d,
    DynamicConv2d,
    DynamicConv3d,
    ExplicitBoundaryConv2d,
    ExtrapolatedConv2d,
    GuidedChannelWiseConv2d,
    GuidedConv2d,
    GuidedDepthWiseConv2d,
    GuidedLayer,
    GuidedLocalConv2d,
    ODConv2d,
    PaddingFreeConv1d,
    PaddingFreeConv2d,
    PaddingFreeConv3d,
    PartialConv2d,
    PatchDynamicConv2d,
    RandomPadConv2d,
    SeparableGuidedConv2d,
)

from .helpers import Geometry, few_examples, geometries, interior, is_channels_last, plain_conv, relative_error


@dataclass(frozen=True)
class Kind:
    layer: type[ConvLayer]
    options: dict[str, Any] = field(default_factory=dict)
    exact: bool = True
    kernel_size: tuple[int, ...] | None = None
    """Of the convolutions that it can be made from, where not all will do."""
    multiple: int | None = None
    """For depthwise convolutions only, with so many outputs for each channel."""
    made_with: dict[str, Any] = field(default_factory=dict)
    """Options of the constructor that ``from_conv`` has not."""
    normed: bool = False
    """A norm makes the outputs for a sample depend on the others, but for evaluation mode."""
    interior: tuple[str, ...] = ()
    """Made from a convolution of such a padding mode, it computes the same but for the outputs at the border."""
    adds: bool = True
    """It has parameters that the convolution has not."""
    least_size: int = 1
    """Pixels that each axis must have."""
    noisy: bool = False
    """Its outputs depend on the global generator."""

    @property
    def dims(self) -> int:
        return self.layer.dims

    def __str__(self) -> str:
        options = (f"{name}={getattr(value, '__name__', value)}" for name, value in self.options.items())
        return "-".join([self.layer.__name__, *options])

    def from_conv(self, conv: nn.Module, seed: int = 0) -> Any:
        return self.layer.from_conv(conv, generator=torch.Generator().manual_seed(seed), **self.options)

    def fitted(self, g: Geometry) -> Geometry:
        """A geometry that it can be made from, the nearest to this one."""
        if self.kernel_size:
            g = replace(g, kernel_size=self.kernel_size)
        if self.multiple:
            g = replace(g, groups=g.in_channels, out_channels=g.in_channels * self.multiple)
        return g

    def usual(self, **changes: Any) -> Geometry:
        return self.fitted(usual(self.dims, **changes))

    @property
    def random_start(self) -> bool:
        """Whether what it starts with, besides what is carried, is random."""
        if issubclass(self.layer, BorderedConv):
            return False
        return "Dcls" not in self.layer.__name__ or "kernel_count" in self.options

    def compared(self, y: torch.Tensor, g: Geometry) -> torch.Tensor:
        """The outputs that have to be those of the convolution."""
        return interior(y, g) if g.padding_mode in self.interior else y

    def run(self, module: Any, *inputs: torch.Tensor) -> torch.Tensor:
        """The outputs of a module, always with the same noise."""
        if self.noisy:
            torch.manual_seed(11)
        return module(*inputs)


def own_net(guide_channels: int, hidden: int) -> nn.Module:
    """A hypernet's body that changes the size of its input."""
    return nn.Sequential(nn.Conv2d(guide_channels, 5, 3, 2, 1), nn.Tanh(), nn.Conv2d(5, hidden, 1))


ANY_PADDING = ("zeros", "reflect", "replicate", "circular")

KINDS = (
    Kind(DynamicConv1d),
    Kind(DynamicConv2d),
    Kind(DynamicConv2d, {"kernels": 2, "temperature": 30.0}),
    Kind(DynamicConv2d, {"attention": own_net}),
    Kind(DynamicConv3d),
    Kind(CondConv2d),
    Kind(ODConv2d),
    Kind(ODConv2d, {"kernels": 1, "temperature": 30.0}),
    Kind(ODConv2d, {"kernels": 3}, kernel_size=(1, 1)),
    Kind(ODConv2d, {"kernels": 2}, multiple=1),
    Kind(Dcls1d),
    Kind(Dcls2d),
    Kind(Dcls2d, {"kernel_count": 20}),
    Kind(Dcls3d),
    *(Kind(layer, {"version": version}) for layer in (Dcls1d, Dcls2d, Dcls3d) for version in ("v0", "max")),
    *(Kind(layer, {"version": "gauss"}, exact=False) for layer in (Dcls1d, Dcls2d, Dcls3d)),
    *(Kind(layer, {"version": version}) for layer in (Dcls2_1d, Dcls3_1d) for version in ("v1", "max")),
    Kind(Dcls3_1d, {"version": "gauss"}, exact=False),
    Kind(Dcls2dK1d, kernel_size=(3, 1)),
    Kind(Dcls2dK1d, {"version": "v0"}, kernel_size=(1, 3)),
    Kind(Dcls2dK1d, {"version": "gauss"}, exact=False, kernel_size=(1, 3)),
    Kind(DclsDilated1d),
    Kind(DclsDilated2d),
    Kind(DclsDilated2d, {"shared_positions": True, "gain": 0.5}),
    Kind(PatchDynamicConv2d, normed=True),
    Kind(PatchDynamicConv2d, {"hidden": 3}, multiple=1, normed=True),
    Kind(GuidedConv2d),
    Kind(GuidedConv2d, {"generate_bias": True}),
    Kind(GuidedConv2d, {"hypernet": own_net}),
    Kind(GuidedLocalConv2d),
    Kind(GuidedLocalConv2d, {"hypernet": own_net, "hidden": 3}),
    Kind(GuidedLocalConv2d, {"rank": 2, "generate_bias": True}),
    Kind(GuidedChannelWiseConv2d, multiple=2),
    Kind(GuidedChannelWiseConv2d, {"generate_bias": True}, multiple=1),
    Kind(GuidedDepthWiseConv2d, kernel_size=(1, 1)),
    Kind(SeparableGuidedConv2d, multiple=1, made_with={"norm": False}),
    Kind(SeparableGuidedConv2d, {"generate_bias": True}, multiple=1, made_with={"norm": False, "relu": False}),
    Kind(PaddingFreeConv1d, {"train_edge_kernel": True}, interior=ANY_PADDING, least_size=3),
    Kind(PaddingFreeConv2d, interior=ANY_PADDING, adds=False, least_size=3),
    Kind(PaddingFreeConv2d, {"order": (0, 1), "train_edge_kernel": True}, interior=ANY_PADDING, least_size=2),
    Kind(
        PaddingFreeConv3d,
        {"order": 1, "keep_img_grad_at_invalid": False},
        interior=ANY_PADDING,
        adds=False,
        least_size=2,
    ),
    Kind(ExtrapolatedConv2d, interior=ANY_PADDING, adds=False, least_size=2),
    Kind(DiffConv2dLayer, {"train_edge_kernel": True}, interior=ANY_PADDING, least_size=3),
    Kind(RandomPadConv2d, interior=ANY_PADDING, adds=False, noisy=True),
    Kind(PartialConv2d, interior=ANY_PADDING, adds=False),
    Kind(ExplicitBoundaryConv2d, interior=ANY_PADDING[1:]),
)

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
exact_kinds = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.exact], ids=str)


def usual(dims, **changes):
    """A 3×3 convolution with bias, stride 2 and 2 groups, in as many dimensions."""
    each = lambda number: (number,) * dims
    g = Geometry(each(9), each(3), each(2), each(1), each(1), 2, "zeros", 4, 6, bias=True, seed=7)
    return replace(g, **changes)


def carried_parameters(layer):
    """What the layer has from the convolution, by name."""
    if not hasattr(layer, "carried_parameters"):
        return {name: value for name, value in (("weight", layer.weight), ("bias", layer.bias)) if value is not None}
    held = [getattr(module, name) for pairs in layer.carried_parameters().values() for module, name in pairs]
    return {name: value for name, value in layer.named_parameters() if any(value is one for one in held)}


def state_of(layer):
    return {name: value.detach().clone() for name, value in layer.state_dict().items()}


def dtypes_of(layer):
    """Those of its tensors, but for counters."""
    return {value.dtype for value in layer.state_dict().values() if value.is_floating_point()}


def same_state(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# ---- from a convolution


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@exact_kinds
def test_layer_computes_what_the_convolution_does(kind, dtype, tolerance):
    @few_examples
    @given(geometries(dims=kind.dims, min_size=9))
    def check(g):
        g = kind.fitted(g)
        conv, x = g.conv(dtype), g.input(dtype=dtype)
        assume(kind.layer.unsupported_reason(conv, **kind.options) is None)
        layer = kind.from_conv(conv, g.seed)
        expected = kind.compared(plain_conv(x, conv.weight, conv.bias, g), g)
        assert expected.numel()
        assert relative_error(kind.compared(layer(x), g), expected) <= tolerance
        if g.padding_mode == "zeros":
            assert relative_error(kind.compared(layer(x[0]), g), expected[0]) <= tolerance

    check()


@pytest.mark.parametrize("optimiser_class", [torch.optim.SGD, torch.optim.Adam])
@every_kind
def test_every_parameter_moves_in_two_steps(kind, optimiser_class):
    g = kind.usual()
    layer, x = kind.from_conv(g.conv()), g.input()
    start = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    optimiser = optimiser_class(layer.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        layer(x).square().mean().backward()
        optimiser.step()
    assert set(layer.new_parameters()) < set(start)
    for name, parameter in layer.named_parameters():
        assert (parameter - start[name]).abs().max() > 1e-12, name


@every_kind
def test_new_parameters_are_those_that_a_convolution_has_not(kind):
    layer = kind.from_conv(kind.usual().conv())
    carried = set(dict(layer.named_parameters())) - set(layer.new_parameters())
    assert carried == set(carried_parameters(layer))
    assert len(carried) == (3 if kind.layer is SeparableGuidedConv2d else 2)
    assert bool(layer.new_parameters()) == kind.adds


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_kind
def test_half_precision_is_carried(kind, dtype):
    g = kind.usual()
    conv, x = g.conv(dtype), g.input(dtype=dtype)
    layer = kind.from_conv(conv)
    assert dtypes_of(layer) == {dtype}
    y = layer(x)
    assert y.dtype == dtype
    assert relative_error(kind.compared(y, g), kind.compared(conv(x), g)) < (
        8 * torch.finfo(dtype).eps if kind.exact else 0.03
    )


@every_kind
def test_small_half_precision_weights_stay_small(kind):
    conv = kind.usual().conv(torch.float16)
    with torch.no_grad():
        conv.weight.mul_(1e-4)
        conv.bias.zero_()
    layer = kind.from_conv(conv)
    assert layer.weight.abs().max() < 2 * conv.weight.abs().max()


@every_kind
def test_modes_and_requires_grad_are_carried(kind):
    conv = kind.usual().conv().eval()
    conv.weight.requires_grad_(False)
    layer = kind.from_conv(conv)
    assert not any(module.training for module in layer.modules())
    assert not layer.weight.requires_grad
    assert layer.bias.requires_grad
    assert all(parameter.requires_grad for parameter in layer.new_parameters().values())
    assert all(module.training for module in kind.from_conv(conv.train()).modules())


@every_kind
def test_the_convolution_is_left_alone(kind):
    conv = kind.usual().conv()
    before = state_of(conv)
    layer = kind.from_conv(conv)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1)
    assert same_state(state_of(conv), before)


@every_kind
def test_geometry_is_carried(kind):
    g = kind.usual(padding_mode="circular")
    layer = kind.from_conv(g.conv())
    mode = getattr(kind.layer, "beneath", "circular")
    assert (layer.in_channels, layer.out_channels, layer.groups) == (4, g.out_channels, g.groups)
    assert (layer.stride, layer.padding_mode) == (g.stride, mode)
    assert f"4, {g.out_channels}" in repr(layer)
    assert (f"padding_mode='{mode}'" in repr(layer)) == (mode != "zeros")


@every_kind
def test_zero_weights(kind):
    g = kind.usual()
    conv, x = g.conv(), g.input()
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
    layer = kind.from_conv(conv)
    y = layer(x)
    assert y.abs().max() < 1e-12
    assert all(value.isfinite().all() for value in layer.state_dict().values())
    (y - 1).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    assert any(value.grad.any() for name, value in carried_parameters(layer).items() if not name.endswith("conv.bias"))


@every_kind
def test_generator_decides_and_the_global_one_is_left_alone(kind):
    conv = kind.usual().conv()
    before = torch.get_rng_state()
    first = kind.from_conv(conv, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert same_state(state_of(first), state_of(kind.from_conv(conv, seed=1)))
    if kind.random_start:
        assert not same_state(state_of(first), state_of(kind.from_conv(conv, seed=2)))


@pytest.mark.parametrize("layer_class", [DynamicConv2d, DynamicConv3d, PaddingFreeConv2d, PaddingFreeConv3d])
def test_memory_format_of_the_kernel_is_carried(layer_class):
    dims = layer_class.dims
    contiguous = usual(dims).conv()
    formatted = copy.deepcopy(contiguous).to(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)
    layer = Kind(layer_class).from_conv(formatted)
    assert is_channels_last(layer.weight)
    assert not layer.weight.is_contiguous()
    assert same_state(state_of(layer), state_of(Kind(layer_class).from_conv(contiguous)))


class OnlyMeta(TorchDispatchMode):
    """Fails when any operation gives a tensor that has memory."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            assert not isinstance(value, torch.Tensor) or value.is_meta, function
        return result


@every_kind
def test_meta_convolution_allocates_nothing(kind):
    g = kind.usual()
    conv, x = g.conv().to("meta"), g.input(3).to("meta")
    with OnlyMeta():
        layer = kind.from_conv(conv)
        y = layer(x)
    real = kind.from_conv(g.conv())
    assert {name: value.shape for name, value in layer.state_dict().items()} == {
        name: value.shape for name, value in real.state_dict().items()
    }
    assert y.shape == real(g.input(3)).shape


@every_kind
def test_other_modules_are_refused(kind):
    other = nn.Conv2d(2, 2, 3) if kind.dims != 2 else nn.Conv1d(2, 2, 3)
    for module in (nn.Linear(2, 2), nn.ConvTranspose2d(2, 2, 3), other):
        assert type(module).__name__ in str(kind.layer.unsupported_reason(module))
        with pytest.raises(ValueError, match=type(module).__name__):
            kind.from_conv(module)


# ---- made anew


def make(kind, **changes):
    options = {name: value for name, value in kind.options.items() if name != "kernel_count"}
    channels = 4, 4 * kind.multiple if kind.multiple else 6
    if not issubclass(kind.layer, GuidedLayer):
        return kind.layer(*channels, 3, **{"padding": 1, **options, **changes})
    taken = inspect.signature(kind.layer).parameters
    geometry = {name: value for name, value in ({"padding": 1} | changes).items() if name in taken}
    size = {"kernel_size": 3} if "kernel_size" in taken else {}
    layer = kind.layer(*channels, bias=True, **size, **geometry, **kind.made_with)
    return layer.with_hypernet(**options)


@every_kind
def test_constructor_gives_a_layer_that_runs_and_depends_on_the_seed(kind):
    torch.manual_seed(0)
    layer = make(kind)
    start = state_of(layer)
    assert all(value.isfinite().all() and value.device.type == "cpu" for value in start.values())
    y = layer(torch.randn(2, 4, *(9,) * kind.dims))
    assert y.shape[:2] == (2, layer.out_channels)
    assert y.isfinite().all()
    y.sum().backward()
    torch.manual_seed(0)
    assert same_state(start, state_of(make(kind)))
    assert not same_state(start, state_of(make(kind)))


@every_kind
def test_constructor_on_meta(kind):
    for layer in (make(kind, device="meta", dtype=torch.float64), with_default_device(lambda: make(kind))):
        assert all(value.is_meta for value in layer.state_dict().values())
    assert make(kind, device="meta", dtype=torch.float64).weight.dtype == torch.float64


def with_default_device(function):
    with torch.device("meta"):
        return function()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 3}, "groups=3"),
        ({"groups": 0}, "groups=0"),
        ({"padding_mode": "mirror"}, "mirror"),
        ({"padding": "full"}, "full"),
        ({"padding": -1}, "-1"),
        ({"stride": 0}, "stride"),
        ({"stride": (1, 1, 1, 1)}, r"\(1, 1, 1, 1\)"),
    ],
    ids=str,
)
@every_kind
def test_bad_arguments_are_named(kind, change, message):
    if "groups" in change and "groups" not in inspect.signature(kind.layer).parameters:
        pytest.skip("groups is no argument")
    if "padding_mode" in change and issubclass(kind.layer, BorderedConv):
        with pytest.raises(TypeError, match="padding_mode"):
            make(kind, **change)
        return
    with pytest.raises(ValueError, match=message):
        make(kind, **change)


# ---- as a module


@pytest.fixture(params=KINDS, ids=str)
def case(request):
    """A layer in double precision, an input, and the layer's output for it."""
    kind = request.param
    g = kind.usual()
    torch.manual_seed(3)
    layer = make(kind, stride=2, groups=2, dtype=torch.float64).train(not kind.normed)
    x = g.input()
    return kind, layer, x, kind.run(layer, x)


TRACED = [kind for kind in KINDS if kind.layer is Dcls2d or kind.options.get("version") not in ("v0", "max")]
"""These versions run the same code for any number of axes: `Dcls2d` stands for them where torch traces a layer."""

by_torch = pytest.mark.parametrize("case", TRACED, ids=str, indirect=True)


def test_copies(case):
    kind, layer, x, y = case
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(kind.run(other, x), y)
        assert not {value.data_ptr() for value in other.parameters()} & {v.data_ptr() for v in layer.parameters()}


def test_state_dict_round_trip(case):
    kind, layer, x, y = case
    other = make(kind, stride=2, groups=2, dtype=torch.float64).train(layer.training)
    assert not torch.equal(kind.run(other, x), y)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(kind.run(other, x), y)


def test_cast_and_back(case):
    kind, layer, x, y = case
    layer.to(torch.float32)
    assert dtypes_of(layer) == {torch.float32}
    assert relative_error(kind.run(layer, x.float()), y) < 1e-5
    assert relative_error(kind.run(layer.to(torch.float64), x), y) < 1e-5
    assert layer.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


def test_channels_last(case):
    kind, layer, x, y = case
    memory_format = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}[kind.dims]
    layer.to(memory_format=memory_format)
    assert relative_error(kind.run(layer, x), y) < 1e-12
    from_channels_last = kind.run(layer, x.to(memory_format=memory_format))
    assert relative_error(from_channels_last, y) < 1e-12
    # Over three axes the convolutions of torch do not keep it in double precision.
    if kind.dims == 2 or (kind.dims == 3 and isinstance(layer, DclsLayer | BorderedConv)):
        assert is_channels_last(from_channels_last)


def test_no_batch_and_batch_of_one_and_none(case):
    kind, layer, x, y = case
    assert relative_error(kind.run(layer, x[0]), y[0]) < 1e-12
    assert relative_error(kind.run(layer, x[:1]), y[:1]) < 1e-12
    nothing = kind.run(layer, x[:0])
    assert nothing.shape == (0, *y.shape[1:])
    nothing.sum().backward()


@every_kind
def test_image_of_one_pixel(kind):
    """Or, where extrapolation takes more, of as many pixels as that."""
    g = kind.usual(size=(kind.least_size,) * kind.dims)
    conv, x = g.conv(), g.input(3)
    layer = kind.from_conv(conv)
    y = layer(x)
    assert y.isfinite().all()
    expected = conv(x)
    assert y.shape == expected.shape
    if g.padding_mode not in kind.interior:
        assert relative_error(y, expected) < (1e-10 if kind.exact else 0.03)
    if kind.least_size > 1:
        with pytest.raises(ValueError, match="a lower order or a larger image"):
            layer(x[..., 1:])


def test_autocast(case):
    kind, layer, x, y = case
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        low = kind.run(layer, x.float())
    assert low.dtype == torch.bfloat16
    assert relative_error(low, y) < 0.03
    low.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@by_torch
def test_compile_without_graph_breaks(case):
    kind, layer, x, y = case
    torch._dynamo.reset()
    expected = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    compiled = kind.run(torch.compile(layer, fullgraph=True, backend="aot_eager"), x)
    assert relative_error(compiled, y) < 1e-12
    for ours, theirs in zip(
        torch.autograd.grad(compiled.square().sum(), list(layer.parameters())), expected, strict=True
    ):
        assert relative_error(ours, theirs, least=1e-3) < 1e-10


@by_torch
def test_export_with_any_batch(case):
    kind, layer, x, y = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    assert relative_error(kind.run(program.module(), x), y) < 1e-12
    more = torch.cat((x, 2 * x, x[:1]))
    assert relative_error(kind.run(program.module(), more), kind.run(layer, more)) < 1e-12


def test_symbolic_trace_and_feature_extractor(case):
    kind, layer, x, y = case
    model = nn.Sequential(nn.Identity(), layer, nn.ReLU())
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(kind.run(traced, x), y.relu())
    assert torch.equal(kind.run(traced, x[:1]), kind.run(model, x[:1]))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.5)
    assert torch.equal(kind.run(traced, x), kind.run(model, x))
    features = create_feature_extractor(model, {"2": "after"})
    assert torch.equal(kind.run(features, x)["after"], kind.run(model, x))
