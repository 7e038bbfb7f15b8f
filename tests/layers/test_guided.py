"""The guided layers: what they say of themselves, what they are made from, and the two factors of the separable one."""

import copy
import inspect

import pytest
import torch
from hypothesis import given
from torch import nn

from convswap.layers import (
    GuidedChannelWiseConv2d,
    GuidedConv2d,
    GuidedDepthWiseConv2d,
    GuidedLocalConv2d,
    SeparableGuidedConv2d,
)
from convswap.layers.functional import guided_conv2d, separable_guided_conv2d
from convswap.layers.guided_separable import rank_one_factors

from . import guided_formulas as formulas
from .guided_formulas import tensors, weight_shapes
from .helpers import Geometry, few_examples, geometries, plain_conv, relative_error
from .test_guided_conv import NAMES, suited

LAYERS = {
    "guided": GuidedConv2d,
    "local": GuidedLocalConv2d,
    "low_rank": GuidedLocalConv2d,
    "channelwise": GuidedChannelWiseConv2d,
    "depthwise": GuidedDepthWiseConv2d,
    "separable": SeparableGuidedConv2d,
}
SMALL = Geometry((6, 5), (2, 3), (2, 1), (1, 1), (1, 2), 2, "replicate", 4, 6, True, seed=5)
CLASSES = tuple(dict.fromkeys(LAYERS.values()))
every_layer = pytest.mark.parametrize("layer_class", CLASSES)


def layer_for(name, g, **options):
    taken = inspect.signature(LAYERS[name]).parameters
    geometry = {
        "in_channels": g.in_channels,
        "out_channels": g.out_channels,
        "kernel_size": g.kernel_size,
        "stride": g.stride,
        "padding": g.padding,
        "dilation": g.dilation,
        "groups": g.groups,
        "bias": g.bias,
        "padding_mode": g.padding_mode,
        "dtype": torch.float64,
    }
    layer = LAYERS[name](**{key: value for key, value in geometry.items() if key in taken}, **options)
    if g.bias:
        nn.init.normal_(layer.bias)
    return layer


@few_examples
@given(geometries(dims=2))
@pytest.mark.parametrize("name", NAMES)
def test_layer_is_its_index_formula_and_adds_both_biases(name, g):
    g = suited(name, g)
    layer = layer_for(name, g, **({"norm": False, "relu": False} if name == "separable" else {}))
    x, *weights, generated = tensors(name, g, 2, "each")
    given_weights = [tuple(weights)] if name == "low_rank" else weights
    plain = getattr(formulas, name)(x, *weights, None, g)
    own = formulas.with_bias(torch.zeros_like(plain), layer.bias)
    assert relative_error(layer(x, *given_weights), plain + own) < 1e-12
    assert relative_error(layer(x, *given_weights, generated), plain + own + generated[..., None, None]) < 1e-12


@few_examples
@given(geometries(dims=2))
@pytest.mark.parametrize("name", NAMES)
def test_layer_tells_the_shapes_of_its_weights_and_output(name, g):
    g = suited(name, g)
    layer, size = layer_for(name, g), formulas.output_size(g)
    assert layer.output_size(g.size) == size
    own = layer.weight_shape if name == "separable" else (layer.weight_shape,)
    shapes = [shape[: len(mine)] for shape, mine in zip(weight_shapes(name, g), own, strict=False)]
    assert list(own) == shapes
    assert layer.fan_in == g.in_channels // g.groups * formulas.taps(g)
    assert layer.fan_out == g.out_channels // g.groups * formulas.taps(g)
    assert layer.spatial == (name not in ("guided", "depthwise"))


@every_layer
def test_defaults(layer_class):
    sizes = () if layer_class is GuidedDepthWiseConv2d else (3,)
    layer = layer_class(4, 8, *sizes)
    assert (layer.padding, layer.bias, layer.padding_mode) == ("same", None, "zeros")
    assert layer.output_size((7, 6)) == (7, 6)
    assert layer_class(4, 8, *sizes, stride=2).output_size((7, 6)) == (4, 3)
    assert not list(layer.parameters()) or layer_class is SeparableGuidedConv2d


def test_channelwise_has_as_many_outputs_as_inputs_by_default():
    layer = GuidedChannelWiseConv2d(5)
    assert (layer.out_channels, layer.groups, layer.kernel_size) == (5, 5, (3, 3))
    with pytest.raises(ValueError, match=r"multiple of in_channels=5, got 7"):
        GuidedChannelWiseConv2d(5, 7)


@every_layer
def test_no_channels_are_refused(layer_class):
    with pytest.raises(ValueError, match=r"at least 1, got 0 and 4"):
        layer_class(0, 4) if layer_class is GuidedDepthWiseConv2d else layer_class(0, 4, 3)


@pytest.mark.parametrize(
    ("layer_class", "conv", "message"),
    [
        (GuidedChannelWiseConv2d, nn.Conv2d(4, 4, 3, groups=2), r"groups=4 here, got groups=2: take GuidedConv2d"),
        (GuidedDepthWiseConv2d, nn.Conv2d(4, 4, (1, 3)), r"1x1 kernels, got 1x3: take GuidedConv2d"),
    ],
)
def test_convolutions_that_a_layer_is_not_for(layer_class, conv, message):
    with pytest.raises(ValueError, match=message):
        layer_class.from_conv(conv)


