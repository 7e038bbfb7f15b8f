from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from convswap.layers.dynamic_choice import choose_formula
from convswap.layers.functional import dynamic_conv, mix_kernels
from convswap.layers.ops._load import load_kernels

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
PLANE = st.integers(1, 2).flatmap(geometries)
"""What the fused formula is for."""


@st.composite
def depthwise(draw):
    g = draw(PLANE)
    plain = {"padding_mode": "zeros", "dilation": (1,) * g.dims, "in_channels": g.groups}
    return replace(g, **plain)


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


@few_examples
@given(PLANE, st.integers(1, 3), st.integers(1, 4))
def test_fused_is_the_sum_of_kernels_of_each_sample(g, batch, kernels):
    check_value_and_gradients(g, batch, kernels, "fused")


@few_examples
@given(depthwise(), st.integers(1, 3), st.integers(1, 4))
def test_depthwise_is_the_sum_of_kernels_of_each_sample(g, batch, kernels):
    check_value_and_gradients(g, batch, kernels, "depthwise")


SMALL = Geometry((4, 3), (2, 3), (2, 1), (1, 1), (1, 1), 2, "circular", 2, 4, True, seed=5)
SMALL_POINT = replace(SMALL, kernel_size=(1, 1), padding=(0, 0))
SMALL_DEPTHWISE = replace(SMALL, padding_mode="zeros")


@pytest.mark.parametrize(
    ("g", "formula"),
    [
        *((SMALL, formula) for formula in (*FORMULAS[1:], "fused")),
        (SMALL_POINT, "matmul"),
        (SMALL_DEPTHWISE, "depthwise"),
    ],
    ids=str,
)
def test_first_and_second_derivatives(g, formula):
    tensors = tensors_for(g, 2, 2, grad=True)
    function = lambda *inputs: run(inputs, g, formula)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@few_examples
@given(PLANE, st.sampled_from((*FORMULAS, "fused")))
def test_one_sample_without_batch(g, formula):
    x, weight, bias, attention = tensors_for(g, 1, 3)
    y = run((x[0], weight, bias, attention[0]), g, formula)
    assert torch.equal(y, run((x, weight, bias, attention), g, formula)[0])


@pytest.mark.parametrize(("dims", "formula"), [*product((1, 2, 3), (*FORMULAS, "matmul")), (2, "fused"), (1, "fused")])
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


CHANNELS_LAST = [
    *((dims, formula, groups) for dims in (2, 3) for formula in (*FORMULAS, "matmul") for groups in (1, 3, 6)),
    *((2, "fused", groups) for groups in (1, 3, 6)),
    (2, "depthwise", 6),
]


@pytest.mark.parametrize("which", ["input", "weight", "both"])
@pytest.mark.parametrize(("dims", "formula", "groups"), CHANNELS_LAST)
def test_channels_last(dims, formula, groups, which):
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
        ({"attention": (2, 0)}, r"a kernel or more, got \(2, 0\)"),
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


@pytest.mark.parametrize("name", ["stride", "dilation"])
def test_steps_of_no_pixel_are_named(name):
    with pytest.raises(ValueError, match=rf"{name} must be at least 1, got \(1, 0\)"):
        dynamic_conv(torch.zeros(2, 4, 5, 5), torch.zeros(6, 4, 3, 3), None, torch.zeros(2, 2), **{name: (1, 0)})


@pytest.mark.parametrize("formula", ["grouped", "loop", "stacked", "fused", "matmul", "depthwise", None])
@pytest.mark.parametrize("name", ["x", "weight", "bias"])
def test_several_dtypes_are_named(name, formula):
    tensors = {"x": torch.zeros(2, 3, 5, 5), "weight": torch.zeros(6, 1, 1, 1), "bias": torch.zeros(6)}
    tensors[name] = tensors[name].double()
    with pytest.raises(ValueError, match=rf"one dtype, got .*{name} torch.float64"):
        dynamic_conv(**tensors, attention=torch.zeros(2, 2), groups=3, formula=formula)


def test_matmul_is_for_point_kernels_only():
    tensors = tensors_for(SMALL, 2, 2)
    with pytest.raises(ValueError, match=r'"matmul".*\(2, 3\)'):
        run(tensors, SMALL, "matmul")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 4}, "groups of one channel, got 2 of 2"),
        ({"padding_mode": "reflect"}, "got 'reflect'"),
        ({"dilation": (1, 2)}, r"dilation \(1, 2\)"),
        ({"stride": (1, 65)}, r"up to 64.*stride \(1, 65\)"),
    ],
)
def test_depthwise_is_for_plain_depthwise_convolutions_only(change, message):
    g = replace(SMALL_DEPTHWISE, **change)
    with pytest.raises(ValueError, match=message):
        run(tensors_for(g, 2, 2), g, "depthwise")


@pytest.mark.parametrize("formula", ["fused", "depthwise"])
def test_three_dimensions_have_no_kernels(formula):
    g = Geometry((4,) * 3, (2,) * 3, (1,) * 3, (0,) * 3, (1,) * 3, 2, "zeros", 2, 2, False, seed=0)
    with pytest.raises(ValueError, match=rf'"{formula}".*\(2, 2, 2\)'):
        run(tensors_for(g, 2, 2), g, formula)


def test_unknown_formula_is_refused():
    with pytest.raises(ValueError, match="fastest"):
        run(tensors_for(SMALL, 2, 2), SMALL, "fastest")


