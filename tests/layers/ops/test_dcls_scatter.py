"""Construction from triangles, and its gradient: against every element compared with every cell."""

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from convswap.layers.dcls_scatter import scatter_ref
from convswap.layers.ops import dcls_scatter as ops
from convswap.layers.ops._load import kernels_loaded

from ..helpers import few_examples, relative_error
from .elements import Elements, elements, on_every_cell, wanting_gradients
from .registration import check_registration

FORMS = list(itertools.product((True, False), (True, False)))
"""normalise, right_slope."""


def triangles(weight, P, size, axes, normalise):
    def bumps(d, cells):
        return (1 - (cells - P[d].unsqueeze(-1)).abs()).clamp(min=0)

    return on_every_cell(weight, size, axes, bumps, normalise)


@few_examples
@given(elements(), st.sampled_from(FORMS))
def test_every_element_on_every_cell(case, form):
    tensors = wanting_gradients(case.weight(), case.positions())
    ours, plain = ops.forward(*tensors, *case.grid, *form), triangles(*tensors, *case.grid, form[0])
    assert relative_error(ours, plain, least=1) < 1e-12
    grad = case.grad()
    for mine, wanted in zip(*(torch.autograd.grad(k, tensors, grad) for k in (ours, plain)), strict=True):
        assert relative_error(mine, wanted, least=1) < 1e-9


@few_examples
@given(elements(), st.sampled_from(FORMS), st.booleans())
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=str)
def test_same_as_the_plain_form_whole_numbers_too(dtype, error, case, form, whole):
    # A normalised element that touches one cell only is nearly 1 whatever its position: the derivative is a difference
    # of nearly equal sums.
    P = case.positions(dtype).round() if whole else case.positions(dtype)
    tensors = wanting_gradients(case.weight(dtype), P)
    ours, plain = (f(*tensors, *case.grid, *form) for f in (ops.forward, scatter_ref))
    assert relative_error(ours, plain, least=1) < error
    grad = case.grad(dtype)
    for mine, wanted in zip(*(torch.autograd.grad(k, tensors, grad) for k in (ours, plain)), strict=True):
        assert relative_error(mine, wanted, least=1) < 20 * error


@few_examples
@given(elements(most_count=4, most_size=5), st.booleans())
def test_slopes_at_whole_numbers_are_those_of_either_side(case, normalise):
    weight, P, grad = case.weight(), case.positions().round(), case.grad()
    step = 1e-7

    def slope_beside(d, side):
        moved = P.clone()
        moved[d] += side * step
        moved.requires_grad_()
        return torch.autograd.grad(triangles(weight, moved, *case.grid, normalise), moved, grad)[0][d]

    # Off the grid an element is divided by 1e-7 and little more, which changes over the step.
    near = torch.stack(
        [(P[d] >= -(n // 2)) & (P[d] < n - n // 2) for d, n in enumerate(map(case.size.__getitem__, case.axes))]
    )
    near = near.all(0)
    for right_slope in (True, False):
        found = ops.backward(grad, weight, P, list(case.axes), normalise, right_slope)[1]
        for d in range(case.dims):
            right, left = slope_beside(d, 1), slope_beside(d, -1)
            wanted = right if right_slope else (right + left) / 2
            assert relative_error(found[d][near], wanted[near], least=1) < 1e-4


@few_examples
@given(elements(most_count=3, most_size=4, between=True), st.sampled_from(FORMS))
def test_gradients_of_first_and_second_order(case, form):
    small = Elements((2, 1, case.shape[2]), case.size, case.axes, case.seed, 0.4, between=True)
    tensors = wanting_gradients(small.weight(), small.positions())
    run = partial(_forward, grid=small.grid, form=form)
    assert gradcheck(run, tensors, eps=1e-6, atol=1e-5)
    assert gradgradcheck(run, tensors, eps=1e-6, atol=1e-4)
    backward = partial(_backward, axes=list(small.axes), form=form)
    assert gradcheck(backward, (*wanting_gradients(small.grad()), *tensors), eps=1e-6, atol=1e-4)


def _forward(weight, P, grid, form):
    return ops.forward(weight, P, *grid, *form)


def _backward(grad, weight, P, axes, form):
    return ops.backward(grad, weight, P, axes, *form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(5,), (4, 5), (2, 3, 4)])
def test_registered_as_torch_asks_for(size, form):
    case = Elements((2, 3, 4), size, tuple(range(len(size))), between=True)
    weight, P = wanting_gradients(case.weight(), case.positions())
    check_registration(ops.forward, (weight, P, *case.grid, *form), form == FORMS[0])
    check_registration(ops.backward, (case.grad(), weight, P, list(case.axes), *form), form == FORMS[0])


def test_compiled_whole_with_its_backward():
    case = Elements((2, 3, 4), (5, 4), (1, 0))
    tensors = wanting_gradients(case.weight(), case.positions())

    def loss(weight, P):
        return (ops.forward(weight, P, *case.grid, True, False) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    plain = torch.autograd.grad(loss(*tensors), tensors)
    for got, wanted in zip(torch.autograd.grad(compiled(*tensors), tensors), plain, strict=True):
        torch.testing.assert_close(got, wanted)


def test_flops_are_counted_as_those_of_the_plain_form():
    case = Elements((2, 3, 4), (5, 4), (1, 0))
    counts = []
    for draw in (ops.forward, scatter_ref):
        with FlopCounterMode(display=False) as counter:
            draw(*wanting_gradients(case.weight(), case.positions()), *case.grid, True, False).sum().backward()
        counts.append(counter.get_total_flops())
        assert {ops.forward.overloadpacket, ops.backward.overloadpacket} <= counter.flop_registry.keys()
    assert counts == [0, 0]


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 3, 0)])
def test_nothing_to_draw(shape):
    case = Elements(shape, (4, 3), (1, 0))
    tensors = wanting_gradients(case.weight(), case.positions())
    kernels = ops.forward(*tensors, *case.grid, True, False)
    assert torch.equal(kernels, torch.zeros(*shape[:2], 4, 3, dtype=torch.float64))
    for gradient, tensor in zip(torch.autograd.grad(kernels.sum(), tensors), tensors, strict=True):
        assert gradient.shape == tensor.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [(6,), (5, 4), (3, 4, 2)])
