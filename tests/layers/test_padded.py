"""Convolutions with an explicit polynomial pad in front."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convswap.layers import (
    Dcls2d,
    DynamicConv2d,
    PaddedConv1d,
    PaddedConv2d,
    PaddedConv3d,
    PaddingFreeConv2d,
    PartialConv2d,
)
from convswap.layers.functional import padding_free_conv1d, padding_free_conv2d, padding_free_conv3d

from .helpers import few_examples, geometries, is_channels_last, relative_error

CLASSES = (PaddedConv1d, PaddedConv2d, PaddedConv3d)
FUNCTIONS = (padding_free_conv1d, padding_free_conv2d, padding_free_conv3d)


@few_examples
@given(geometries(), st.sampled_from((None, 0, 1, "padding")))
def test_it_computes_what_the_functional_form_does(g, order):
    geometry = g.stride, g.padding, g.dilation, g.groups
    torch.manual_seed(g.seed)
    conv = CLASSES[g.dims - 1](
        g.in_channels, g.out_channels, g.kernel_size, *geometry, g.bias, order=order, dtype=torch.float64
    )
    x = g.input()
    expected = FUNCTIONS[g.dims - 1](x, conv.weight, conv.bias, *geometry, order)
    assert relative_error(conv(x), expected) < 1e-12
    assert relative_error(conv(x[0]), expected[0]) < 1e-12


def test_it_is_a_convolution_but_for_its_pad():
    conv = PaddedConv2d(4, 6, 3, padding="same", stride=2, order=1)
    assert isinstance(conv, torch.nn.Conv2d)
    assert set(conv.state_dict()) == {"weight", "bias"}
    assert "padding=same" in repr(conv)
    assert "order=1" in repr(conv)
    y = conv(torch.randn(1, 4, 7, 7).contiguous(memory_format=torch.channels_last))
    assert y.shape == (1, 6, 4, 4)
    assert is_channels_last(y)


def test_derivatives():
    conv = PaddedConv1d(2, 2, 3, padding=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(conv, torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"padding": "full"}, "full"),
        ({"padding": -1}, "-1"),
        ({"groups": 3}, "groups"),
        ({"order": 1.5}, r"whole numbers, got 1\.5"),
        ({"order": "linear"}, "'linear'"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        PaddedConv2d(4, 6, 3, **change)


def test_images_that_are_too_small():
    with pytest.raises(ValueError, match=r"order 2 takes 3 pixels.*a lower order or a larger image"):
        PaddedConv2d(4, 6, 3, padding=1)(torch.zeros(1, 4, 2, 5))


@pytest.mark.parametrize("layer", [Dcls2d, DynamicConv2d, PaddingFreeConv2d, PartialConv2d])
def test_no_layer_takes_it_for_an_ordinary_convolution(layer):
    padded = PaddedConv2d(4, 6, 3, padding=1, order=1)
    assert "'extrapolate'" in layer.unsupported_reason(padded)
    with pytest.raises(ValueError, match=r"padding_mode is 'extrapolate'.*take the convolution or the layer that"):
        layer.from_conv(padded)