def test_large_kernels_are_not_mixed_for_a_few_pixels():
    x, weight = torch.empty(8, 512, 1, 1, device="meta"), torch.empty(2048, 512, 3, 3, device="meta")
    assert choose_formula(x, weight, 4, 1, pixels=1) == "stacked"
    assert choose_formula(x, weight, 4, 1, pixels=56 * 56) == "grouped"


def chosen_for(*shape, out, kernel, groups=1, dtype=torch.float32, last=False):
    x = torch.empty(shape, dtype=dtype)
    weight = torch.empty(4 * out, shape[1] // groups, kernel, kernel, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    return choose_formula(x, weight, 4, groups, shape[2] * shape[3])


def test_kernels_are_chosen_where_they_pay():
    if not load_kernels("cpu"):
        pytest.skip("without compiled kernels torch's own formulas are chosen")
    assert chosen_for(8, 64, 7, 7, out=64, kernel=3) == "fused"
    assert chosen_for(8, 64, 7, 7, out=64, kernel=3, last=True) == "fused"
    assert chosen_for(8, 64, 56, 56, out=64, kernel=3) == "loop"
    assert chosen_for(8, 64, 56, 56, out=64, kernel=3, dtype=torch.float16) == "fused"
    with torch.autocast("cpu", torch.float16):
        assert chosen_for(8, 64, 56, 56, out=64, kernel=3) == "fused"
    assert chosen_for(8, 64, 1, 1, out=64, kernel=3) == "stacked"
    assert chosen_for(1, 64, 7, 7, out=64, kernel=3) == "loop"
    assert chosen_for(8, 64, 7, 7, out=64, kernel=3, groups=32) == "grouped"
    assert chosen_for(8, 32, 56, 56, out=32, kernel=11, groups=32) == "depthwise"
    assert chosen_for(8, 32, 7, 7, out=32, kernel=3, groups=32) == "grouped"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_added_up_in_single(dtype):
    """Many kernels: added up in half precision, their sum would be off by several times this."""
    kernels = 64
    g = Geometry((6, 5), (3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros", 3, 20, False, seed=1)
    x, weight, _, attention = (None if t is None else t.to(dtype) for t in tensors_for(g, 2, kernels))
    exact = one_sample_after_the_other(x.double(), weight.double(), None, attention.double(), g)
    unit = torch.finfo(dtype).eps
    mixed = mix_kernels(weight, attention)
    expected = torch.einsum("bk,koihw->boihw", attention.double(), weight.double().unflatten(0, (kernels, -1)))
    assert relative_error(mixed.double(), expected) < unit
    for formula in ("grouped", "loop", "stacked", "fused"):
        y = run((x, weight, None, attention), g, formula)
        assert y.dtype == dtype
        assert relative_error(y.double(), exact) < unit, formula


@pytest.mark.parametrize("formula", ["fused", "depthwise"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_takes_what_it_takes_of_a_convolution(dtype, formula):
    g = replace(SMALL_DEPTHWISE, out_channels=2)
    tensors = [t.float().requires_grad_() for t in tensors_for(g, 2, 2)]
    with torch.autocast("cpu", dtype):
        y = run(tensors, g, formula)
        assert y.dtype == F.conv2d(tensors[0], torch.ones(2, 1, 1, 1), groups=2).dtype == dtype
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = one_sample_after_the_other(*exact, g)
    assert relative_error(y.double(), expected) < 4 * torch.finfo(dtype).eps
    for ours, due in zip(gradients(y.double(), tensors, g), gradients(expected, exact, g), strict=True):
        assert ours.dtype == torch.float32
        assert relative_error(ours.double(), due) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("formula", "g"), [("fused", SMALL), ("depthwise", SMALL_DEPTHWISE)], ids=str)
def test_kernels_are_compiled_whole_with_their_backward(formula, g, channels_last):
    tensors = list(tensors_for(g, 3, 2, grad=True))
    if channels_last:
        tensors[0] = tensors[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    compiled = torch.compile(dynamic_conv, fullgraph=True, backend="aot_eager")
    rest = g.stride, g.padding, g.dilation, g.groups, g.padding_mode, formula
    y, expected = compiled(*tensors, *rest), dynamic_conv(*tensors, *rest)
    assert y.stride() == expected.stride()
    assert relative_error(y, expected) < 1e-12
    for got, due in zip(gradients(y, tensors, g), gradients(expected, tensors, g), strict=True):
        assert relative_error(got, due) < 1e-12


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_batches_of_any_size_are_compiled_to_few_graphs(kernel, channels_last):
    """Where a turn for each sample is the cheapest, without a compiler."""
    torch._dynamo.reset()
    counter, chosen = CompileCounter(), set()
    compiled = torch.compile(dynamic_conv, backend=counter, fullgraph=True)
    weight = torch.randn(4 * 16, 16, kernel, kernel)
    for batch in range(2, 11):
        x, attention = torch.randn(batch, 16, 20, 20), torch.rand(batch, 4)
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        chosen.add(choose_formula(x, weight, 4, 1, 400))
        y = compiled(x, weight, None, attention)
        assert is_channels_last(y) == channels_last
        if batch in (2, 10):
            assert relative_error(y, dynamic_conv(x, weight, None, attention)) < 1e-5
    assert ("loop" in chosen) == (kernel == 3 or channels_last)
    assert counter.frame_count <= 3
