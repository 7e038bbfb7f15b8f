"""The power of hybrid dense layers and its gradients: against the formula, written out number by number."""

import math
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from convswap.layers.functional import hybrid_activation
from convswap.layers.ops import hybrid_activation as ops

from ..helpers import few_examples, relative_error, seeds
from .registration import check_registration

DTYPES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
LEAST = {dtype: float(torch.finfo(dtype).tiny) for dtype in DTYPES} | {torch.float64: 2.0**-958}
"""Below it numbers lose digits. In double precision sums are of parts of 2^-64, so that none is infinite."""
HARD = (0.0, -0.0, 1e-8, 1e-6, 3e-5, 0.5, 1.0, 700.0, 6e4, 1e30, math.inf, -1e-6, -2.0, -6e4, -math.inf, math.nan)
POWERS = (-30.0, -10.0, -9.5, -5.0, -4.7, -1.0, 0.0, 0.3, 1.0, 2.0, 4.9, 10.0, 11.0)
MULS = (1.0, -1.0, 0.0, 1e-6, -3.0, 5e4)


def by_number(z, mul, power, most):
    """Value and derivatives to z, mul and power of one number; ``most`` is the greatest that is finite."""
    clipped = min(max(power, -10.0), 10.0)
    base = (z if z > 0 else 0.0) + 1e-8
    if math.isnan(z):  # as pow has it
        base = z
    try:
        raised = base**clipped
    except OverflowError:
        raised = math.inf
    size, sign = abs(mul) * raised, math.copysign(1.0, z)
    if not size <= most:
        return (0.0 if math.isnan(size) else math.copysign(most, z)), 0.0, 0.0, 0.0
    bounded = lambda value: 0.0 if math.isnan(value) else min(max(value, -most), most)
    slope = size * (clipped / base) if z > 0 else 0.0
    turned = sign * math.copysign(raised, mul) if mul else 0.0
    along = sign * size * math.log(base) if abs(power) <= 10 else 0.0
    return math.copysign(size, z), bounded(slope), bounded(turned), bounded(along)


@st.composite
def shapes(draw):
    """(N, C, *any) as runs of pixels, as neighbouring channels, or with nothing in it, and a memory format."""
    axes = draw(st.integers(0, 3))
    shape = (draw(st.integers(0, 3)), draw(st.integers(1, 21)), *(draw(st.integers(1, 7)) for _ in range(axes)))
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    return shape, draw(st.sampled_from((torch.contiguous_format, formats.get(axes, torch.contiguous_format))))


