"""Freezing to a plain convolution, and the convolution that does it."""

import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from convswap.layers import (
    Dcls1d,
    Dcls2_1d,
    Dcls2d,
    Dcls2dK1d,
    Dcls3_1d,
    Dcls3d,
    DclsDilated1d,
    DclsDilated2d,
)
from convswap.layers.dcls_kernel import VERSIONS

from .helpers import few_examples, geometries, is_channels_last, relative_error

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CLASSES = (Dcls1d, Dcls2d, Dcls3d, Dcls2_1d, Dcls3_1d, Dcls2dK1d, DclsDilated1d, DclsDilated2d)


def moved(layer):
    """Every parameter a little away from where it was."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return layer


@pytest.mark.parametrize("layer_class", CLASSES)
def test_frozen_layer_is_the_same_function(layer_class):
    @few_examples
    @given(geometries(dims=layer_class.dims, min_size=15 if layer_class.dims < 3 else 13), st.sampled_from(VERSIONS))
    def check(g, version):
        conv = g.conv()
        options = {} if layer_class in (DclsDilated1d, DclsDilated2d) else {"version": version}
        assume(layer_class.unsupported_reason(conv) is None)
        assume(layer_class not in (Dcls2_1d, Dcls3_1d) or version != "v0")
        layer = moved(layer_class.from_conv(conv, **options))
        frozen, x = layer.freeze(), g.input()
        strided_same = g.padding == "same" and max(g.stride) > 1
        assert isinstance(frozen, CONVS[g.dims - 1])
        assert (type(frozen) in CONVS) != strided_same
        assert relative_error(frozen(x), layer(x)) < 1e-12
        assert (frozen.stride, frozen.groups, frozen.padding_mode) == (conv.stride, conv.groups, conv.padding_mode)

    check()


@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_frozen_layer_shares_nothing_and_keeps_the_rest(padding):
    layer = Dcls2d(4, 6, 3, padding=padding, dtype=torch.float32).eval()
    layer.weight.requires_grad_(False)
    frozen = layer.freeze()
    assert type(frozen) is nn.Conv2d
    assert not frozen.training
    assert not frozen.weight.requires_grad
    assert frozen.bias.requires_grad
    assert (frozen.weight.dtype, frozen.in_channels, frozen.kernel_size) == (torch.float32, 4, (7, 7))
    x = torch.randn(1, 4, 9, 9)
    before = layer(x)
    with torch.no_grad():
        frozen.weight.add_(1)
        frozen.bias.add_(1)
    assert torch.equal(layer(x), before)
    assert layer.freeze().train().weight.is_leaf
    assert Dcls2d(4, 6, 3, bias=False).freeze().bias is None


def test_frozen_on_meta_and_in_half_precision():
    assert Dcls2d(4, 6, 3, device="meta").freeze().weight.is_meta
    layer = Dcls2d(4, 6, 3, padding=2, stride=2, dtype=torch.bfloat16)
    x = torch.randn(1, 4, 9, 9, dtype=torch.bfloat16)
    assert torch.equal(layer.freeze()(x), layer(x))


@pytest.mark.parametrize("layer_class", CLASSES)
def test_frozen_in_inference_mode_can_be_trained(layer_class):
    layer = layer_class(4, 6, 3, bias=True)
    x = torch.randn(2, 4, *(9,) * layer.dims)
    with torch.inference_mode():
        frozen = layer.freeze()
        of_inference = layer_class(4, 6, 3).freeze()
    for conv in (frozen, of_inference):
        assert not any(parameter.is_inference() for parameter in conv.parameters())
        conv(x).square().sum().backward()
        assert conv.weight.grad.any()
        assert conv.bias.grad.any()
    assert relative_error(frozen(x), layer(x)) < 1e-5
    assert torch.is_grad_enabled()


def test_strided_same_convolution_as_a_module():
    conv = nn.Conv2d(4, 6, (3, 2), stride=(2, 3), dtype=torch.float64)
    conv.padding = "same"
    layer = moved(Dcls2d.from_conv(conv))
    frozen, x = layer.freeze(), torch.randn(3, 4, 11, 8, dtype=torch.float64)
    y = layer(x)
    assert "window=(3, 2)" in repr(frozen)
    for other in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen)), torch.fx.symbolic_trace(frozen)):
        assert relative_error(other(x), y) < 1e-12
    other_size = torch.randn(1, 4, 12, 9, dtype=torch.float64)
    assert relative_error(torch.fx.symbolic_trace(frozen)(other_size), layer(other_size)) < 1e-12
    assert relative_error(torch.compile(frozen, fullgraph=True, backend="aot_eager")(x), y) < 1e-12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(frozen, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    assert relative_error(program.module()(x[:2]), y[:2]) < 1e-12


@pytest.mark.parametrize("padding", [1, "same"])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("layer_class", [Dcls2d, Dcls3d, Dcls2_1d])
def test_output_has_the_memory_format_of_the_input(layer_class, padding_mode, padding):
    layer = layer_class(4, 6, 3, 2, padding, padding_mode=padding_mode, dilated_kernel_size=3)
    x = torch.randn(2, 4, *(9,) * layer.dims)
    fast = layer(x.to(memory_format=torch.channels_last if layer.dims == 2 else torch.channels_last_3d))
    assert is_channels_last(fast)
    assert layer(x).is_contiguous()
    assert relative_error(fast, layer(x)) < 1e-5