@pytest.mark.parametrize("rank", [0, -1])
def test_rank_is_checked(rank):
    assert str(rank) in GuidedLocalConv2d.unsupported_reason(nn.Conv2d(2, 2, 3), rank=rank)
    with pytest.raises(ValueError, match=f"rank must be at least 1, got {rank}"):
        GuidedLocalConv2d.from_conv(nn.Conv2d(2, 2, 3), rank=rank)
    with pytest.raises(ValueError, match=f"rank must be at least 1, got {rank}"):
        GuidedLocalConv2d(2, 2, 3).with_hypernet(rank=rank)


# ---- separable


def test_norm_and_relu_stand_between_the_factors():
    x, channel, depth, bias = tensors("separable", SMALL, 2, "one")
    between = formulas.channelwise(x, channel, None, SMALL)
    norm = nn.BatchNorm2d(4, dtype=torch.float64)
    nn.init.uniform_(norm.weight)
    nn.init.normal_(norm.bias)
    for with_norm in (False, True):
        for relu in (False, True):
            layer = layer_for("separable", SMALL, norm=with_norm, relu=relu)
            if with_norm:
                layer.norm = copy.deepcopy(norm)
            nn.init.zeros_(layer.bias)
            middle = copy.deepcopy(norm)(between) if with_norm else between
            middle = middle.clamp(min=0) if relu else middle
            mixed = torch.einsum("bgi...,bigo->bgo...", middle.unflatten(1, (2, -1)), depth.unflatten(2, (2, -1)))
            assert relative_error(layer(x, channel, depth), mixed.flatten(1, 2)) < 1e-12
            functional = separable_guided_conv2d(
                x,
                channel,
                depth,
                bias,
                SMALL.kernel_size,
                SMALL.stride,
                SMALL.padding,
                SMALL.dilation,
                SMALL.groups,
                SMALL.padding_mode,
                copy.deepcopy(norm) if with_norm else None,
                relu,
            )
            assert relative_error(functional, formulas.with_bias(mixed.flatten(1, 2), bias)) < 1e-12
            if with_norm:  # it has counted one batch
                assert layer.norm.num_batches_tracked == 1
                alone = layer.eval()(x[0], channel[0], depth[0])
                assert relative_error(alone, layer(x[:1], channel[:1], depth[:1])[0]) < 1e-13


def test_norm_and_relu_are_there_by_default_and_off_when_made_from_a_convolution():
    layer = SeparableGuidedConv2d(4, 6, 3)
    assert isinstance(layer.norm, nn.BatchNorm2d)
    assert layer.relu
    made = SeparableGuidedConv2d.from_conv(nn.Conv2d(4, 6, 3)).conv
    assert made.norm is None
    assert not made.relu


@few_examples
@given(geometries(dims=2, channels=4))
def test_factors_are_the_best_of_rank_one(g):
    kernel = g.conv().weight.detach()
    pair = SeparableGuidedConv2d.from_conv(g.conv())
    discarded = 0.0
    for i in range(g.in_channels):
        group, row = divmod(i, g.in_channels // g.groups)
        outputs = g.out_channels // g.groups
        matrix = kernel[group * outputs : (group + 1) * outputs, row].flatten(1)
        discarded += float(torch.linalg.svdvals(matrix)[1:].square().sum())
    assert float((pair.weight - kernel).norm().detach()) == pytest.approx(discarded**0.5, rel=1e-9, abs=1e-12)
    x = g.input()
    assert relative_error(pair(x), plain_conv(x, pair.weight, pair.bias, g)) < 1e-11


def test_factors_are_of_equal_size_and_zero_channels_can_learn():
    kernel = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    kernel[:, 1] = 0
    channel, depth = rank_one_factors(kernel, 1)
    assert relative_error(channel.norm(dim=1)[::2], depth.norm(dim=0)[::2]) < 1e-12
    assert not depth[:, 1].any()
    assert channel[1].norm() > 0.1


def test_factors_of_half_precision_weights_are_found_in_double():
    conv = nn.Conv2d(6, 8, 3, dtype=torch.bfloat16)
    pair, exact = (SeparableGuidedConv2d.from_conv(c) for c in (conv, copy.deepcopy(conv).double()))
    assert relative_error(pair.weight, exact.weight) < 2 * torch.finfo(torch.bfloat16).eps


# ---- as torch's own convolution


@pytest.mark.parametrize("padding", ["same", "valid", 2, (1, 0)])
@pytest.mark.parametrize("layer_class", [GuidedConv2d, GuidedLocalConv2d])
def test_padding_is_that_of_the_convolution(layer_class, padding):
    conv = nn.Conv2d(2, 3, (4, 3), padding=padding, dtype=torch.float64)
    x = torch.randn(2, 2, 6, 7, dtype=torch.float64)
    assert relative_error(layer_class.from_conv(conv)(x), conv(x)) < 1e-12


def test_kernel_in_the_convolution_s_order_is_not_copied():
    """As the hypernet makes it: there a copy would cost as much as reading the whole of it."""

    def copies(w):
        with torch.profiler.profile() as profile:
            guided_conv2d(torch.randn(2, 4, 8, 8), w, formula="grouped")
        return {event.name for event in profile.events()} & {"aten::clone", "aten::copy_"}

    hypernet = GuidedConv2d(4, 6, 3).with_hypernet().hypernet
    w = hypernet(torch.randn(2, 4)).detach()
    assert not copies(w)
    assert copies(w.contiguous())