def tensors_of(shape, memory_format, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
    z, muls, powers = draw(*shape), draw(shape[1]), 2 * draw(shape[1])
    return z.to(memory_format=memory_format), muls, powers.abs().clamp(0.2, 2.5), draw(*shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_the_plain_form_in_double_precision(dtype):
    @few_examples
    @given(shapes(), seeds)
    def check(shape, seed):
        z, muls, powers, grad = tensors_of(*shape, seed, dtype)
        exact = [value.double() for value in (grad, z, muls, powers)]
        y = ops.forward(z, muls, powers)
        assert not y.numel() or y.is_contiguous(memory_format=shape[1])
        assert relative_error(y, ops.hybrid_activation_ref(*exact[1:]), least=1e-3) < DTYPES[dtype]
        gradients = ops.backward(grad, z, muls, powers)
        wanted = ops.hybrid_activation_backward_ref(*exact)
        for got, due in zip(gradients, wanted, strict=True):
            assert got.dtype == dtype
            assert relative_error(got, due, least=1) < 2 * DTYPES[dtype]

    check()


@pytest.mark.parametrize(
    ("forward", "backward"),
    [(ops.forward, ops.backward), (ops.hybrid_activation_ref, ops.hybrid_activation_backward_ref)],
    ids=["op", "plain"],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hard_numbers_one_by_one(dtype, forward, backward):
    """Zeros, infinities, no numbers, what saturates, and powers at and beyond the clips: all is finite and exact."""
    most, lossy = torch.finfo(dtype).max, dtype in (torch.bfloat16, torch.float16)
    cases = torch.cartesian_prod(*(torch.tensor(v, dtype=torch.float64).to(dtype) for v in (HARD, MULS, POWERS)))
    z, muls, powers = cases.T[0].clone()[None], *(value.contiguous() for value in cases.T[1:])
    y, *gradients = forward(z, muls, powers), *backward(torch.ones_like(z), z, muls, powers)
    reach = torch.finfo(torch.float32 if lossy else dtype)
    compared = 0
    for i, (one, mul, power) in enumerate(zip(*(v.flatten().tolist() for v in (z, muls, powers)), strict=True)):
        found = [float(value.flatten()[i]) for value in (y, *gradients)]
        assert all(map(math.isfinite, found)), (one, mul, power, found)
        wanted = by_number(one, mul, power, most)
        raised = (max(one, 0.0) + 1e-8) ** min(max(power, -10), 10)
        if one < math.inf and mul and not reach.tiny < min(raised, abs(wanted[0])) <= raised < reach.max / 2:
            continue  # the power itself, or the value, leaves the precision
        if dtype is not torch.float64 and 0 < abs(abs(wanted[0]) / most - 1) < 0.01:  # at the edge of saturation
            continue
        compared += 1
        for got, due in zip(found, wanted, strict=True):
            near = DTYPES[dtype] * (1 if lossy else 50) * abs(due) + LEAST[dtype]
            near += 0 if dtype is torch.float64 else 2e-7 * abs(wanted[0])  # 1 + 1e-8 is 1
            assert abs(got - due) <= near, (one, mul, power, found, wanted)
            assert got == 0 or due == 0 or (got > 0) == (due > 0)
        assert math.copysign(1, found[0]) == math.copysign(1, one) or math.isnan(one)
    assert compared > 300


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_stay_finite_however_great_what_comes_in(dtype):
    z = torch.tensor(HARD, dtype=torch.float64).to(dtype).expand(40, 1, -1).contiguous()
    for power in POWERS:
        grad = torch.full_like(z, torch.finfo(dtype).max)
        muls, powers = torch.tensor([2.0], dtype=dtype), torch.tensor([power], dtype=dtype)
        for got in ops.backward(grad, z, muls, powers):
            assert got.isfinite().all()


def test_no_number_in_the_gradient_is_not_hidden():
    z, one = torch.ones(2, 3), torch.ones(3)
    grad = torch.zeros(2, 3)
    grad[1, 2] = math.nan
    z_grad, muls_grad, powers_grad = ops.backward(grad, z, one, one)
    assert z_grad.isnan().nonzero().tolist() == [[1, 2]]
    for value in (muls_grad, powers_grad):
        assert value.isnan().tolist() == [False, False, True]


def away_from_kinks():
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(3, 5, 2, 2, generator=generator, dtype=torch.float64) + 0.3
    z[:, 2:] *= torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64).view(3, 1, 1, 1)
    muls = torch.tensor([1.5, -0.7, 0.4, 2.0, 1.0], dtype=torch.float64)
    powers = torch.tensor([-1.3, -0.5, 0.8, 2.0, 12.0], dtype=torch.float64)
    return [value.requires_grad_() for value in (z, muls, powers)]


@pytest.mark.parametrize("function", [ops.forward, ops.hybrid_activation_ref], ids=["op", "plain"])
def test_derivatives_of_first_and_second_order(function):
    assert gradcheck(function, away_from_kinks(), fast_mode=True)
    assert gradgradcheck(function, away_from_kinks(), fast_mode=True)


@pytest.mark.parametrize("power", [-10.0, 10.0])
def test_powers_at_the_clips_have_a_gradient(power):
    """One-sided, and the same of first and second order whatever computes it."""
    found = []
    for function in (ops.forward, ops.hybrid_activation_ref):
        tensors = [torch.tensor(v, dtype=torch.float64).requires_grad_() for v in ([[0.9], [1.2]], [1.5], [power])]
        first = torch.autograd.grad(function(*tensors).sum(), tensors, create_graph=True)
        second = [torch.autograd.grad(one.sum(), tensors, retain_graph=True) for one in first]
        found.append([*first, *(value for row in second for value in row)])
        assert first[2] != 0
        assert second[2][2] != 0
    for op, plain in zip(*found, strict=True):
        assert torch.allclose(op, plain, rtol=1e-10)
    z, muls, powers = (value.detach() for value in tensors)
    through = torch.func.grad(lambda value: hybrid_activation(z, muls, value).sum())(powers)
    assert torch.allclose(through, found[0][2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_powers_that_are_no_numbers_give_none(dtype):
    z = torch.tensor([v for v in HARD if v != 1], dtype=torch.float64).to(dtype).repeat(5)[:, None]
    muls, powers = torch.ones(1, dtype=dtype), torch.full((1,), math.nan, dtype=dtype)
    for got in (ops.forward(z, muls, powers), *ops.backward(torch.ones_like(z), z, muls, powers)):
        assert not got.any()
        assert got.isfinite().all()


def test_plain_form_has_the_same_gradients_where_it_saturates_or_is_steep():
    for dtype in (torch.float32, torch.float64):
        z = torch.tensor([[v for v in HARD if math.isfinite(v)]], dtype=dtype).mT.clone()
        for power in POWERS:
            tensors = [v.to(dtype).requires_grad_() for v in (z, torch.tensor([-1e-3]), torch.tensor([power]))]
            grads = [
                torch.autograd.grad(function(*tensors).sum(), tensors)
                for function in (ops.forward, ops.hybrid_activation_ref)
            ]
            assert all(value.isfinite().all() for value in grads[0])
            for op, plain in list(zip(*grads, strict=True))[:2]:
                assert torch.allclose(op, plain, rtol=1e-4), power


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_known_to_torch(memory_format):
    z, muls, powers = away_from_kinks()
    z = z.detach().to(memory_format=memory_format).requires_grad_()
    check_registration(ops.forward, (z, muls, powers))
    grad = torch.randn(z.shape, dtype=z.dtype).to(memory_format=memory_format).requires_grad_()
    check_registration(ops.backward, (grad, z, muls, powers))


def test_only_z_is_kept():
    kept = []
    z, muls, powers = away_from_kinks()
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value.shape) or value, lambda value: value):
        ops.forward(z, muls, powers)
    assert sorted(kept, key=len) == [muls.shape, powers.shape, z.shape]


@pytest.mark.skipif(os.environ.get("CONVSWAP_KERNELS") == "off", reason="of the sums of torch that is not promised")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_results_do_not_depend_on_the_number_of_threads(memory_format):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 40, 33, 17, generator=generator).to(memory_format=memory_format)
    muls, powers = torch.rand(2, 40, generator=generator) + 0.5
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append((ops.forward(z, muls, powers), *ops.backward(z, z, muls, powers)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_arguments_that_are_not_contiguous():
    z, muls, powers, grad = tensors_of((4, 6, 5, 3), torch.contiguous_format, 0, torch.float64)
    wanted = ops.forward(z, muls, powers), *ops.backward(grad, z, muls, powers)
    crooked = [v.mT.contiguous().mT if v.dim() > 1 else v.repeat_interleave(2)[::2] for v in (grad, z, muls, powers)]
    got = ops.forward(*crooked[1:]), *ops.backward(*crooked)
    mixed = ops.backward(grad.to(memory_format=torch.channels_last), z, muls, powers)
    for one, other in zip((*got, *mixed), (*wanted, *wanted[1:]), strict=True):
        assert torch.allclose(one, other, rtol=1e-13)


def test_under_transforms_and_forward_mode():
    z, muls, powers = (value.detach() for value in away_from_kinks())
    wanted = ops.forward(z, muls, powers)
    each = torch.func.vmap(lambda one: hybrid_activation(one[None], muls, powers)[0])(z)
    assert torch.allclose(each, wanted)
    tangent = torch.ones_like(z)
    _, along = torch.func.jvp(lambda value: hybrid_activation(value, muls, powers), (z,), (tangent,))
    assert torch.allclose(along, ops.backward(tangent, z, muls, powers)[0])


@pytest.mark.parametrize(
    ("z", "muls", "message"),
    [
        (torch.ones(2, 3), torch.ones(4), r"muls must be \(3,\)"),
        (torch.ones(()), torch.ones(1), r"z must be floating-point"),
        (torch.ones(2, 3, dtype=torch.long), torch.ones(3), "int64"),
    ],
)
def test_what_does_not_fit_is_named(z, muls, message):
    with pytest.raises(ValueError, match=message):
        hybrid_activation(z, muls, muls)
