import warnings

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convswap.layers import Dcls1d, Dcls2d, Dcls3d, dcls_start, layers_with_shared_positions
from convswap.layers.dcls import default_dilated_kernel_size
from convswap.layers.dcls_grid import position_axes
from convswap.layers.dcls_kernel import LEAST_SIGMA, VERSIONS
from convswap.layers.functional import construct_kernel, dcls_conv

from .helpers import Geometry, few_examples, geometries, normal, plain_conv, relative_error

LAYERS = (Dcls1d, Dcls2d, Dcls3d)
EXACT = tuple(version for version in VERSIONS if version != "gauss")


def spread_out(kernel, dilation, sizes):
    """The kernel with its taps spread by the dilation, in the middle of a grid of these sizes."""
    dense = kernel.new_zeros(*kernel.shape[:2], *sizes)
    inside = [
        slice((size - d * (k - 1) - 1) // 2, (size - d * (k - 1) - 1) // 2 + d * (k - 1) + 1, d)
        for k, d, size in zip(kernel.shape[2:], dilation, sizes, strict=True)
    ]
    dense[(slice(None), slice(None), *inside)] = kernel
    return dense


def convertible(g):
    conv = g.conv()
    assume(any(size > 1 for size in g.kernel_size))
    return conv, LAYERS[g.dims - 1]


@few_examples
@given(geometries(), st.sampled_from(EXACT))
def test_kernel_is_the_convolution_s_on_a_larger_grid(g, version):
    conv, layer_class = convertible(g)
    layer = layer_class.from_conv(conv, version=version)
    wanted = spread_out(conv.weight, g.dilation, layer.dilated_kernel_size)
    assert relative_error(layer.construct_kernel(), wanted) < 1e-12
    assert (layer.kernel_size, layer.dilation) == (conv.kernel_size, conv.dilation)
    assert (layer.stride, layer.padding) == (conv.stride, conv.padding)


@few_examples
@given(geometries(min_size=12), st.integers(0, 2), st.integers(0, 2), st.sampled_from(EXACT))
def test_any_grid_of_the_right_parity_is_exact(g, first, last, version):
    conv, layer_class = convertible(g)
    assume(g.padding_mode in ("zeros", "replicate"))
    sizes = [d * (k - 1) + 1 for k, d in zip(g.kernel_size, g.dilation, strict=True)]
    sizes[0] += 2 * first
    sizes[-1] += 2 * last
    layer = layer_class.from_conv(conv, dilated_kernel_size=sizes, version=version)
    assert layer.dilated_kernel_size == tuple(sizes)
    assert relative_error(layer(g.input()), plain_conv(g.input(), conv.weight, conv.bias, g)) < 1e-10


@few_examples
@given(geometries())
def test_gaussians_fit_better_than_with_the_taps_own_weights(g):
    conv, layer_class = convertible(g)
    layer = layer_class.from_conv(conv, version="gauss")
    wanted = spread_out(conv.weight, g.dilation, layer.dilated_kernel_size)
    unsolved = construct_kernel(conv.weight.flatten(2), layer.P, layer.SIG, layer.dilated_kernel_size, "gauss")
    error, unsolved_error = (layer.construct_kernel() - wanted).norm(), (unsolved - wanted).norm()
    assert error <= unsolved_error * (1 + 1e-9)
    assert error < 0.01 * wanted.norm()


@pytest.mark.parametrize("sigma", [0.27, 1.0])
@pytest.mark.parametrize("count", [12, 9, 4])
def test_gaussian_weights_are_the_least_squares_solution(count, sigma, monkeypatch):
    monkeypatch.setattr(Dcls2d, "least_sigma", {"gauss": sigma})  # wide ones overlap
    g = Geometry((9, 9), (3, 3), (1, 1), (0, 0), (2, 1), 1, "zeros", 2, 3, bias=False, seed=4)
    conv = g.conv()
    layer = Dcls2d.from_conv(conv, version="gauss", kernel_count=count)
    kernel = layer.construct_kernel()
    wanted = spread_out(conv.weight, g.dilation, layer.dilated_kernel_size).detach()
    (gradient,) = torch.autograd.grad((kernel - wanted).square().sum(), layer.weight)
    assert gradient[..., :9].abs().max() < 1e-10


def test_fit_of_gaussians_builds_no_grid_for_each_element():
    conv = nn.Conv2d(24, 24, 7)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            sizes.extend(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
            return result

    with Sizes():
        Dcls2d.from_conv(conv, version="gauss", kernel_count=5)
    assert max(sizes) < 2.5 * conv.weight.numel()  # both coordinates of all taps


def test_positions_in_common_take_one_fit_of_gaussians_for_each_layer(monkeypatch):
    calls = []
    fit = dcls_start.fitted_weights
    monkeypatch.setattr(dcls_start, "fitted_weights", lambda *args: calls.append(args) or fit(*args))
    convs = [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)]
    one, other = layers_with_shared_positions(Dcls2d, convs, kernel_count=5, version="gauss")
    assert one.P is other.P
    assert len(calls) == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_fewer_elements_keep_the_largest_taps(version):
    conv = nn.Conv2d(2, 3, (3, 2), dilation=2, bias=False, dtype=torch.float64)
    layer = Dcls2d.from_conv(conv, kernel_count=2, version=version)
    magnitudes = conv.weight.abs().flatten(2)
    threshold = magnitudes.sort(2, descending=True).values[..., 1:2]
    kept = torch.where(magnitudes >= threshold, conv.weight.flatten(2), 0.0).view_as(conv.weight)
    wanted = spread_out(kept, (2, 2), layer.dilated_kernel_size)
    assert layer.weight.shape == (3, 2, 2)
    assert relative_error(layer.construct_kernel(), wanted) < (1e-12 if version in EXACT else 0.01)


@pytest.mark.parametrize("version", VERSIONS)
def test_further_elements_start_without_weight_somewhere_on_the_grid(version):
    conv = nn.Conv2d(2, 3, (3, 1), dtype=torch.float64)
    few = Dcls2d.from_conv(conv, version=version)
    more = Dcls2d.from_conv(conv, version=version, kernel_count=40, generator=torch.Generator().manual_seed(0))
    assert relative_error(more.construct_kernel(), few.construct_kernel()) < 1e-12
    assert not more.weight[..., 3:].any()
    y, x = more.P[:, ..., 3:] if version == "v0" else more.P[:, ..., 3:].flip(0)
    assert more.dilated_kernel_size == (7, 1)
    assert not x.any()
    assert -3 <= y.min() < -2
    assert 2 < y.max() <= 3


@pytest.mark.parametrize("layer_class", LAYERS)
@pytest.mark.parametrize("version", VERSIONS)
def test_clamped_positions_are_on_the_grid(layer_class, version):
    sizes = (4, 7, 1)[: layer_class.dims]
    layer = layer_class(2, 3, 5, dilated_kernel_size=sizes, version=version)
    nn.init.normal_(layer.P, std=5)
    inside = layer.P.detach().clone()
    layer.clamp_positions()
    for d, axis in enumerate(position_axes(version, layer.dims)):
        size = sizes[axis]
        cells = layer.P[d] + size // 2
        assert cells.min() >= 0
        assert cells.max() <= size - 1
        untouched = inside[d] + size // 2
        within = (untouched >= 0) & (untouched <= size - 1)
        assert torch.equal(cells[within], untouched[within])
    assert layer.P.requires_grad


def test_positions_of_a_new_layer_are_normal_and_on_the_grid():
    layer = Dcls2d(16, 16, 20, dilated_kernel_size=9)
    assert layer.P.std().item() == pytest.approx(0.5, rel=0.05)
    assert Dcls2d(16, 16, 20, dilated_kernel_size=2).P.max() <= 0


@few_examples
@given(geometries(), st.sampled_from(VERSIONS))
def test_functional_form_convolves_with_the_kernel(g, version):
    generator, shape = g.generator(), (g.out_channels, g.in_channels // g.groups, 3)
    weight, P = normal(generator, *shape), normal(generator, g.dims, *shape)
    SIG = normal(generator, g.dims, *shape) if version in LEAST_SIGMA else None
    bias = normal(generator, g.out_channels) if g.bias else None
    undilated = Geometry(**vars(g) | {"dilation": (1,) * g.dims})
    geometry = (g.stride, g.padding, g.kernel_size, g.groups, g.padding_mode)
    y = dcls_conv(g.input(), weight, P, SIG, bias, *geometry, version)
    kernel = construct_kernel(weight, P, SIG, g.kernel_size, version)
    assert relative_error(y, plain_conv(g.input(), kernel, bias, undilated), least=1e-6) < 1e-12


@pytest.mark.parametrize(
    ("kernel_size", "dilation", "expected"),
    [
        ((3, 3), (1, 1), (7, 7)),
        ((2, 5), (1, 1), (8, 11)),
        ((3, 1), (2, 1), (11, 1)),
        ((7,), (1,), (15,)),
        ((4,), (1,), (8,)),
    ],
)
def test_default_grid(kernel_size, dilation, expected):
    assert default_dilated_kernel_size(kernel_size, dilation) == expected


@pytest.mark.parametrize(
    ("kernel_size", "options", "reason"),
    [
        ((1, 1), {}, "1×1 kernel has nothing to space"),
        ((3, 3), {"dilated_kernel_size": 1}, "1 is smaller than the 3 pixels"),
        ((3, 3), {"dilated_kernel_size": (7, 8)}, "8 has not the parity of the 3 pixels.*7 or 9"),
        ((2, 2), {"dilated_kernel_size": 7}, "7 has not the parity of the 2 pixels"),
    ],
)
def test_what_cannot_be_converted_is_said(kernel_size, options, reason):
    conv = nn.Conv2d(2, 2, kernel_size)
    with pytest.raises(ValueError, match=reason):
        Dcls2d.from_conv(conv, **options)
    assert Dcls2d.unsupported_reason(conv, **options) is not None
    assert Dcls2d.unsupported_reason(nn.Conv2d(2, 2, (3, 1)), dilated_kernel_size=(9, 1)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "v7"}, "v7"),
        ({"dilated_kernel_size": 0}, r"0"),
        ({"kernel_count": 0}, "0"),
        ({"kernel_count": 3.0}, r"kernel_count must be a whole number of at least 1, got 3\.0"),
        ({"kernel_count": "3"}, "kernel_count must be a whole number of at least 1, got '3'"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Dcls2d(**{"in_channels": 4, "out_channels": 4, "kernel_count": 3} | change)
    with pytest.raises(ValueError, match=message):
        Dcls2d.from_conv(nn.Conv2d(4, 4, 3), **change)


@pytest.mark.parametrize("channels", [(0, 4), (4, 0), (0, 0)])
def test_layer_without_channels_is_refused(channels):
    with pytest.raises(ValueError, match=f"in_channels and out_channels must be at least 1, got {channels[0]} and"):
        Dcls2d(*channels, 3)
    conv = nn.Conv2d(*channels, 3, device="meta")
    assert Dcls2d.unsupported_reason(conv) == f"it has {channels[0]} input and {channels[1]} output channels"


@pytest.mark.parametrize("on_pixels", [False, True])
def test_layer_can_be_traced_by_jit(on_pixels):
    layer = Dcls2d(3, 4, 5)
    if on_pixels:
        nn.init.zeros_(layer.P)
    x = torch.randn(2, 3, 9, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(layer, x)
    assert torch.equal(traced(x), layer(x))


def test_positions_stay_contiguous_in_every_memory_format():
    layer = Dcls2d(4, 6, 5, version="gauss").to(memory_format=torch.channels_last)
    assert layer.P.is_contiguous()
    assert layer.SIG.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_layer_follows_the_conversion_of_its_module(dtype):
    model = nn.Sequential(Dcls3d(2, 4, 5, version="gauss")).to(dtype)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    meta = model.to("meta")
    restored = meta.to_empty(device="cpu")
    assert {name: value.shape for name, value in restored.state_dict().items()} == shapes
    assert {value.dtype for value in restored.parameters()} == {dtype}


@pytest.mark.parametrize(("version", "start"), [("v0", None), ("v1", None), ("max", 0.0), ("gauss", 0.23)])
def test_widths_of_a_new_layer(version, start):
    SIG = Dcls2d(4, 6, 5, version=version).SIG
    assert SIG is None if start is None else torch.equal(SIG, torch.full((2, 6, 4, 5), start))
