"""Convolution with elements alone: the same as building the kernel and convolving with it."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from convswap.layers.dcls_scatter import scatter_ref
from convswap.layers.dcls_sparse import dcls_gather_conv2d, dcls_sparse_conv, gather_wins, sparse_wins
from convswap.layers.ops._load import kernels_loaded, load_kernels

from .helpers import few_examples, is_channels_last, normal, relative_error, seeds


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    load_kernels("cpu")


def built(x, weight, P, bias, size, axes, normalise, stride, padding, right_slope=False, groups=None):
    """Build the kernel, pad and convolve."""
    P = P.expand(-1, weight.shape[0], -1, -1)
    kernel = scatter_ref(weight, P, list(size), list(axes), normalise, right_slope)
    widths = [padding[i] for axis in reversed(range(len(size))) for i in (2 * axis, 2 * axis + 1)]
    convolve = F.conv1d if len(size) == 1 else F.conv2d
    return convolve(F.pad(x, widths), kernel, bias, list(stride), groups=groups or x.shape[1])


@st.composite
def depthwise(draw, dims=None):
    """A problem for `dcls_sparse_conv`: tensors, and the rest."""
    dims = draw(st.integers(1, 2)) if dims is None else dims
    generator = torch.Generator().manual_seed(draw(seeds))
    channels, multiple, count = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    size = tuple(draw(st.integers(1, 6)) for _ in range(dims))
    padding = tuple(draw(st.integers(0, 3)) for _ in range(2 * dims))
    image = tuple(draw(st.integers(6, 9)) for _ in range(dims))
    outputs = channels * multiple
    P = normal(generator, dims, outputs, 1, count) * 2
    tensors = (
        normal(generator, 2, channels, *image),
        normal(generator, outputs, 1, count),
        P.round() if draw(st.booleans()) else P,
        normal(generator, outputs),
    )
    stride = tuple(draw(st.integers(1, 2)) for _ in range(dims))
    axes = tuple(draw(st.permutations(range(dims))))
    return tensors, (size, axes, draw(st.booleans()), stride, padding, draw(st.booleans()))


@st.composite
def shared(draw):
    """A problem for `dcls_gather_conv2d`: tensors, the rest and the groups."""
    generator = torch.Generator().manual_seed(draw(seeds))
    groups, inputs, outputs, count = (draw(st.integers(1, 3)) for _ in range(4))
    P = normal(generator, 2, 1, inputs, count) * 2
    tensors = (
        normal(generator, 2, groups * inputs, draw(st.integers(6, 8)), draw(st.integers(6, 9))),
        normal(generator, groups * outputs, inputs, count),
        P.round() if draw(st.booleans()) else P,
        normal(generator, groups * outputs),
    )
    size, stride = (tuple(draw(st.integers(1, most)) for _ in range(2)) for most in (6, 2))
    padding = tuple(draw(st.integers(0, 3)) for _ in range(4))
    axes = draw(st.sampled_from(((0, 1), (1, 0))))
    return tensors, (size, axes, draw(st.booleans()), stride, padding), groups


def assert_same(ours, plain, tensors):
    assert relative_error(ours, plain, least=1) < 1e-11
    grad = normal(torch.Generator().manual_seed(0), *plain.shape)
    for mine, wanted in zip(*(torch.autograd.grad(y, tensors, grad) for y in (ours, plain)), strict=True):
        assert relative_error(mine, wanted, least=1) < 1e-8


def wanting(tensors):
    return tuple(t.clone().requires_grad_() for t in tensors)


@few_examples
@given(depthwise())
def test_depthwise_as_with_a_kernel(problem):
    tensors, options = wanting(problem[0]), problem[1]
    assert_same(dcls_sparse_conv(*tensors, *options), built(*tensors, *options), tensors)


@few_examples
@given(shared())
def test_shared_positions_as_with_a_kernel(problem):
    tensors, options, groups = wanting(problem[0]), problem[1], problem[2]
    ours, plain = dcls_gather_conv2d(*tensors, *options, groups), built(*tensors, *options, groups=groups)
    assert_same(ours, plain, tensors)


def test_second_derivatives():
    generator = torch.Generator().manual_seed(1)
    P = torch.tensor([0.3, -0.6, 1.4, 0.7, -1.3, 0.2], dtype=torch.float64)
    x, bias = normal(generator, 1, 2, 4, 3), normal(generator, 2)
    options = (4, 3), (1, 0), True, (1, 1), (1, 2, 1, 1)
    run = partial(_reordered, dcls_sparse_conv, options=options)
    tensors = wanting((x, normal(generator, 2, 1, 1), P[:4].view(2, 2, 1, 1), bias))
    assert gradcheck(run, tensors)
    assert gradgradcheck(run, tensors)
    run = partial(_reordered, dcls_gather_conv2d, options=options)
    tensors = wanting((x, normal(generator, 2, 2, 1), P[:4].view(2, 1, 2, 1), bias))
    assert gradcheck(run, tensors)
    assert gradgradcheck(run, tensors)
    run = partial(_reordered, dcls_sparse_conv, options=((4,), (0,), True, (1,), (1, 2)))
    tensors = wanting((x[0], normal(generator, 4, 1, 1), P[:4].view(1, 4, 1, 1), normal(generator, 4)))
    assert gradcheck(run, tensors)
    assert gradgradcheck(run, tensors)


def _reordered(function, *tensors, options):
    return function(*tensors, *options)


def example(function, dtype=torch.float32):
    """Tensors and options for one of the two functions."""
    generator = torch.Generator().manual_seed(2)
    shape = (6, 1, 4) if function is dcls_sparse_conv else (4, 6, 4)
    P = (2, 6, 1, 4) if function is dcls_sparse_conv else (2, 1, 6, 4)
    sizes = (2, 6, 9, 8), shape, P, shape[:1]
    tensors = [normal(generator, *size).to(dtype) for size in sizes]
    return tensors, ((5, 5), (1, 0), True, (1, 1), (2, 2, 2, 2))


BOTH = pytest.mark.parametrize("function", [dcls_sparse_conv, dcls_gather_conv2d])


@BOTH
def test_channels_last_stays(function):
    (x, *rest), options = example(function)
    kept = function(x.to(memory_format=torch.channels_last), *rest, *options)
    assert is_channels_last(kept)
    torch.testing.assert_close(kept.contiguous(), function(x, *rest, *options))


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(function, dtype):
    tensors, options = example(function, dtype)
    y = function(*tensors, *options)
    assert y.dtype == dtype
    exact = function(*(t.double() for t in tensors), *options)
    assert relative_error(y, exact) < 4 * torch.finfo(dtype).eps


@BOTH
def test_autocast_computes_images_in_its_dtype(function):
    tensors, options = example(function)
    expected = function(*tensors, *options)
    learned = wanting(tensors)
    with torch.autocast("cpu", torch.bfloat16):
        y = function(*learned, *options)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, expected) < 2e-2
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.float().sum(), learned))


class Model(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        (_, weight, P, bias), self.options = example(function)
        self.function, self.weight, self.P, self.bias = function, *map(torch.nn.Parameter, (weight, P, bias))

    def forward(self, x):
        return self.function(x, self.weight, self.P, self.bias, *self.options)


@BOTH
def test_compiled_whole(function):
    model, x = Model(function), example(function)[0][0]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


@BOTH
def test_exported_in_operations_of_torch(function):
    model, x = Model(function), example(function)[0][0]
    exported = torch.export.export(model, (x,))
    assert "convswap" not in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), model(x), rtol=1e-4, atol=1e-5)


def test_sparse_wins_where_few_of_many_cells_are_touched():
    x = torch.empty(1, 1, 56, 56)
    if not kernels_loaded("cpu"):
        assert not sparse_wins(x, 1, (31, 31), (1, 1), (15,) * 4)
        assert not gather_wins(x, 1, (31, 31), 64)
        return
    assert sparse_wins(x, 34, (17, 17), (1, 1), (8,) * 4)
    assert sparse_wins(x, 5, (63, 63), (2, 2), (31,) * 4)
    assert not sparse_wins(x, 34, (7, 7), (1, 1), (3,) * 4)
    assert not sparse_wins(x[..., :7, :7], 9, (17, 17), (1, 1), (8,) * 4)
    assert sparse_wins(torch.empty(1, 1, 1000), 5, (63,), (1,), (31,) * 2)
    assert gather_wins(x, 9, (7, 7), 64)
    assert not gather_wins(x, 9, (3, 3), 64)
    assert not gather_wins(x, 9, (7, 7), 4)


def test_neither_wins_on_the_meta_device():
    x = torch.empty(1, 1, 56, 56, device="meta")
    assert not sparse_wins(x, 1, (31, 31), (1, 1), (15,) * 4)
    assert not gather_wins(x, 1, (31, 31), 64)


@pytest.mark.parametrize(
    ("function", "change", "told"),
    [
        (dcls_sparse_conv, {0: (2, 6, 9)}, r"input must be \(B, C, \*image\) for a kernel \(5, 5\), got \(2, 6, 9\)"),
        (dcls_sparse_conv, {1: (7, 1, 4)}, r"weight must be \(a multiple of 6, 1, elements\), got \(7, 1, 4\)"),
        (dcls_sparse_conv, {2: (2, 6, 1, 3)}, r"P must have shape \(2, 6, 1, 4\), got \(2, 6, 1, 3\)"),
        (dcls_sparse_conv, {3: (5,)}, r"bias must have shape \(6,\), got \(5,\)"),
        (dcls_gather_conv2d, {0: (2, 5, 9, 8)}, r"input must be \(B, 6, H, W\) .* got \(2, 5, 9, 8\)"),
        (dcls_gather_conv2d, {2: (2, 4, 6, 4)}, r"P must have shape \(2, 1, 6, 4\), got \(2, 4, 6, 4\)"),
        (dcls_gather_conv2d, {3: (5,)}, r"bias must have shape \(4,\), got \(5,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(function, change, told):
    tensors, options = example(function)
    for place, shape in change.items():
        tensors[place] = torch.zeros(shape)
    with pytest.raises(ValueError, match=told):
        function(*tensors, *options)
