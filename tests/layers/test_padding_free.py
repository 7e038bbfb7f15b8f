"""The layers that continue the image by polynomials, and what they freeze to."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from convswap.layers import (
    DiffConv2dLayer,
    ExtrapolatedConv2d,
    PaddedConv1d,
    PaddedConv2d,
    PaddedConv3d,
    PaddingFreeConv1d,
    PaddingFreeConv2d,
    PaddingFreeConv3d,
)
from convswap.layers.functional import padding_free_conv2d

from .helpers import CONV_CLASSES, is_channels_last, relative_error

LAYERS = (PaddingFreeConv1d, PaddingFreeConv2d, PaddingFreeConv3d)
PADDED = (PaddedConv1d, PaddedConv2d, PaddedConv3d)


def image(dims=2, size=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, *range(size, size - dims, -1), generator=generator, dtype=torch.float64).to(dtype)


# ---- orders


@pytest.mark.parametrize(
    ("order", "resolved", "shown"),
    [
        (None, ((2, 2), (4, 4)), "order=(2, 4)"),
        (1, ((1, 1), (1, 1)), "order=(1, 1)"),
        ((0, 3), ((0, 0), (3, 3)), "order=(0, 3)"),
        (((0, 1), (2, 2)), ((0, 1), (2, 2)), "order=((0, 1), (2, 2))"),
        ("padding", ((1, 1), (2, 2)), "order=(1, 2)"),
    ],
    ids=str,
)
def test_order_is_resolved_and_shown(order, resolved, shown):
    layer = PaddingFreeConv2d(4, 6, (3, 5), padding=(1, 2), order=order, dtype=torch.float64)
    assert layer.order == resolved
    assert shown in repr(layer)
    expected = padding_free_conv2d(image(), layer.weight, layer.bias, 1, (1, 2), order=resolved)
    assert torch.equal(layer(image()), expected)


def test_own_options_are_shown_where_they_are_not_the_usual():
    assert "edge" not in repr(PaddingFreeConv2d(4, 6, 3))
    assert "grad" not in repr(PaddingFreeConv2d(4, 6, 3))
    unusual = repr(PaddingFreeConv2d(4, 6, 3, train_edge_kernel=True, keep_img_grad_at_invalid=False))
    assert "train_edge_kernel=True, keep_img_grad_at_invalid=False" in unusual


@pytest.mark.parametrize("order", [-1, (1, 2, 3), ((0, 1), (0, -1)), "linear", 1.5, (1, 0.5)], ids=str)
def test_bad_orders_are_refused_with_a_reason(order):
    with pytest.raises(ValueError, match="order must"):
        PaddingFreeConv2d(4, 6, 3, order=order)
    conv = nn.Conv2d(4, 6, 3)
    assert "order must" in PaddingFreeConv2d.unsupported_reason(conv, order=order)
    with pytest.raises(ValueError, match=r"cannot make PaddingFreeConv2d.*order must"):
        PaddingFreeConv2d.from_conv(conv, order=order)


def test_convolutions_without_channels_are_refused():
    lazy = nn.LazyConv2d(6, 3)
    assert "0 input" in PaddingFreeConv2d.unsupported_reason(lazy)
    with pytest.raises(ValueError, match="at least 1, got 4 and 0"):
        PaddingFreeConv2d(4, 0, 3)


@pytest.mark.parametrize(
    ("padding", "stride", "order"),
    [
        (2, 2, ((2, 2), (2, 2))),
        ((0, 1), 1, ((0, 0), (1, 1))),
        ("valid", 1, ((0, 0), (0, 0))),
        ("same", 1, ((1, 1), (1, 2))),
        ("same", 2, "padding"),
    ],
    ids=str,
)
def test_extrapolated_takes_the_order_of_its_padding(padding, stride, order):
    layer = ExtrapolatedConv2d(4, 6, (3, 4), stride, padding, dtype=torch.float64)
    assert layer.order == order
    sides = ((0, 1), (1, 1)) if order == "padding" else order  # SAME of 10 x 8 pixels
    x = torch.randn(2, 4, 10, 8, dtype=torch.float64)
    expected = padding_free_conv2d(x, layer.weight, layer.bias, stride, padding, order=sides)
    assert torch.equal(layer(x), expected)


# ---- kernels for the border


def test_edge_kernel_starts_as_a_copy_and_is_reset_with_the_kernel():
    conv = nn.Conv2d(4, 6, 3, padding=1, dtype=torch.float64)
    layer = PaddingFreeConv2d.from_conv(conv, train_edge_kernel=True)
    plain = PaddingFreeConv2d.from_conv(conv)
    assert relative_error(layer(image()), plain(image())) < 1e-12
    assert set(layer.new_parameters()) == {"edge_weight", "edge_bias"}
    assert set(layer.state_dict()) == {"weight", "bias", "edge_weight", "edge_bias"}
    assert set(plain.state_dict()) == {"weight", "bias"}
    before = dict(layer.named_parameters())
    layer.reset_parameters()
    assert dict(layer.named_parameters()).keys() == before.keys()
    for name, parameter in layer.named_parameters():
        assert parameter is before[name]
    assert torch.equal(layer.edge_weight, layer.weight)
    assert torch.equal(layer.edge_bias, layer.bias)
    assert not torch.equal(layer.weight, conv.weight)


def test_without_bias_the_edge_kernel_has_none_either():
    layer = PaddingFreeConv2d(4, 6, 3, padding=1, bias=False, train_edge_kernel=True)
    assert set(layer.state_dict()) == {"weight", "edge_weight"}
    assert layer(image(dtype=torch.float32)).shape == (2, 6, 9, 8)


def test_without_padding_there_is_no_edge_kernel():
    layer = PaddingFreeConv2d(4, 6, 3, padding="valid", train_edge_kernel=True)
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert type(layer.freeze()) is nn.Conv2d
    for stride, with_one in ((1, False), (2, True)):  # "same" of one tap is never padded; of two with a stride may be
        taps = 2 if with_one else 1
        layer = PaddingFreeConv2d(4, 6, taps, stride, "same", train_edge_kernel=True)
        assert (layer.edge_weight is not None) == with_one


def test_a_frozen_kernel_still_has_an_edge_kernel_that_trains():
    layer = PaddingFreeConv2d.from_conv(nn.Conv2d(4, 6, 3, padding=1).requires_grad_(False), train_edge_kernel=True)
    assert not layer.weight.requires_grad
    layer(image(dtype=torch.float32)).sum().backward()
    assert layer.edge_weight.grad.any()


def test_starts_are_drawn_as_those_of_a_convolution():
    for dims, layer_class in enumerate(LAYERS, start=1):
        torch.manual_seed(0)
        conv = CONV_CLASSES[dims - 1](8, 8, 3, groups=2)
        torch.manual_seed(0)
        layer = layer_class(8, 8, 3, groups=2)
        assert torch.allclose(layer.weight, conv.weight)
        assert torch.allclose(layer.bias, conv.bias)


# ---- freezing

FREEZABLE = {
    "1d": lambda: PaddingFreeConv1d(4, 6, 5, 2, 3, groups=2),
    "2d": lambda: PaddingFreeConv2d(4, 6, 3, padding=1),
    "3d": lambda: PaddingFreeConv3d(4, 6, 3, padding=(0, 1, 2), order=(9, 1, 0)),
    "dilated": lambda: PaddingFreeConv2d(4, 6, (2, 3), 1, 2, 2, order=((0, 1), (1, 0)), bias=False),
    "same": lambda: PaddingFreeConv2d(4, 6, 4, padding="same"),
    "strided same": lambda: PaddingFreeConv2d(4, 6, 3, 2, padding="same", order=0),
    "extrapolated": lambda: ExtrapolatedConv2d(4, 6, 4, 3, padding="same"),
    "published": lambda: DiffConv2dLayer(4, 6, 3, groups=2),
    "without gradients": lambda: PaddingFreeConv2d(4, 6, 3, padding=1, keep_img_grad_at_invalid=False),
}
PLAIN = {
    "order 0": lambda: PaddingFreeConv2d(4, 6, 3, 2, (1, 2), 2, 2, order=0),
    "order 0, 1d": lambda: PaddingFreeConv1d(4, 6, 4, 2, 2, order=0),
    "order 0, 3d": lambda: PaddingFreeConv3d(4, 6, 3, padding=1, order=0, bias=False),
    "order 0, same": lambda: PaddingFreeConv2d(4, 6, 4, padding="same", order=0),
    "no padding": lambda: PaddingFreeConv2d(4, 6, 3),
    "valid": lambda: ExtrapolatedConv2d(4, 6, 3, 2, "valid"),
    "1x1": lambda: PaddingFreeConv2d(4, 6, 1, padding="same"),
}


@pytest.mark.parametrize("name", [*FREEZABLE, *PLAIN])
def test_freezing_keeps_the_function(name):
    layer = (FREEZABLE | PLAIN)[name]().double().eval()
    layer.weight.requires_grad_(False)
    frozen = layer.freeze()
    dims = layer.dims
    assert type(frozen) is (CONV_CLASSES if name in PLAIN else PADDED)[dims - 1]
    assert isinstance(frozen, CONV_CLASSES[dims - 1])
    assert frozen.state_dict().keys() == layer.state_dict().keys()
    for key, value in layer.state_dict().items():
        assert torch.equal(frozen.state_dict()[key], value)
        assert frozen.state_dict()[key].data_ptr() != value.data_ptr()
    assert not frozen.training
    assert not frozen.weight.requires_grad
    assert layer.bias is None or frozen.bias.requires_grad
    assert frozen.stride == layer.stride
    assert frozen.padding == layer.padding
    assert frozen.dilation == layer.dilation
    x = image(dims)
    y = layer(x)
    assert relative_error(frozen(x), y) < 1e-12
    assert relative_error(frozen(x[0]), y[0]) < 1e-12
    again = pickle.loads(pickle.dumps(copy.deepcopy(frozen)))
    assert torch.equal(again(x), frozen(x))


def test_frozen_order_0_repeats_the_border():
    frozen = PLAIN["order 0"]().freeze()
    assert frozen.padding_mode == "replicate"
    assert PLAIN["no padding"]().freeze().padding_mode == "zeros"


def test_frozen_layers_keep_memory_format_dtype_and_train_again():
    layer = PaddingFreeConv2d(4, 6, 3, padding=1).to(torch.bfloat16, memory_format=torch.channels_last)
    frozen = layer.freeze()
    assert is_channels_last(frozen.weight)
    assert frozen.weight.dtype == torch.bfloat16
    with torch.inference_mode():
        frozen = layer.freeze()
    frozen(image(dtype=torch.bfloat16)).sum().backward()
    assert frozen.weight.grad.any()
    assert layer.weight.grad is None


def test_an_edge_kernel_cannot_be_frozen():
    layer = PaddingFreeConv2d(4, 6, 3, padding=1, train_edge_kernel=True)
    with pytest.raises(ValueError, match=r"edge kernel.*train_edge_kernel=True"):
        layer.freeze()


@pytest.mark.parametrize("name", ["2d", "strided same", "order 0"])
def test_frozen_layers_are_exported_and_traced(name):
    layer = (FREEZABLE | PLAIN)[name]().eval()
    frozen, x = layer.freeze(), image(dtype=torch.float32)
    more = torch.cat((x, x.flip(-1)))
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(frozen, (x,), dynamic_shapes=(batch,))
        traced = torch.jit.trace(frozen, x)
    operations = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(operation.startswith(("aten.", "<built-in function")) for operation in operations)
    for other in (program.module(), traced, torch.fx.symbolic_trace(nn.Sequential(frozen))):
        assert relative_error(other(more), layer(more)) < 1e-5


@pytest.mark.parametrize(
    "make",
    [
        lambda: PaddingFreeConv1d(4, 6, 3, 2, padding=1),
        lambda: PaddingFreeConv1d(4, 6, 3, padding=1, train_edge_kernel=True),
    ],
    ids=["strided", "edge kernel"],
)
def test_export_for_images_of_any_size(make):
    layer, least = make(), 4  # pixels
    x = image(layer.dims, dtype=torch.float32)
    free = {0: torch.export.Dim("batch", min=1, max=64)}
    free |= {2 + axis: torch.export.Dim(f"size{axis}", min=least, max=64) for axis in range(layer.dims)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(layer, (x,), dynamic_shapes=(free,))
    for size in (least, least + 1, 14):
        other = torch.randn(3, 4, *(size,) * layer.dims)
        assert relative_error(program.module()(other), layer(other)) < 1e-5
