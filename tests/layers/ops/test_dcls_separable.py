"""Construction from elements of learned width, and its gradient: against every element compared with every cell."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from convswap.layers.dcls_separable import separable_ref
from convswap.layers.ops import dcls_separable as ops
from convswap.layers.ops._load import kernels_loaded

from ..helpers import few_examples, relative_error
from .elements import Elements, elements, on_every_cell, wanting_gradients
from .registration import check_registration

FORMS = [(True, 0.27), (False, 1.0), (True, 1e-3), (False, 0.1)]
"""gaussian, least_sigma."""


def wide(weight, P, SIG, size, axes, gaussian, least_sigma):
    def bumps(d, cells):
        distance, sigma = (cells - P[d].unsqueeze(-1)).abs(), SIG[d].abs().unsqueeze(-1) + least_sigma
        return torch.exp(-((distance / sigma) ** 2) / 2) if gaussian else (sigma - distance).clamp(min=0)

    return on_every_cell(weight, size, axes, bumps)


def arguments(case, dtype=torch.float64):
    return wanting_gradients(case.weight(dtype), case.positions(dtype), case.widths(dtype))


def with_gradients(function, tensors, grad, *options):
    kernels = function(*tensors, *options)
    return kernels, *torch.autograd.grad(kernels, tensors, grad)


@few_examples
@given(elements(most_count=80, most_size=20), st.sampled_from(FORMS))
def test_every_element_on_every_cell(case, form):
    tensors, options = arguments(case), (*case.grid, *form)
    ours, plain = (with_gradients(f, tensors, case.grad(), *options) for f in (ops.forward, wide))
    for mine, wanted, error in zip(ours, plain, (1e-12, 1e-12, 1e-9, 1e-9), strict=True):
        assert relative_error(mine, wanted, least=1) < error


@few_examples
@given(elements(), st.sampled_from(FORMS), st.booleans())
def test_same_as_the_plain_form_at_kinks_too(case, form, whole):
    tensors = arguments(case)
    if whole:  # where triangles begin, end and turn
        tensors = wanting_gradients(tensors[0].detach(), *(t.detach().round() for t in tensors[1:]))
    for mine, wanted in zip(
        *(with_gradients(f, tensors, case.grad(), *case.grid, *form) for f in (ops.forward, separable_ref)),
        strict=True,
    ):
        assert relative_error(mine, wanted, least=1) < 1e-10


@few_examples
@given(elements(most_count=80, most_size=20), st.sampled_from(FORMS[:2]))
def test_single_precision_is_as_good_as_the_plain_form(case, form):
    # Both are off by what rounding distances does. Of the gradients that may be much: they are differences of sums.
    options = (*case.grid, *form)
    single = tuple(t.detach().float().requires_grad_() for t in arguments(case))
    double = tuple(t.detach().double().requires_grad_() for t in single)
    exact = with_gradients(separable_ref, double, case.grad(torch.float32).double(), *options)
    ours, plain = (with_gradients(f, single, case.grad(torch.float32), *options) for f in (ops.forward, separable_ref))
    for mine, theirs, wanted, error in zip(ours, plain, exact, (2e-6, 2e-6, 1e-5, 1e-5), strict=True):
        assert relative_error(mine, wanted, least=1) < error + 4 * relative_error(theirs, wanted, least=1)


@few_examples
@given(elements(most_count=3, most_size=4, between=True), st.sampled_from(FORMS[:2]))
def test_gradients_of_first_and_second_order(case, form):
    small = replace(case, shape=(2, 1, case.shape[2]), spread=0.4)
    weight, P, SIG = arguments(small)
    # Triangles end between the cells, and widths are not 0: no kink is near.
    SIG = (SIG.detach().round() + 0.5).requires_grad_() if not form[0] else SIG
    P = (P.detach().floor() + 0.3).requires_grad_()
    tensors = weight, P, SIG
    assert gradcheck(partial(_forward, options=(*small.grid, *form)), tensors, eps=1e-6, atol=1e-5)
    assert gradgradcheck(partial(_forward, options=(*small.grid, *form)), tensors, eps=1e-6, atol=1e-4)
    backward = partial(_backward, options=(list(small.axes), *form))
    assert gradcheck(backward, (*wanting_gradients(small.grad()), *tensors), eps=1e-6, atol=1e-4)


def _forward(weight, P, SIG, options):
    return ops.forward(weight, P, SIG, *options)


def _backward(grad, weight, P, SIG, options):
    return ops.backward(grad, weight, P, SIG, *options)


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("size", [(5,), (4, 5), (2, 3, 4)])
def test_registered_as_torch_asks_for(size, form):
    case = Elements((2, 3, 4), size, tuple(range(len(size))), between=True)
    tensors = arguments(case)
    check_registration(ops.forward, (*tensors, *case.grid, *form), form == FORMS[0])
    check_registration(ops.backward, (case.grad(), *tensors, list(case.axes), *form), form == FORMS[0])


def test_compiled_whole_with_its_backward():
    case = Elements((2, 3, 4), (5, 4), (1, 0))
    tensors = arguments(case)

    def loss(weight, P, SIG):
        return (ops.forward(weight, P, SIG, *case.grid, True, 0.27) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    plain = torch.autograd.grad(loss(*tensors), tensors)
    for got, wanted in zip(torch.autograd.grad(compiled(*tensors), tensors), plain, strict=True):
        torch.testing.assert_close(got, wanted)


def test_flops_are_counted():
    case = Elements((2, 3, 4), (5, 4), (1, 0))
    with FlopCounterMode(display=False) as counter:
        kernels = ops.forward(*arguments(case), *case.grid, True, 0.27)
    assert counter.get_total_flops() == 2 * 24 * 20
    with FlopCounterMode(display=False) as counter:
        kernels.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 24 * 20


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 3, 0)])
def test_nothing_to_draw(shape):
    case = Elements(shape, (4, 3), (1, 0))
    tensors = arguments(case)
    kernels = ops.forward(*tensors, *case.grid, True, 0.27)
    assert torch.equal(kernels, torch.zeros(*shape[:2], 4, 3, dtype=torch.float64))
    for gradient, tensor in zip(torch.autograd.grad(kernels.sum(), tensors), tensors, strict=True):
        assert gradient.shape == tensor.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gaussian", [True, False])
def test_elements_far_away_leave_nothing(gaussian, dtype):
    case = Elements((2, 2, 3), (5, 4), (1, 0))
    for d, far in itertools.product((0, 1), (-1e9, 1e9, -200.0, 200.0)):
        P = torch.full((2, 2, 2, 3), 0.25, dtype=dtype)
        P[d] = far
        tensors = wanting_gradients(case.weight(dtype), P, case.widths(dtype).clamp(-1, 1))
        kernels = ops.forward(*tensors, *case.grid, gaussian, 0.27)
        assert torch.equal(kernels, torch.zeros_like(kernels))
        assert not any(g.any() for g in torch.autograd.grad(kernels, tensors, case.grad(dtype)))
    for far in (-torch.inf, torch.inf) if gaussian else ():
        P = torch.full((2, 2, 2, 3), far, dtype=dtype)
        kernels = ops.forward(case.weight(dtype), P, case.widths(dtype), *case.grid, gaussian, 0.27)
        assert torch.equal(kernels, torch.zeros_like(kernels))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tails_of_gaussians_reach_zero_without_a_step(dtype):
    # Along one axis, from a value of 1 to where no number is small enough.
    cells = 201
    one, none = torch.ones(1, 1, 1, dtype=dtype), torch.zeros(1, 1, 1, 1, dtype=dtype)
    P = none + 0.25
    for sigma in (0.3, 1.0, 3.0, 7.0, 1e3):
        found = ops.forward(one, P, none, [cells], [0], True, sigma).flatten().double()
        distance = torch.arange(cells, dtype=torch.float64) - cells // 2 - 0.25
        wanted = torch.exp(-((distance / sigma) ** 2) / 2)
        wanted = wanted / (wanted.sum() + 1e-7)
        normal = wanted > 1e3 * torch.finfo(dtype).tiny
        # An error of the exponent is one of the value, times the exponent.
        error = 16 * torch.finfo(dtype).eps * (1 + (distance / sigma) ** 2)
        assert bool(((found - wanted).abs() <= error * wanted)[normal].all())
        assert bool((found[~normal] <= 1e4 * torch.finfo(dtype).tiny).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("which", "gaussian"), [(1, True), (1, False), (2, True), (2, False)])
def test_a_number_that_is_nan_is_seen_in_its_kernel_alone(which, gaussian, dtype):
    case = Elements((3, 2, 9), (5, 4), (1, 0), spread=0.2)
    numbers = [case.weight(dtype), case.positions(dtype), case.widths(dtype)]
    numbers[which][0, 1, 1, 4] = torch.nan
    tensors = wanting_gradients(*numbers)
    kernels, for_weight, for_P, for_SIG = with_gradients(
        ops.forward, tensors, case.grad(dtype), *case.grid, gaussian, 0.27
    )
    seen = kernels.isnan().flatten(2).any(2)
    assert seen[1, 1]
    assert seen.sum() == 1
    assert for_weight[1, 1, 4].isnan()
    for gradient in (for_weight.unsqueeze(0), for_P, for_SIG):
        others = gradient.clone()
        others[:, 1, 1, 4] = 0
        assert not others.isnan().any()


def test_strides_do_not_matter():
    case = Elements((4, 3, 6), (5, 6), (1, 0))
    tensors, grad = [t.detach() for t in arguments(case)], case.grad()
    apart = [t.mT.contiguous().mT for t in tensors]
    assert not any(t.is_contiguous() for t in apart)
    form = True, 0.27
    torch.testing.assert_close(ops.forward(*apart, *case.grid, *form), ops.forward(*tensors, *case.grid, *form))
    for got, wanted in zip(
        ops.backward(grad.mT.contiguous().mT, *apart, list(case.axes), *form),
        ops.backward(grad, *tensors, list(case.axes), *form),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)
        assert got.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(70, 31, 7), (33, 9, 70), (301, 7, 1)])
def test_the_same_bits_from_any_number_of_threads(shape, dtype):
    case = Elements(shape, (7, 5), (1, 0))
    tensors, grad = [t.detach() for t in arguments(case, dtype)], case.grad(dtype)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        kernels = ops.forward(*tensors, *case.grid, True, 0.27)
        found.append((kernels, *ops.backward(grad, *tensors, list(case.axes), True, 0.27)))
    if not kernels_loaded("cpu"):
        return  # the plain form rests on torch's own sums, which promise nothing of the kind
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@pytest.mark.parametrize("size", [(1,), (2,), (1, 1), (1, 3), (1, 1, 1)])
def test_kernels_of_few_cells_write_nothing_beyond_themselves(size):
    # Whole vectors are written where more follows; here what follows is soon another thread's or nobody's.
    case = Elements((65, 70, 3), size, tuple(range(len(size))))
    tensors = arguments(case)
    torch.set_num_threads(2)
    for mine, wanted in zip(
        *(with_gradients(f, tensors, case.grad(), *case.grid, True, 0.27) for f in (ops.forward, separable_ref)),
        strict=True,
    ):
        assert relative_error(mine, wanted, least=1) < 1e-10


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a: {**a, "SIG": a["SIG"].float()}, "SIG must have the dtype of P"),
        (lambda a: {**a, "SIG": a["SIG"][:1]}, r"SIG must have the shape of P, \(2, 2, 3, 4\)"),
        (lambda a: {**a, "P": a["P"][:1]}, r"P must be \(2, 2, 3, 4\)"),
        (lambda a: {**a, "axes": [0, 2]}, "axes must name each of the 2 kernel axes once, got 2 at 1"),
    ],
)
def test_arguments_that_do_not_fit(change, told):
    if not kernels_loaded("cpu"):
        pytest.skip("the plain form is not asked to check")
    case = Elements((2, 3, 4), (5, 4), (1, 0))
    weight, P, SIG = (t.detach() for t in arguments(case))
    given_ = change({"weight": weight, "P": P, "SIG": SIG, "size": [5, 4], "axes": [1, 0]})
    with pytest.raises(RuntimeError, match=told):
        ops.forward(**given_, gaussian=True, least_sigma=0.27)
