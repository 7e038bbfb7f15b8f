"""What layers that attend to kernels have in common: the attentions they tell, and the convolution they freeze to."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from torch import nn

from convswap.layers import AttendedConv, CondConv2d, DynamicConv1d, DynamicConv2d, DynamicConv3d, ODConv2d

from .helpers import Geometry, few_examples, geometries, is_channels_last, plain_conv, relative_error

G = Geometry((9, 8), (3, 2), (2, 1), (1, 1), (1, 1), 2, "zeros", 4, 6, bias=True, seed=7)
KINDS = (
    (DynamicConv1d, {}),
    (DynamicConv2d, {"temperature": 3.0}),
    (DynamicConv3d, {"kernels": 2}),
    (CondConv2d, {"kernels": 3}),
    (ODConv2d, {}),
    (ODConv2d, {"kernels": 1}),
)
every_kind = pytest.mark.parametrize(("kind", "options"), KINDS)


def stirred(layer, seed=0):
    """The layer with attentions that depend on the input."""
    torch.manual_seed(seed)
    layer.attention.reset_parameters()
    return layer


def without_samples(attentions):
    return {name: value[0] for name, value in attentions.items()}


@every_kind
def test_frozen_at_the_attentions_of_a_sample_it_is_what_the_layer_is_for_that(kind, options):
    @few_examples
    @given(geometries(dims=kind.dims, min_size=9))
    def check(g):
        conv, x = g.conv(), g.input(1)
        assume(kind.unsupported_reason(conv) is None)
        layer = stirred(kind.from_conv(conv, **options), g.seed)
        frozen = layer.freeze(without_samples(layer.attentions(x)))
        y = layer(x)
        assert relative_error(frozen(x), y) < 1e-12
        assert isinstance(frozen, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        assert relative_error(plain_conv(x, frozen.weight, frozen.bias, g), y) < 1e-12

    check()


@every_kind
def test_frozen_at_zero_logits_it_is_the_convolution_it_came_from(kind, options):
    g = replace(G, **dict.fromkeys(("kernel_size", "stride", "padding", "dilation"), (2,) * kind.dims))
    g = replace(g, size=(9,) * kind.dims)
    conv = g.conv()
    frozen = stirred(kind.from_conv(conv, **options)).freeze()
    assert relative_error(frozen.weight, conv.weight) < 1e-12
    assert relative_error(frozen.bias, conv.bias) < 1e-12
    assert type(frozen) is type(conv)
    assert (frozen.stride, frozen.padding, frozen.dilation) == (conv.stride, conv.padding, conv.dilation)


@every_kind
def test_attentions_have_a_row_for_each_sample(kind, options):
    x = torch.randn(3, 4, *(5,) * kind.dims)
    layer = kind(4, 6, 3, **options)
    made = layer.attentions(x)
    sizes = {"channel": 4, "filter": 6, "position": 9, "kernel": layer.kernels}
    assert {name: tuple(value.shape) for name, value in made.items()} == {name: (3, sizes[name]) for name in made}
    assert ("kernel" in made) == (layer.kernels > 1)
    alone = layer.attentions(x[1])
    assert all(torch.allclose(alone[name], made[name][1:2]) for name in made)
    assert all((made[name][0] - made[name][1]).abs().max() > 1e-4 for name in made)


@every_kind
def test_neutral_attentions_are_those_at_zero_logits(kind, options):
    layer = kind.from_conv(replace(G, size=(5,) * kind.dims, **_all_ones(kind.dims)).conv(), **options)
    made = layer.attentions(torch.randn(1, 4, *(5,) * kind.dims, dtype=torch.float64))
    for name, value in layer.neutral_attentions().items():
        assert relative_error(value, made.pop(name)[0]) < 1e-12
    assert not made


def _all_ones(dims):
    return dict.fromkeys(("kernel_size", "stride", "padding", "dilation"), (1,) * dims)


def test_frozen_parameters_are_the_layer_s_in_all_but_number():
    conv = G.conv(torch.float32).to(memory_format=torch.channels_last).eval()
    conv.bias.requires_grad_(False)
    layer = ODConv2d.from_conv(conv)
    frozen = layer.freeze()
    assert is_channels_last(frozen.weight)
    assert (frozen.weight.requires_grad, frozen.bias.requires_grad, frozen.training) == (True, False, False)
    held = {parameter.data_ptr() for parameter in layer.parameters()}
    assert not held & {parameter.data_ptr() for parameter in frozen.parameters()}
    with torch.inference_mode():
        made = layer.freeze()
    assert not made.weight.is_inference()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_freezes_to_the_convolution_it_came_from(dtype):
    conv = G.conv(dtype)
    for kind in (DynamicConv2d, CondConv2d, ODConv2d):
        frozen = kind.from_conv(conv).freeze()
        assert frozen.weight.dtype == dtype
        assert relative_error(frozen.weight, conv.weight) < 2 * torch.finfo(dtype).eps


def test_attentions_that_do_not_fit_are_named():
    layer = ODConv2d(4, 6, 3, kernels=2)
    given = layer.neutral_attentions()
    with pytest.raises(ValueError, match="channel, filter, position, kernel, got kernel"):
        layer.freeze({"kernel": given["kernel"]})
    with pytest.raises(ValueError, match=r"'position' must be of shape \(9,\).*\(1, 9\)"):
        layer.freeze(given | {"position": given["position"][None]})


def test_they_are_one_family():
    assert all(issubclass(kind, AttendedConv) for kind, _ in KINDS)
