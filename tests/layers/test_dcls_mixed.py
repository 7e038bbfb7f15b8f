"""Layers whose elements move along one axis of two or three."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convswap.layers import Dcls2_1d, Dcls2dK1d, Dcls3_1d

from .helpers import few_examples, geometries, normal, plain_conv, relative_error, seeds

LEAST = {"v1": None, "max": 1.0, "gauss": 1.0}  # of Dcls2_1d


def compare_every_cell(weight, P, SIG, size, version, least):
    """Each element against each cell of its axis: (..., count) to (..., size)."""
    distance = (torch.arange(size, dtype=weight.dtype) - size // 2 - P[0].unsqueeze(-1)).abs()
    if version == "v1":
        bump = (1 - distance).clamp(min=0)
    elif version == "max":
        bump = (SIG[0].abs().unsqueeze(-1) + least - distance).clamp(min=0)
    else:
        bump = torch.exp(-0.5 * (distance / (SIG[0].abs().unsqueeze(-1) + least)) ** 2)
    return (weight.unsqueeze(-1) * bump / (bump.sum(-1, keepdim=True) + 1e-7)).sum(-2)


@few_examples
@given(seeds, st.integers(1, 3), st.integers(1, 6), st.sampled_from((1, 2)), st.tuples(*[st.integers(1, 2)] * 2))
@pytest.mark.parametrize("version", LEAST)
def test_dense_on_the_first_axis_and_spaced_on_the_second(version, seed, dense, size, groups, stride):
    generator = torch.Generator().manual_seed(seed)
    layer = Dcls2_1d(4, 6, 3, stride, (1, 2), dense, size, groups, version=version, dtype=torch.float64)
    assert layer.weight.shape == (6, 4 // groups, dense, 3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(normal(generator, *parameter.shape))
    x, other = normal(generator, 2, 4, 6, 7).requires_grad_(), {}
    naive = {name: value.detach().clone().requires_grad_() for name, value in layer.named_parameters()}
    kernel = compare_every_cell(naive["weight"], naive["P"], naive.get("SIG"), size, version, LEAST[version])
    other["y"] = F.conv2d(x, kernel, naive["bias"], stride, (1, 2), 1, groups)
    y = layer(x)
    assert relative_error(y, other["y"]) < 1e-12
    ours = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    theirs = torch.autograd.grad(other["y"].square().sum(), [x, *naive.values()])
    for mine, expected in zip(ours, theirs, strict=True):
        assert relative_error(mine, expected, least=1e-3) < 1e-9


def test_widths_of_a_narrowest_gaussian():
    one = torch.ones(1, 1, 1, 1)
    for layer_class, dense, sigma in ((Dcls2_1d, 1, 1.0), (Dcls3_1d, 1, 0.27)):
        layer = layer_class(1, 1, 1, dense_kernel_size=dense, dilated_kernel_size=7, version="gauss")
        with torch.no_grad():
            layer.weight.fill_(1), layer.P.zero_(), layer.SIG.zero_()
        middle, beside = layer.construct_kernel().flatten()[3:5]
        assert (beside / middle).item() == pytest.approx(torch.exp(-0.5 / (sigma * one) ** 2).item(), rel=1e-5)


@pytest.mark.parametrize("layer_class", [Dcls2_1d, Dcls3_1d])
def test_dilated_dense_axes_stay_so(layer_class):
    dims = layer_class.dims
    conv = (nn.Conv2d, nn.Conv3d)[dims - 2](4, 6, 3, padding=1, dilation=(2, *(1,) * (dims - 2), 3)[:dims])
    layer = layer_class.from_conv(conv.double())
    x = torch.randn(2, 4, *(11,) * dims, dtype=torch.float64)
    assert layer.weight.shape == conv.weight.shape
    assert relative_error(layer(x), conv(x)) < 1e-10
    assert relative_error(layer.freeze()(x), conv(x)) < 1e-10


@few_examples
@given(
    geometries(dims=2, min_size=12), st.sampled_from((0, 1)), st.integers(0, 3), st.sampled_from(("v0", "v1", "max"))
)
def test_row_or_column_of_a_convolution(g, flat_dim, more, version):
    taps = max(g.kernel_size) + 1
    g = type(g)(**vars(g) | {"kernel_size": (taps, 1) if flat_dim == 0 else (1, taps)})
    conv = g.conv()
    size = g.dilation[flat_dim] * (taps - 1) + 1 + 2 * more
    if g.padding_mode in ("reflect", "circular"):
        size -= 2 * more
    layer = Dcls2dK1d.from_conv(conv, dilated_kernel_size=size, version=version)
    assert layer.flat_dim == flat_dim
    assert layer.construct_kernel().shape[2:] == ((size, 1) if flat_dim == 0 else (1, size))
    assert relative_error(layer(g.input()), plain_conv(g.input(), conv.weight, conv.bias, g)) < 1e-10


@pytest.mark.parametrize(
    ("layer_class", "conv", "reason"),
    [
        (Dcls2dK1d, nn.Conv2d(2, 2, (3, 2)), r"single row or column, got \(3, 2\)"),
        (Dcls2dK1d, nn.Conv2d(2, 2, 1), "1×1 kernel has nothing to space"),
        (Dcls2_1d, nn.Conv2d(2, 2, (3, 1)), "3×1 kernel has nothing to space along"),
        (Dcls3_1d, nn.Conv3d(2, 2, (3, 3, 1)), "3×3×1 kernel has nothing to space along"),
    ],
)
def test_what_cannot_be_converted_is_said(layer_class, conv, reason):
    with pytest.raises(ValueError, match=reason):
        layer_class.from_conv(conv)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dcls2_1d(4, 4, 3, version="v0"), "version must be one of v1, max, gauss, got 'v0'"),
        (lambda: Dcls2dK1d(4, 4, 3, flat_dim=2), "flat_dim=2"),
        (lambda: Dcls2dK1d(4, 4, 3, dilated_kernel_size=(7, 7)), r"one number or 1 of them, got \(7, 7\)"),
        (lambda: Dcls3_1d(4, 4, 3, dense_kernel_size=(3, 3), kernel_size=(3, 5, 3)), r"\(3, 5, 3\).*\(3, 3\)"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_positions_of_a_new_layer_are_uniform_on_the_grid():
    P = Dcls3_1d(16, 16, 20, dense_kernel_size=1, dilated_kernel_size=8).P
    assert -4 <= P.min() < -3.9
    assert 2.9 < P.max() <= 3
    assert P.mean().item() == pytest.approx(-0.5, abs=0.1)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.channels_last_3d])
def test_every_memory_format_leaves_the_parameters_contiguous(memory_format):
    layers = nn.ModuleList([Dcls2_1d(4, 6, 5, dense_kernel_size=3), Dcls3_1d(4, 6, 5, dense_kernel_size=3)])
    layers.to(memory_format=memory_format)
    assert all(parameter.is_contiguous() for parameter in layers.parameters())


def test_wide_gaussians_come_as_close_to_a_convolution_as_their_positions_allow():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, dtype=torch.float64, bias=False)
    layer = Dcls2_1d.from_conv(conv, version="gauss")
    wanted = F.pad(conv.weight.detach(), (2, 2))
    error = layer.construct_kernel() - wanted
    assert error.norm() < wanted.norm()
    error.square().sum().backward()
    assert layer.weight.grad.abs().max() < 1e-10  # the least-squares solution
    assert layer.P.grad.any()
    assert layer.SIG.grad.any()
