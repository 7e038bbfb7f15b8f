from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from convswap.layers.dynamic_conv import choose_formula
from convswap.layers.functional import dynamic_conv, mix_kernels

from .helpers import (
    Geometry,
    few_examples,
    geometries,
    is_channels_last,
    normal,
    plain_conv,
    relative_error,
)

FORMULAS = (None, "grouped", "loop", "stacked")
POINT = st.just(1)


def one_sample_after_the_other(x, weight, bias, attention, g):
    kernels = weight.reshape(attention.shape[1], g.out_channels, *weight.shape[1:])
    outputs = []
    for b in range(x.shape[0]):
        kernel = sum(a * w for a, w in zip(attention[b], kernels, strict=True))
        mixed_bias = None
        if bias is not None:
            mixed_bias = sum(a * w for a, w in zip(attention[b], bias.reshape(-1, g.out_channels), strict=True))
        outputs.append(plain_conv(x[b : b + 1], kernel, mixed_bias, g))
    return torch.cat(outputs)


def tensors_for(g, batch, kernels, grad=False):
    generator = g.generator()
    x = normal(generator, batch, g.in_channels, *g.size)
    weight = normal(generator, kernels * g.out_channels, g.in_channels // g.groups, *g.kernel_size)
    attention = normal(generator, batch, kernels).softmax(1)
    bias = normal(generator, kernels * g.out_channels) if g.bias else None
    every = [t.requires_grad_(grad) if t is not None else None for t in (x, weight, bias, attention)]
    return tuple(every)


def run(tensors, g, formula=None):
    return dynamic_conv(*tensors, g.stride, g.padding, g.dilation, g.groups, g.padding_mode, formula)


def gradients(y, tensors, g):
    present = [t for t in tensors if t is not None]
    return torch.autograd.grad(y, present, normal(g.generator(), *y.shape))


def check_value_and_gradients(g, batch, kernels, formula):
    tensors = tensors_for(g, batch, kernels, grad=True)
    y, expected = run(tensors, g, formula), one_sample_after_the_other(*tensors, g)
    assert relative_error(y, expected) < 1e-12
    for ours, reference in zip(gradients(y, tensors, g), gradients(expected, tensors, g), strict=True):
        assert relative_error(ours, reference) < 1e-12


@few_examples
@given(geometries(), st.integers(1, 3), st.integers(1, 4))
@pytest.mark.parametrize("formula", FORMULAS)
def test_every_formula_is_the_sum_of_kernels_of_each_sample(formula, g, batch, kernels):
    check_value_and_gradients(g, batch, kernels, formula)


@few_examples
@given(geometries(taps=POINT), st.integers(1, 3), st.integers(1, 4))
@pytest.mark.parametrize("formula", [*FORMULAS, "matmul"])
def test_every_formula_with_a_point_kernel(formula, g, batch, kernels):
    check_value_and_gradients(g, batch, kernels, formula)


SMALL = Geometry((4, 3), (2, 3), (2, 1), (1, 1), (1, 1), 2, "circular", 2, 4, True, seed=5)
SMALL_POINT = replace(SMALL, kernel_size=(1, 1), padding=(0, 0))


@pytest.mark.parametrize(
    ("g", "formula"), [*((SMALL, formula) for formula in FORMULAS[1:]), (SMALL_POINT, "matmul")], ids=str
)
def test_first_and_second_derivatives(g, formula):
    tensors = tensors_for(g, 2, 2, grad=True)
    function = lambda *inputs: run(inputs, g, formula)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@few_examples
@given(geometries(), st.sampled_from(FORMULAS))
def test_one_sample_without_batch(g, formula):
    x, weight, bias, attention = tensors_for(g, 1, 3)
    y = run((x[0], weight, bias, attention[0]), g, formula)
    assert torch.equal(y, run((x, weight, bias, attention), g, formula)[0])


@pytest.mark.parametrize("formula", [*FORMULAS, "matmul"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_empty_batch(dims, formula):
    g = Geometry((5,) * dims, (1,) * dims, (2,) * dims, "same", (1,) * dims, 2, "zeros", 4, 6, True, seed=0)
    tensors = tensors_for(g, 0, 3, grad=True)
    y = run(tensors, g, formula)
    assert y.shape == (0, 6, *(3,) * dims)
    y.sum().backward()
    for tensor in tensors:
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()


def test_mixed_kernels_keep_their_memory_format():
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    attention = torch.rand(5, 2, dtype=torch.float64)
    mixed = mix_kernels(weight, attention)
    expected = torch.einsum("bk,koihw->boihw", attention, weight.view(2, 3, 4, 3, 3))
    assert relative_error(mixed, expected) < 1e-14
    from_channels_last = mix_kernels(weight.to(memory_format=torch.channels_last), attention)
    assert relative_error(from_channels_last, expected) < 1e-14
    assert is_channels_last(from_channels_last[0])


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("which", ["input", "weight", "both"])
@pytest.mark.parametrize("formula", [*FORMULAS, "matmul"])
@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last(dims, formula, which, groups):
    kernel = 1 if formula == "matmul" else 3
    sizes = [(n,) * dims for n in (6, kernel, 2, 1)]
    g = Geometry(sizes[0], sizes[1], sizes[2], sizes[3], (1,) * dims, groups, "zeros", 6, 12, True, seed=1)
    x, weight, bias, attention = tensors_for(g, 2, 3)
    memory_format = torch.channels_last if dims == 2 else torch.channels_last_3d
    x_last = x.to(memory_format=memory_format) if which != "weight" else x
    weight_last = weight.to(memory_format=memory_format) if which != "input" else weight
    y = run((x_last, weight_last, bias, attention), g, formula)
    if which != "weight" or (kernel > 1 and groups < 6):  # kernels of one tap or channel are stored in both ways
        assert is_channels_last(y)
    assert relative_error(y, run((x, weight, bias, attention), g, formula)) < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (2, 4, 5)}, r"\(2, 4, 5\)"),
        ({"x": (4,)}, r"\(4,\)"),
        ({"x": (2, 3, 5, 5)}, r"4 channels.*\(2, 3, 5, 5\)"),
        ({"attention": (3, 2)}, r"batch 2.*\(3, 2\)"),
        ({"attention": (2,)}, r"batch 2.*\(2,\)"),
        ({"attention": (2, 5)}, r"6 rows.*5 kernels"),
        ({"bias": (3,)}, r"\(6,\).*\(3,\)"),
        ({"weight": (6, 4, 3)}, r"3 axes.*\(2, 4, 5, 5\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    shapes = {"x": (2, 4, 5, 5), "weight": (6, 4, 3, 3), "bias": (6,), "attention": (2, 2)} | change
    with pytest.raises(ValueError, match=message):
        dynamic_conv(**{name: torch.zeros(shape) for name, shape in shapes.items()})


def test_groups_that_do_not_divide_the_outputs_are_named():
    with pytest.raises(ValueError, match="groups"):
        dynamic_conv(torch.zeros(2, 4, 5, 5), torch.zeros(6, 2, 3, 3), None, torch.zeros(2, 2), groups=2)


def test_matmul_is_for_point_kernels_only():
    tensors = tensors_for(SMALL, 2, 2)
    with pytest.raises(ValueError, match=r'"matmul".*\(2, 3\)'):
        run(tensors, SMALL, "matmul")


def test_unknown_formula_is_refused():
    with pytest.raises(ValueError, match="fastest"):
        run(tensors_for(SMALL, 2, 2), SMALL, "fastest")


def test_large_kernels_are_not_mixed_for_a_few_pixels():
    x, weight = torch.empty(8, 512, 1, 1, device="meta"), torch.empty(2048, 512, 3, 3, device="meta")
    assert choose_formula(x, weight, 4, 1, pixels=1) == "stacked"
    assert choose_formula(x, weight, 4, 1, pixels=56 * 56) == "grouped"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_batches_of_any_size_are_compiled_to_few_graphs(kernel, channels_last):
    """Where a turn for each sample is the cheapest, without a compiler."""
    torch._dynamo.reset()
    counter, chosen = CompileCounter(), set()
    compiled = torch.compile(dynamic_conv, backend=counter, fullgraph=True)
    weight = torch.randn(4 * 16, 16, kernel, kernel)
    for batch in range(2, 11):
        x, attention = torch.randn(batch, 16, 12, 12), torch.rand(batch, 4)
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        chosen.add(choose_formula(x, weight, 4, 1, 144))
        y = compiled(x, weight, None, attention)
        assert is_channels_last(y) == channels_last
        if batch in (2, 10):
            assert relative_error(y, dynamic_conv(x, weight, None, attention)) < 1e-5
    assert ("loop" in chosen) == (kernel == 3 or channels_last)
    assert counter.frame_count <= 3
