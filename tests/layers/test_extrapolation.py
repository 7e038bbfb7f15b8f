"""Extrapolation: weights, orders, polynomials, and the padding that is made of them."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convswap.layers import extrapolation
from convswap.layers.extrapolation import (
    check_order,
    extrapolate_pad,
    lagrange_weights,
    noise_gain,
    normalise_order,
)
from convswap.layers.ops._load import load_kernels

from .helpers import few_examples, seeds


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    load_kernels("cpu")


class Pad(nn.Module):
    def __init__(self, pad, order):
        super().__init__()
        self.pad, self.order = pad, order

    def forward(self, x):
        return extrapolate_pad(x, self.pad, self.order)


def test_weights_by_hand():
    assert lagrange_weights(3, 0) == [[1.0]] * 3
    assert lagrange_weights(2, 1) == [[2.0, -1.0], [3.0, -2.0]]
    assert lagrange_weights(2, 2) == [[3.0, -3.0, 1.0], [6.0, -8.0, 3.0]]
    assert lagrange_weights(0, 4) == []


def test_noise_gains_as_published():
    assert [noise_gain(k // 2, k - 1) for k in (1, 3, 5, 7)] == [1, 7, 129, 2815]
    assert noise_gain(4, 0) == 1
    assert noise_gain(0, 6) == 1


@pytest.mark.parametrize(
    ("order", "dims", "wanted"),
    [
        (2, 2, ((2, 2), (2, 2))),
        ((1, 3), 2, ((1, 1), (3, 3))),
        (((1, 2), (3, 4)), 2, ((1, 2), (3, 4))),
        ([(0, 5)], 1, ((0, 5),)),
    ],
)
def test_orders_for_all_for_each_axis_or_side(order, dims, wanted):
    assert normalise_order(order, dims) == wanted


@pytest.mark.parametrize("one", [np.int64(2), torch.tensor(2)], ids=str)
def test_whole_numbers_of_other_libraries(one):
    wanted = ((2, 2), (2, 2))
    assert normalise_order(one, 2) == normalise_order([one, 2], 2) == normalise_order([(one, 2), (2, one)], 2) == wanted
    assert normalise_order(np.array([2, 2]), 2) == normalise_order(torch.tensor([[2, 2], [2, 2]]), 2) == wanted


@pytest.mark.parametrize(
    "order",
    [(1, 2, 3), ((1, 2, 3), (1, 2)), ((1, 2),), 1.5, (1, 2.0), ((0, 1), (0, 0.5)), None, "padding", torch.tensor(1.0)],
    ids=str,
)
def test_orders_that_do_not_fit_the_axes(order):
    with pytest.raises(ValueError, match=r"order must be one number, one for each of the 2 axes, or"):
        normalise_order(order, 2)


def test_too_few_pixels_are_told_with_what_to_do():
    check_order((3, 9), ((1, 0), (2, 2)), ((2, 7), (4, 4)))
    with pytest.raises(ValueError, match=r"order 3 takes 4 pixels, and axis 0 of the image \(3, 9\) has 3: take a low"):
        check_order((3, 9), ((1, 0), (2, 2)), ((3, 0), (4, 4)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_weights_that_are_no_numbers_are_told_with_what_to_do(dtype):
    """Next to the edge those of order n are the binomial coefficients of n + 1, but for the first of these."""
    most = torch.finfo(max(dtype, torch.float32, key=lambda one: one.itemsize)).max
    highest = next(n for n in itertools.count() if math.comb(n + 2, (n + 2) // 2) > most)
    check_order((2000,), [(0, 1)], [(1999, highest)], dtype)
    for order in (highest + 1, 1900):
        message = f"order {order} by 1 pixels has weights that are too large for {dtype}: take a lower order"
        with pytest.raises(ValueError, match=message):
            check_order((2000,), [(0, 1)], [(0, order)], dtype)


def test_weights_of_many_pixels_are_no_numbers_sooner():
    assert extrapolate_pad(torch.zeros(1, 1, 99), 1, 90).isfinite().all()
    with pytest.raises(ValueError, match="order 90 by 40 pixels has weights that are too large"):
        extrapolate_pad(torch.zeros(1, 1, 99), 40, 90)
    with pytest.raises(ValueError, match="order 400 has weights that are too large: take a lower order"):
        noise_gain(400, 400)


@st.composite
def polynomials(draw):
    """Orders and pads of each side, and a size that is large enough."""
    dims = draw(st.integers(1, 3))
    sides = st.tuples(st.integers(0, 3), st.integers(0, 3))
    order = [draw(st.tuples(st.integers(0, 6), st.integers(0, 6))) for _ in range(dims)]
    size = [max(pair) + 1 + draw(st.integers(0, 4)) for pair in order]
    return size, [draw(sides) for _ in range(dims)], order


def values(coefficients, places):
    """Of a polynomial in several variables, at a grid of places."""
    for axis, at in enumerate(places):
        powers = torch.vander(at, coefficients.shape[axis])
        coefficients = torch.tensordot(coefficients, powers, ([axis], [1])).movedim(-1, axis)
    return coefficients


@given(case=polynomials(), seed=seeds)
@few_examples
def test_polynomials_go_on_exactly(case, seed):
    size, pad, order = case
    generator = torch.Generator().manual_seed(seed)
    degrees = [min(pair) for pair in order]
    coefficients = torch.randn([d + 1 for d in degrees], generator=generator, dtype=torch.float64)
    places = [
        torch.arange(-before, n + after, dtype=torch.float64) / 8 for n, (before, after) in zip(size, pad, strict=True)
    ]
    whole = values(coefficients, places)
    image = whole[tuple(slice(before, before + n) for n, (before, _) in zip(size, pad, strict=True))]
    padded = extrapolate_pad(image[None, None], pad, order)[0, 0]
    gain = 1.0
    for (before, after), (first, last) in zip(pad, order, strict=True):
        gain *= max(noise_gain(before, first), noise_gain(after, last))
    assert padded.shape == whole.shape
    assert (padded - whole).abs().max() <= 1e-14 * gain * image.abs().max()


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_order_0_is_replicate(dims):
    x = torch.randn(2, 3, *(5, 6, 4)[:dims])
    assert torch.equal(extrapolate_pad(x, 2, 0), F.pad(x, (2,) * 2 * dims, "replicate"))


def test_corners_do_not_depend_on_the_order_of_axes():
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64)
    turned = extrapolate_pad(x.mT, ((3, 0), (1, 2)), ((3, 2), (1, 4))).mT
    torch.testing.assert_close(extrapolate_pad(x, ((1, 2), (3, 0)), ((1, 4), (3, 2))), turned)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_numbers(dtype):
    x = torch.randn(2, 3, 6, 7, dtype=torch.complex128)
    wanted = torch.complex(extrapolate_pad(x.real, 2, 3), extrapolate_pad(x.imag, 2, 3))
    got = extrapolate_pad(x.to(dtype), 2, 3)
    assert got.dtype == dtype
    tolerance = 1e-12 if dtype == torch.complex128 else 1e-4
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_half_precision_stays_under_autocast_and_is_rounded_once():
    x = torch.randn(2, 3, 6, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(extrapolate_pad(x, 2, 2), extrapolate_pad(x, 2, 2).float())
        half = extrapolate_pad(x.bfloat16(), 2, 2)
    torch.testing.assert_close(half, extrapolate_pad(x.bfloat16().double(), 2, 2).bfloat16(), rtol=2**-8, atol=1e-5)


def test_under_transforms_and_forward_mode():
    module, x = Pad((2, 1), ((1, 2), (2, 0))), torch.randn(3, 2, 5, 6, dtype=torch.float64)
    wanted = module(x)
    each = torch.func.vmap(lambda one: module(one[None])[0])(x)
    torch.testing.assert_close(each, wanted)
    _, along = torch.func.jvp(module, (x,), (x,))
    torch.testing.assert_close(along, wanted)
    squares = torch.func.grad(lambda value: module(value).square().sum() / 2)(x)
    torch.testing.assert_close(squares, torch.autograd.functional.vjp(module, x, wanted)[1])


def test_exports_with_free_sizes_to_ops_of_torch_alone():
    module = Pad(((1, 2), (0, 3)), ((2, 1), (4, 6)))
    free = {0: torch.export.Dim("b", min=1), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=7)}
    program = torch.export.export(module, (torch.randn(2, 3, 8, 9).double(),), dynamic_shapes=(free,))
    assert not [node for node in program.graph.nodes if "convswap" in str(node.target)]
    for shape in ((1, 3, 4, 7), (5, 3, 11, 30)):
        x = torch.randn(shape).double()
        torch.testing.assert_close(program.module()(x), module(x))


def test_compiles_whole_with_free_sizes():
    module = Pad(((1, 2), (0, 3)), 2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape, width in itertools.product(((2, 3, 5), (1, 3, 8)), (6, 9)):
        x = torch.randn(*shape, width, requires_grad=True)
        got, wanted = compiled(x), module(x)
        torch.testing.assert_close(got, wanted)
        (one,), (other,) = (torch.autograd.grad(y.square().sum(), x) for y in (got, wanted))
        torch.testing.assert_close(one, other)


def test_traced_as_one_call():
    graph = torch.fx.symbolic_trace(lambda x: extrapolation.extrapolate_pad(x, 1, 2)).graph
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [extrapolate_pad]


@pytest.mark.parametrize(
    ("x", "pad", "order", "message"),
    [
        (torch.ones(3, 4), 1, 0, r"\(B, C, \*size\) with 1 to 3 spatial axes, got \(3, 4\)"),
        (torch.ones(1, 1, 3, 4, dtype=torch.long), 1, 0, "floating-point or complex, got torch.int64"),
        (torch.ones(1, 1, 3, 4), -1, 0, "pad must not be negative, got -1"),
        (torch.ones(1, 1, 3, 4), (1, 2, 3), 0, "pad must be one number, one for each of the 2 axes"),
        (torch.ones(1, 1, 3, 4), 1, -2, "order must not be negative, got -2"),
        (torch.ones(1, 1, 3, 4), 1, 3, "order 3 takes 4 pixels, and axis 0"),
    ],
)
def test_what_does_not_fit_is_said(x, pad, order, message):
    with pytest.raises(ValueError, match=message):
        extrapolate_pad(x, pad, order)