def test_elements_far_away_leave_nothing(size, dtype):
    case = Elements((2, 2, 3), size, tuple(range(len(size))))
    inside = torch.full((len(size), 2, 2, 3), 0.25, dtype=dtype)
    for d, far in itertools.product(range(len(size)), (-1e9, 1e9, 3e38, -torch.inf, torch.inf, -size[0] - 1.0)):
        P = inside.clone()
        P[d] = far
        tensors = wanting_gradients(case.weight(dtype), P)
        kernels = ops.forward(*tensors, *case.grid, True, False)
        assert torch.equal(kernels, torch.zeros_like(kernels))
        assert not any(g.any() for g in torch.autograd.grad(kernels, tensors, case.grad(dtype)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("form", FORMS)
def test_a_position_that_is_nan_is_seen_in_its_kernel_alone(form, dtype):
    case = Elements((3, 2, 9), (5, 4), (1, 0), spread=0.2)
    P = case.positions(dtype)
    P[0, 1, 1, 4] = torch.nan
    tensors = wanting_gradients(case.weight(dtype), P)
    kernels = ops.forward(*tensors, *case.grid, *form)
    seen = kernels.isnan().flatten(2).any(2)
    assert seen[1, 1]
    assert seen.sum() == 1
    for_weight, for_P = torch.autograd.grad(kernels, tensors, case.grad(dtype))
    assert for_weight[1, 1, 4].isnan()
    assert for_weight.isnan().sum() == 1
    assert not for_P[:, 0].isnan().any()


def test_strides_do_not_matter():
    case = Elements((4, 3, 6), (5, 6), (1, 0))
    weight, P, grad = case.weight(), case.positions(), case.grad()
    apart = weight.mT.contiguous().mT, P.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    options = True, False
    assert torch.equal(ops.forward(*apart, *case.grid, *options), ops.forward(weight, P, *case.grid, *options))
    apart_grad = grad.mT.contiguous().mT
    for got, wanted in zip(
        ops.backward(apart_grad, *apart, list(case.axes), *options),
        ops.backward(grad, weight, P, list(case.axes), *options),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)
        assert got.is_contiguous()
    expanded = torch.ones((), dtype=torch.float64).expand(4, 3, 5, 6)
    assert ops.backward(expanded, weight, P, list(case.axes), *options)[0].shape == weight.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_same_bits_from_any_number_of_threads(dtype):
    case = Elements((70, 31, 7), (7, 5), (1, 0))
    weight, P, grad = case.weight(dtype), case.positions(dtype), case.grad(dtype)
    P[:, ::3] = P[:, ::3].round()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        kernels = ops.forward(weight, P, *case.grid, True, False)
        found.append((kernels, *ops.backward(grad, weight, P, list(case.axes), True, False)))
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a: {**a, "weight": a["weight"][0]}, r"weight must be \(O, I, count\), got 2 dimensions"),
        (lambda a: {**a, "weight": a["weight"].half()}, "weight must be float32 or float64"),
        (lambda a: {**a, "P": a["P"].float()}, "P must have the dtype of weight"),
        (lambda a: {**a, "P": a["P"][:1]}, r"P must be \(2, 2, 3, 4\)"),
        (lambda a: {**a, "size": [5, 4, 3, 2], "axes": [0, 1, 2, 3]}, "1 to 3 axes, got 4"),
        (lambda a: {**a, "size": [5, 0]}, "sizes must be positive, got 0"),
        (lambda a: {**a, "size": [1 << 20, 1 << 20]}, r"more than 2\^30 cells"),
        (lambda a: {**a, "axes": [0, 0]}, "axes must name each of the 2 kernel axes once, got 0 at 1"),
        (lambda a: {**a, "axes": [0]}, "axes must be one for each of the 2 sizes, got 1"),
    ],
)
def test_arguments_that_do_not_fit(change, told):
    if not kernels_loaded("cpu"):
        pytest.skip("the plain form is not asked to check")
    case = Elements((2, 3, 4), (5, 4), (1, 0))
    arguments = change({"weight": case.weight(), "P": case.positions(), "size": [5, 4], "axes": [1, 0]})
    with pytest.raises(RuntimeError, match=told):
        ops.forward(**arguments, normalise=True, right_slope=False)
