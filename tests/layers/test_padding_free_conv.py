"""The functional forms of padding-free convolution."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from convswap.layers._geometry import effective_size, output_size, pad_widths
from convswap.layers.extrapolation import lagrange_weights, noise_gain
from convswap.layers.functional import padding_free_conv1d, padding_free_conv2d, padding_free_conv3d

from .helpers import (
    CONV_FUNCTIONS,
    few_examples,
    geometries,
    interior,
    is_channels_last,
    normal,
    plain_conv,
    relative_error,
)
from .published_padding_free import published_conv2d

FUNCTIONS = (padding_free_conv1d, padding_free_conv2d, padding_free_conv3d)


def padding_free(x, weight, bias, g, order=None, edge_weight=None, keep=True, **options):
    geometry = g.stride, g.padding, g.dilation, g.groups
    return FUNCTIONS[g.dims - 1](x, weight, bias, *geometry, order, edge_weight, keep, **options)


def widths_of(g):
    return pad_widths(g.padding, effective_size(g.kernel_size, g.dilation), g.stride, g.size)


def has_outputs(g):
    return min(output_size(g.size, widths_of(g), effective_size(g.kernel_size, g.dilation), g.stride)) > 0


def kernels(g, count=2):
    """As many kernels and biases."""
    generator = g.generator()
    shape = (g.out_channels, g.in_channels // g.groups, *g.kernel_size)
    return [(normal(generator, *shape), normal(generator, g.out_channels)) for _ in range(count)]


small = geometries(min_size=3, taps=st.integers(1, 4)).filter(has_outputs)
sides = st.tuples(st.integers(0, 2), st.integers(0, 2))


# ---- what it computes


@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize(("k", "groups"), [(3, 1), (3, 2), (5, 2), (7, 1)])
def test_it_is_the_published_formulation(k, groups, edge):
    generator = torch.Generator().manual_seed(k + groups)
    shapes = (2, 4, k + 2, k), (6, 4 // groups, k, k), (6, 4 // groups, k, k)
    tensors = [normal(generator, *shape).requires_grad_() for shape in shapes[: 3 if edge else 2]]
    x, weight, edge_weight = tensors if edge else (*tensors, None)
    ours = padding_free_conv2d(x, weight, padding=k // 2, groups=groups, edge_weight=edge_weight)
    published = published_conv2d(x, weight, groups, edge_weight)
    assert relative_error(ours, published) < 1e-13
    upstream = normal(generator, *ours.shape)
    for own, theirs in zip(
        torch.autograd.grad(ours, tensors, upstream), torch.autograd.grad(published, tensors, upstream), strict=True
    ):
        assert relative_error(own, theirs) < 1e-13


def polynomial(degrees, coefficients, places):
    """(1, C, *size): for each channel the sum of ``coefficients`` (C, *degrees + 1) times powers of the places."""
    value = coefficients
    for degree, at in zip(degrees, places, strict=True):
        powers = at[:, None] ** torch.arange(degree + 1, dtype=torch.float64)
        value = torch.tensordot(value, powers, ([1], [1]))  # its axis goes last, so that the next is first again
    return value[None]


def check_polynomial(g, order=None):
    """The error of filtering a polynomial, as a part of a bound that grows with the gain of rounding errors."""
    widths = widths_of(g)
    orders = [(k - 1, k - 1) for k in g.kernel_size] if order is None else order
    gain = math.prod(
        max(noise_gain(pad, degree) for pad, degree in zip(pads, degrees, strict=True))
        for pads, degrees in zip(widths, orders, strict=True)
    )
    degrees = [min(pair) for pair in orders]
    (weight, bias), *_ = kernels(g, 1)
    coefficients = normal(g.generator(), g.in_channels, *(degree + 1 for degree in degrees))
    everywhere = [
        torch.arange(-before, size + after, dtype=torch.float64) * 2 / (size - 1) - 1
        for size, (before, after) in zip(g.size, widths, strict=True)
    ]
    continued = polynomial(degrees, coefficients, everywhere)
    image = continued
    for axis, (size, (before, _)) in enumerate(zip(g.size, widths, strict=True), start=2):
        image = image.narrow(axis, before, size)
    expected = CONV_FUNCTIONS[g.dims - 1](continued, weight, bias, g.stride, 0, g.dilation, g.groups)
    y = padding_free(image.contiguous(), weight, bias, g, order)
    return relative_error(y, expected) / (4e-15 * gain)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6, 7])
def test_polynomials_are_filtered_exactly_with_every_kernel(k, dims):
    @few_examples
    @given(geometries(dims=dims, channels=1, min_size=7, taps=st.just(k)).filter(has_outputs))
    def check(g):
        assert check_polynomial(g) < 1

    check()


@few_examples
@given(geometries(channels=1, min_size=4).filter(has_outputs), st.data())
def test_polynomials_are_filtered_exactly_with_every_order(g, data):
    order = [tuple(data.draw(st.integers(0, 3)) for _ in range(2)) for _ in range(g.dims)]
    assert check_polynomial(g, order) < 1


@few_examples
@given(geometries())
def test_order_0_repeats_the_border_and_interior_outputs_are_plain_ones(g):
    (weight, bias), *_ = kernels(g)
    x = g.input()
    repeated = padding_free(x, weight, bias, g, 0)
    assert relative_error(repeated, plain_conv(x, weight, bias, replace(g, padding_mode="replicate"))) < 1e-12
    plain = interior(plain_conv(x, weight, bias, replace(g, padding_mode="zeros")), g)
    assert relative_error(interior(padding_free(x, weight, bias, g), g), plain) < 1e-12


def test_order_padding_is_that_of_each_side():
    """SAME pads 8 pixels for a 5x5 kernel and a stride of 2 by 1 and 2."""
    x, weight = normal(torch.Generator().manual_seed(0), 2, 3, 8, 8), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    ours = padding_free_conv2d(x, weight, None, 2, "same", order="padding")
    assert torch.equal(ours, padding_free_conv2d(x, weight, None, 2, "same", order=((1, 2), (1, 2))))
    assert not torch.allclose(ours, padding_free_conv2d(x, weight, None, 2, "same", order=1))


# ---- kernels of their own for outputs at the border, and gradients that stop there


@few_examples
@given(small, sides, st.booleans(), st.booleans())
def test_edge_kernel_and_bias_are_for_exactly_the_outputs_at_the_border(g, pair, keep, with_bias):
    order = [pair] * g.dims
    (weight, bias), (edge_weight, edge_bias) = kernels(g)
    x = g.input()
    edge_bias = edge_bias if with_bias else None
    y = padding_free(x, weight, bias, g, order, edge_weight, keep, edge_bias=edge_bias)
    expected = padding_free(x, edge_weight, bias if edge_bias is None else edge_bias, g, order)
    inner = interior(torch.arange(math.prod(y.shape)).view(y.shape), g).flatten()
    plain = plain_conv(x, weight, bias, replace(g, padding_mode="zeros")).flatten()
    expected = expected.flatten().index_copy(0, inner, plain[inner]).view(y.shape)
    assert relative_error(y, expected) < 1e-12
    if not with_bias:
        return
    alone = padding_free(x, weight, bias, g, order, edge_bias=edge_bias) - padding_free(x, weight, bias, g, order)
    moved = (edge_bias - bias).view(-1, *(1,) * g.dims).expand_as(alone).clone()
    moved.view(-1)[inner] = 0
    assert relative_error(alone, moved, least=1.0) < 1e-12


@few_examples
@given(small, sides, st.booleans())
def test_without_the_images_gradients_at_the_border(g, pair, edge):
    order = [pair] * g.dims
    (weight, bias), (edge_weight, edge_bias) = kernels(g)
    other = {"edge_weight": edge_weight, "edge_bias": edge_bias} if edge else {}
    tensors = [g.input(), weight, bias, *other.values()]
    for tensor in tensors:
        tensor.requires_grad_()
    x = tensors[0]
    kept, stopped = (padding_free(x, weight, bias, g, order, keep=keep, **other) for keep in (True, False))
    assert relative_error(stopped, kept) < 1e-12
    upstream = normal(g.generator(), *kept.shape)
    expected, gradients = (torch.autograd.grad(y, tensors, upstream, materialize_grads=True) for y in (kept, stopped))
    for own, theirs in zip(gradients[1:], expected[1:], strict=True):
        assert relative_error(own, theirs) < 1e-12
    inner = interior(plain_conv(x, weight, bias, replace(g, padding_mode="zeros")), g)
    (from_interior,) = torch.autograd.grad(inner, [x], interior(upstream, g), materialize_grads=True)
    assert relative_error(gradients[0], from_interior) < 1e-12


@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("keep", [True, False])
def test_image_without_interior(keep, edge):
    """3 pixels and a kernel that spans 5: each window crosses the border, so no gradient reaches the image."""
    x, weight = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True), torch.randn(2, 4, 3, 3).double()
    edge_weight = weight + 1 if edge else None
    y = padding_free_conv2d(x, weight, None, 1, 2, 2, 1, None, edge_weight, keep)
    assert relative_error(y, padding_free_conv2d(x, weight + 1 if edge else weight, None, 1, 2, 2)) < 1e-12
    (gradient,) = torch.autograd.grad(y.sum(), [x])
    assert bool(gradient.any()) == keep


@pytest.mark.parametrize("edge", [False, True])
def test_derivatives(edge):
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 2, 5, 4), (4, 1, 3, 2), (4,), *([(4, 1, 3, 2), (4,)] if edge else []))
    tensors = tuple(normal(generator, *shape).requires_grad_() for shape in shapes)

    def run(x, weight, bias, edge_weight=None, edge_bias=None):
        return padding_free_conv2d(x, weight, bias, (2, 1), "same", 1, 2, (2, 1), edge_weight, edge_bias=edge_bias)

    assert gradcheck(run, tensors, fast_mode=True)
    assert gradgradcheck(run, tensors, fast_mode=True)


def test_derivatives_of_the_kernels_where_the_images_stop():
    generator = torch.Generator().manual_seed(0)
    x = normal(generator, 2, 2, 7).requires_grad_()
    tensors = tuple(normal(generator, *shape).requires_grad_() for shape in ((2, 2, 3), (2,)))
    assert gradcheck(lambda *kernel: padding_free_conv1d(x, *kernel, 2, 1, keep_img_grad_at_invalid=False), tensors)


def test_transforms():
    """Gradients for each sample by ``torch.func``, with an edge kernel and without."""
    generator = torch.Generator().manual_seed(0)
    x, weight = normal(generator, 3, 2, 6, 5), normal(generator, 2, 2, 3, 3)

    def loss(weight, image, edge_weight, keep):
        y = padding_free_conv2d(image, weight, None, 1, 1, edge_weight=edge_weight, keep_img_grad_at_invalid=keep)
        return y.square().sum()

    for edge_weight, keep in ((None, True), (None, False), (weight + 1, True)):
        each = torch.func.vmap(torch.func.grad(loss, (0, 1)), (None, 0, None, None))(weight, x, edge_weight, keep)
        for i in range(len(x)):
            leaves = weight.clone().requires_grad_(), x[i].clone().requires_grad_()
            for own, theirs in zip(each, torch.autograd.grad(loss(*leaves, edge_weight, keep), leaves), strict=True):
                assert relative_error(own[i], theirs) < 1e-12


# ---- dtypes and memory formats


@pytest.mark.parametrize("edge", [False, True])
def test_under_autocast_extrapolation_is_rounded_once(edge):
    """The kernel picks the pixel before: outputs are pixels of the padded image."""
    x = torch.randn(1, 1, 40, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([1.0, 0, 0, 0, 0]).view(1, 1, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = padding_free_conv1d(x, weight, None, 1, 2, edge_weight=weight if edge else None)
    assert y.dtype == torch.bfloat16
    pixels = x.bfloat16().double()
    weights = torch.tensor(lagrange_weights(2, 4), dtype=torch.float64)
    outside = (pixels[..., :5] @ weights.T).flip(-1)
    assert outside.abs().max() > 10 * pixels.abs().max()
    bound = 2.0**-8 * outside.abs() + 2.0**-23 * (pixels[..., :5].abs() @ weights.abs().T).flip(-1)
    assert ((y[..., :2].double() - outside).abs() <= bound).all()
    assert torch.equal(y[..., 2:].double(), pixels[..., :-2])


@pytest.mark.parametrize("options", [{}, {"edge": True}, {"keep": False}], ids=str)
@pytest.mark.parametrize("dims", [2, 3])
def test_memory_format(dims, options):
    memory_format = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    generator = torch.Generator().manual_seed(0)
    x, weight = normal(generator, 2, 4, *(6,) * dims).float(), normal(generator, 6, 2, *(3,) * dims).float()
    options = {
        "edge_weight": weight + 1 if "edge" in options else None,
        "keep_img_grad_at_invalid": "keep" not in options,
    }
    for stride in (1, 2):
        convolve = partial(FUNCTIONS[dims - 1], weight=weight, stride=stride, padding=1, groups=2, **options)
        y = convolve(x)
        assert y.is_contiguous()
        other = convolve(x.contiguous(memory_format=memory_format))
        assert is_channels_last(other)
        assert not other.is_contiguous()
        assert relative_error(other, y) < 1e-5


def test_complex_numbers():
    x, weight = torch.randn(1, 2, 6, dtype=torch.complex128), torch.randn(3, 2, 3, dtype=torch.complex128)
    y = padding_free_conv1d(x, weight, None, 1, 1)
    parts = [padding_free_conv1d(a, b, None, 1, 1) for a in (x.real, x.imag) for b in (weight.real, weight.imag)]
    assert torch.allclose(y, torch.complex(parts[0] - parts[3], parts[1] + parts[2]))


# ---- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(4, 8)}, r"4 axes \(or 3, without batch\).*\(4, 8\)"),
        ({"input": torch.zeros(2, 3, 8, 8)}, "is for 4 input channels, got an input of shape"),
        ({"input": torch.zeros(2, 4, 8, 8).double()}, "weight must have the dtype.*float64.*float32"),
        ({"weight": torch.zeros(6, 4, 3)}, r"4 axes for 2 dimensions, got \(6, 4, 3\)"),
        ({"weight": torch.zeros(6, 4, 0, 3)}, r"weight must be.*\(6, 4, 0, 3\)"),
        ({"bias": torch.zeros(5)}, r"bias must be of shape \(6,\), got \(5,\)"),
        ({"edge_weight": torch.zeros(6, 4, 5, 5)}, r"edge_weight must be of shape \(6, 4, 3, 3\), got \(6, 4, 5, 5\)"),
        ({"edge_weight": torch.zeros(6, 4, 3, 3).double()}, "edge_weight must have the dtype"),
        ({"edge_bias": torch.zeros(5)}, r"edge_bias must be of shape \(6,\), got \(5,\)"),
        ({"groups": 4}, "groups must divide the 6 output channels.*groups=4"),
        ({"groups": 0}, "groups=0"),
        ({"groups": 2}, "is for 8 input channels"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"dilation": (0, 1)}, r"dilation must be at least 1, got \(0, 1\)"),
        ({"padding": -1}, "padding must not be negative"),
        ({"padding": "full"}, "full"),
        ({"order": -1}, "order must not be negative, got -1"),
        ({"order": (1, 2, 3)}, r"\(1, 2, 3\)"),
        ({"order": "linear"}, "'linear'"),
        ({"order": 1.5}, r"whole numbers, got 1\.5"),
        ({"input": torch.zeros(2, 4, 0, 8)}, r"a pixel on each axis, got an input of shape \(2, 4, 0, 8\)"),
        (
            {"order": 8},
            r"order 8 takes 9 pixels, and axis 0 of the image \(8, 8\) has 8: take a lower order or a larger",
        ),
        ({"order": ((0, 0), (0, 9))}, "order 9 takes 10 pixels, and axis 1"),
        ({"input": torch.zeros(1, 4, 8, 2)}, r"order 2 takes 3 pixels, and axis 1 of the image \(8, 2\) has 2"),
        ({"dilation": 5}, r"spans \(11, 11\) pixels.*less"),
    ],
    ids=str,
)
@pytest.mark.parametrize("edge", [False, True])
def test_errors_name_what_was_wrong(change, message, edge):
    given = {"input": torch.zeros(2, 4, 8, 8), "weight": torch.zeros(6, 4, 3, 3), "bias": None, "padding": 1}
    given |= {"edge_weight": torch.zeros(6, 4, 3, 3)} if edge and "weight" not in change else {}
    with pytest.raises(ValueError, match=message):
        padding_free_conv2d(**(given | change))


def test_an_axis_without_padding_may_have_fewer_pixels():
    x, weight = torch.randn(1, 1, 9, 3), torch.randn(1, 1, 3, 3)
    y = padding_free_conv2d(x, weight, None, 1, (1, 0), order=(2, 5))
    assert y.shape == (1, 1, 9, 1)
