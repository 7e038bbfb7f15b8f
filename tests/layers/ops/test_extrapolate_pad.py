"""Padding by extrapolation and its transpose, against matrices that are found by solving for polynomials."""

import os
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from convswap.layers._geometry import memory_format
from convswap.layers.ops import extrapolate_pad as ops

from ..helpers import is_channels_last, seeds
from .registration import check_registration

DTYPES = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Largest error in each dtype: of half precision relative to each number, as it is rounded once."""

LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Case:
    batch: int
    channels: int
    size: tuple
    padding: tuple
    order: tuple
    channels_last: bool

    @property
    def dims(self):
        return len(self.size)

    @property
    def sides(self):
        return list(self.padding), list(self.order)

    def image(self, seed=0, dtype=torch.float64, padded=False):
        generator = torch.Generator().manual_seed(seed)
        added = [sum(self.padding[2 * i : 2 * i + 2]) if padded else 0 for i in range(self.dims)]
        size = [n + more for n, more in zip(self.size, added, strict=True)]
        value = torch.randn(self.batch, self.channels, *size, generator=generator, dtype=torch.float64).to(dtype)
        return value.contiguous(memory_format=LAST[self.dims]) if self.channels_last else value

    def matrices(self):
        pairs = [(self.padding[2 * i : 2 * i + 2], self.order[2 * i : 2 * i + 2]) for i in range(self.dims)]
        return [polynomial_matrix(n, *pair) for n, pair in zip(self.size, pairs, strict=True)]


@st.composite
def cases(draw, most_order=6, most_padding=9, most_size=30, most_channels=20):
    dims = draw(st.sampled_from((1, 2, 2, 3)))
    order = tuple(draw(st.integers(0, most_order)) for _ in range(2 * dims))
    room = most_padding if dims < 3 else min(3, most_padding)
    padding = tuple(draw(st.one_of(st.integers(0, 3), st.integers(0, room))) for _ in range(2 * dims))
    needed = [max(o + 1 if p else 1 for o, p in zip(order, padding, strict=True)) for _ in range(dims)]
    most = most_size if dims < 3 else 9
    return Case(
        batch=draw(st.integers(0, 2)),
        channels=draw(st.integers(1, most_channels if dims < 3 else 5)),
        size=tuple(draw(st.integers(least, max(least, most))) for least in needed),
        padding=padding,
        order=order,
        channels_last=dims > 1 and draw(st.booleans()),
    )


def polynomial_matrix(size, padding, order):
    """(before + size + after, size): rows of the identity, and values of polynomials through the pixels at an edge."""
    matrix = torch.zeros(sum(padding) + size, size, dtype=torch.float64)
    matrix[padding[0] : padding[0] + size] = torch.eye(size, dtype=torch.float64)
    for last in (False, True):
        pad, degree = padding[last], order[last]
        if not pad:
            continue
        inside = torch.arange(degree + 1, dtype=torch.float64) / (degree + 1)
        outside = -torch.arange(1, pad + 1, dtype=torch.float64) / (degree + 1)
        solved = torch.linalg.solve(torch.vander(inside).mT, torch.vander(outside, degree + 1).mT).mT
        if last:
            matrix[padding[0] + size :, size - degree - 1 :] = solved.flip(1)
        else:
            matrix[:pad, : degree + 1] = solved.flip(0)
    return matrix


def by_matrices(image, matrices):
    for axis, matrix in enumerate(matrices, 2):
        image = torch.tensordot(image, matrix, ([axis], [1])).movedim(-1, axis)
    return image


def bound(image, matrices, tolerance):
    """Largest error of each number: relative to it, and to what it is a sum of in single precision."""
    exact, sizes = by_matrices(image.double(), matrices), by_matrices(image.double().abs(), [m.abs() for m in matrices])
    return tolerance * exact.abs() + 1e-6 * sizes + 1e-7


def assert_near(got, image, matrices, dtype):
    wanted = by_matrices(image.double(), matrices)
    assert got.dtype == dtype
    assert got.shape == wanted.shape
    fits = wanted.abs() < 6e4 if dtype is torch.float16 else torch.ones_like(wanted, dtype=torch.bool)
    if dtype.itemsize > 2:
        near = DTYPES[dtype] * by_matrices(image.double().abs(), [m.abs() for m in matrices])
    else:
        near = bound(image, matrices, DTYPES[dtype])
    assert bool(((got.double() - wanted).abs() <= near)[fits].all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=cases(), seed=seeds)
@settings(deadline=None, max_examples=40)
def test_both_ways_are_what_polynomials_give(dtype, case, seed):
    matrices = case.matrices()
    x, grad = case.image(seed, dtype), case.image(seed, dtype, padded=True)
    y, back = ops.forward(x, *case.sides), ops.backward(grad, *case.sides)
    assert_near(y, x, matrices, dtype)
    assert_near(back, grad, [m.mT for m in matrices], dtype)
    assert y is not x
    for result, argument in ((y, x), (back, grad)):
        if result.numel() and case.channels > 1 and min(*result.shape[2:], *argument.shape[2:]) > 1 < case.dims:
            assert is_channels_last(result) == case.channels_last
    ops.backward_in_place(grad, *case.sides)
    assert torch.equal(grad.as_strided(back.shape, back.stride()).nan_to_num(), back.nan_to_num())


@pytest.mark.parametrize("function", [ops.forward, ops.extrapolate_pad_ref], ids=["op", "plain"])
@given(case=cases(most_order=3, most_padding=3, most_size=5, most_channels=2), seed=seeds)
@settings(deadline=None, max_examples=8)
def test_derivatives_of_first_and_second_order(function, case, seed):
    x = case.image(seed).requires_grad_()
    assert gradcheck(lambda value: function(value, *case.sides), x, fast_mode=True)
    assert gradgradcheck(lambda value: function(value, *case.sides), x, fast_mode=True)


@pytest.mark.parametrize("channels_last", [False, True])
def test_known_to_torch(channels_last):
    case = Case(2, 3, (5, 6), (1, 2, 0, 3), (2, 0, 1, 4), channels_last)
    check_registration(ops.forward, (case.image().requires_grad_(), *case.sides))
    check_registration(ops.backward, (case.image(padded=True).requires_grad_(), *case.sides))


def test_nothing_is_kept_and_nothing_counted():
    case, kept = Case(2, 3, (5, 6), (1, 2, 0, 3), (2, 0, 1, 4), False), []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value),
        FlopCounterMode(display=False) as counter,
    ):
        ops.forward(case.image().requires_grad_(), *case.sides).sum().backward()
    assert kept == []
    assert counter.get_total_flops() == 0


def test_without_padding_it_is_a_copy():
    x = torch.randn(2, 3, 4, 5)
    for op in (ops.forward, ops.backward):
        y = op(x, [0] * 4, [9] * 4)
        assert torch.equal(x, y)
        assert y.data_ptr() != x.data_ptr()


def test_arguments_that_are_not_contiguous():
    case = Case(2, 3, (6, 7), (1, 2, 3, 1), (2, 1, 3, 0), False)
    for op, padded in ((ops.forward, False), (ops.backward, True)):
        x = case.image(padded=padded)
        assert torch.equal(op(x.mT.contiguous().mT, *case.sides), op(x, *case.sides))
        single = x[:1, :1].expand(2, 3, *x.shape[2:])
        assert torch.equal(op(single, *case.sides), op(single.contiguous(), *case.sides))


@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_no_number_stays_in_reach(channels_last):
    case = Case(1, 2, (20, 40), (2, 2, 2, 2), (2, 1, 2, 1), channels_last)
    for op, padded in ((ops.forward, False), (ops.backward, True)):
        matrices = case.matrices()
        for place in ((0, 0), (10, 1), (3, 3), (10, 20), (19, 39)):
            x = torch.zeros_like(case.image(padded=padded))
            x[0, 1, place[0], place[1]] = 1
            reached = by_matrices(x, [m.mT for m in matrices] if padded else matrices) != 0
            x[0, 1, place[0], place[1]] = torch.nan
            assert torch.equal(op(x, *case.sides).isnan(), reached)


@pytest.mark.skipif(os.environ.get("CONVSWAP_KERNELS") == "off", reason="of the sums of torch that is not promised")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [
    Case(1, 40, (40, 33), (3, 2, 4, 1), (6, 2, 3, 2), True),
    Case(2, 9, (30, 17), (3, 2, 4, 1), (6, 2, 3, 2), False),
    Case(1, 6, (9, 33, 20), (2, 1, 1, 2, 3, 0), (2, 3, 1, 4, 2, 2), True),
], ids=["flat, channels last", "flat", "deep"])  # fmt: skip
def test_results_do_not_depend_on_the_number_of_threads(case, dtype):
    x, grad = case.image(1, dtype), case.image(2, dtype, padded=True)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            place = grad.clone()
            ops.backward_in_place(place, *case.sides)
            inner = place.as_strided(x.shape, x.stride()).clone()
            found.append((ops.forward(x, *case.sides), ops.backward(grad, *case.sides), inner))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_the_way_back_in_place_of_many_images():
    """Which find their places in several goes."""
    case = Case(40, 3, (8, 18), (1, 1, 1, 2), (1, 2, 2, 1), False)
    grad = case.image(padded=True)
    wanted = ops.backward(grad, *case.sides)
    start = grad.data_ptr()
    got = ops.folded(grad, *case.sides)
    assert torch.equal(got, wanted)
    assert memory_format(got) == memory_format(wanted)
    assert os.environ.get("CONVSWAP_KERNELS") == "off" or got.data_ptr() == start


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_that_are_kept_do_not_keep_much_more(channels_last):
    for size in range(3, 30, 2):
        case = Case(1, 3, (size, size), (2, 2, 2, 2), (2, 2, 2, 2), channels_last)
        grad = case.image(padded=True)
        wanted = ops.backward(grad, *case.sides)
        got = ops.folded(grad, *case.sides)
        assert torch.equal(got, wanted)
        assert got.stride() == wanted.stride()
        assert got.untyped_storage().nbytes() <= 1.5 * wanted.untyped_storage().nbytes()


@pytest.mark.parametrize(
    ("shape", "padding", "order", "message"),
    [
        ((1, 1, 3, 9), [1, 0, 0, 0], [3, 0, 0, 0], "order 3 takes 4 pixels, and axis 0 .*has 3"),
        ((1, 1, 0, 9), [0, 1, 0, 0], [0, 0, 0, 0], "order 0 takes 1 pixels, and axis 0 .*has 0"),
    ],
)
@pytest.mark.parametrize("back", [False, True])
def test_images_that_are_too_small(shape, padding, order, message, back):
    op = ops.backward if back else ops.forward
    size = [n + sum(padding[2 * i : 2 * i + 2]) for i, n in enumerate(shape[2:])] if back else shape[2:]
    with pytest.raises((ValueError, RuntimeError), match=message):
        op(torch.zeros(*shape[:2], *size), padding, order)
