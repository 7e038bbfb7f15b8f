"""Convolution of an image that is extended by polynomials: the three ops against sums written out."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from convswap.layers.ops import padding_free_conv as ops

from ..helpers import CONV_FUNCTIONS, is_channels_last, relative_error, seeds
from .registration import check_registration
from .test_extrapolate_pad import LAST, by_matrices, polynomial_matrix

DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}
"""Largest error in each dtype, relative to the largest sum of what numbers are made of, regardless of signs."""


@dataclass(frozen=True)
class Case:
    batch: int
    groups: int
    channels: tuple  # in and out, of each group
    size: tuple
    kernel: tuple
    stride: tuple
    padding: tuple
    dilation: tuple
    order: tuple
    keep: bool = True
    bias: bool = True
    channels_last: bool = False

    @property
    def dims(self):
        return len(self.size)

    @property
    def input_size(self):
        return [self.groups * self.channels[0], *self.size]

    @property
    def geometry(self):
        lists = list(self.stride), list(self.padding), list(self.dilation)
        return *lists, self.groups, list(self.order), self.keep

    def tensors(self, dtype=torch.float64, seed=0):
        """Input, weight, bias."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*size):
            return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

        x = draw(self.batch, *self.input_size)
        if self.channels_last:
            x = x.contiguous(memory_format=LAST[self.dims])
        outputs = self.groups * self.channels[1]
        return x, draw(outputs, self.channels[0], *self.kernel), draw(outputs) if self.bias else None

    def windows(self):
        """For each axis, of each output the first pixel and whether it is an interior one."""
        for i in range(self.dims):
            before, after = self.padding[2 * i : 2 * i + 2]
            span = self.dilation[i] * (self.kernel[i] - 1) + 1
            firsts = range(-before, self.size[i] + after - span + 1, self.stride[i])
            yield [first >= 0 and first + span <= self.size[i] for first in firsts]

    def interior(self):
        """Of what shape the outputs are, those whose windows lie in the image."""
        mask = torch.ones((), dtype=torch.bool)
        for axis in self.windows():
            mask = mask[..., None] & torch.tensor(axis)
        return mask


@st.composite
def cases(draw, most_size=12, keep=True):
    dims = draw(st.sampled_from((1, 2, 2, 3)))
    kernel = tuple(draw(st.integers(1, 4 if dims < 3 else 3)) for _ in range(dims))
    dilation = tuple(draw(st.sampled_from((1, 1, 2))) for _ in range(dims))
    order = tuple(draw(st.integers(0, 3)) for _ in range(2 * dims))
    padding = tuple(draw(st.integers(0, 3)) for _ in range(2 * dims))
    least = [
        max(max(order[2 * i : 2 * i + 2]) + 1, dilation[i] * (kernel[i] - 1) + 1 - sum(padding[2 * i : 2 * i + 2]))
        for i in range(dims)
    ]
    depthwise = draw(st.booleans())
    return Case(
        batch=draw(st.integers(0, 2)),
        groups=draw(st.integers(1, 3)),
        channels=(1 if depthwise else draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        size=tuple(draw(st.integers(n, max(n, most_size if dims < 3 else 5))) for n in least),
        kernel=kernel,
        stride=tuple(draw(st.integers(1, 3)) for _ in range(dims)),
        padding=padding,
        dilation=dilation,
        order=order,
        keep=draw(st.booleans()) if keep is None else keep,
        bias=draw(st.booleans()),
        channels_last=dims > 1 and draw(st.booleans()),
    )


def by_matrix_and_convolution(x, weight, bias, case, signs=True):
    """The image times matrices, then torch's convolution; at the border of a detached image unless that is kept."""
    pairs = [(case.padding[2 * i : 2 * i + 2], case.order[2 * i : 2 * i + 2]) for i in range(case.dims)]
    matrices = [polynomial_matrix(n, *pair) for n, pair in zip(case.size, pairs, strict=True)]
    matrices = matrices if signs else [matrix.abs() for matrix in matrices]

    def convolve(image):
        padded = by_matrices(image, matrices)
        return CONV_FUNCTIONS[case.dims - 1](padded, weight, bias, case.stride, 0, case.dilation, case.groups)

    return convolve(x) if case.keep else torch.where(case.interior(), convolve(x), convolve(x.detach()))


ONE = Case(2, 2, (2, 3), (7, 6), (3, 2), (2, 1), (1, 2, 2, 1), (1, 2), (2, 1, 0, 3))
WHOLE = Case(2, 1, (4, 4), (9, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (2, 2, 2, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=cases(keep=None), seed=seeds)
@settings(deadline=None, max_examples=25)
def test_three_ops_are_what_matrices_and_convolution_give(dtype, case, seed):
    x, weight, bias = case.tensors(dtype, seed)
    exact = [None if t is None else t.double().requires_grad_() for t in (x, weight, bias)]
    sizes = [None if t is None else t.detach().abs().requires_grad_() for t in exact]
    wanted, most = by_matrix_and_convolution(*exact, case), by_matrix_and_convolution(*sizes, case, signs=False)
    grad = torch.randn(wanted.shape, dtype=torch.float64).to(dtype)
    grad = grad.contiguous(memory_format=LAST[case.dims] if case.channels_last else torch.contiguous_format)
    due = torch.autograd.grad(wanted, [t for t in exact if t is not None], grad.double())
    dues = torch.autograd.grad(most, [t for t in sizes if t is not None], grad.double().abs())
    assume(dtype != torch.float16 or all(t.numel() == 0 or t.max() < 3e4 for t in (most, *dues)))
    y = ops.forward(x, weight, bias, *case.geometry)
    to_input = ops.input_grad(grad, weight, case.input_size, *case.geometry)
    to_weight, to_bias = ops.weight_grad(grad, x, list(case.kernel), *case.geometry, case.bias)
    results = [y, to_input, to_weight, to_bias]
    for got, one, size in zip(results[: 3 + case.bias], (wanted, *due), (most, *dues), strict=True):
        assert got.dtype == dtype
        assert got.shape == one.shape
        if got.numel():
            assert (got.double() - one).abs().max() <= DTYPES[dtype] * size.max() + 1e-7
    assert case.bias or to_bias.shape == (0,)
    if case.channels_last and min(*x.shape[:2], *y.shape, *x.shape[2:]) > 1:
        assert is_channels_last(y)
        assert is_channels_last(to_input)


@given(case=cases(most_size=5, keep=None), seed=seeds)
@settings(deadline=None, max_examples=10)
def test_derivatives_of_first_and_second_order(case, seed):
    """Where gradients of the image are left out, finite differences of the convolution are not its derivatives."""
    x, weight, bias = case.tensors(seed=seed)
    tensors = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
    if case.keep:
        function = lambda x, weight, bias=None: ops.forward(x, weight, bias, *case.geometry)
        assert gradcheck(function, tensors, fast_mode=True)
        assert gradgradcheck(function, tensors, fast_mode=True)
        return
    found = []
    for function in (
        lambda x, weight, bias=None: ops.forward(x, weight, bias, *case.geometry),
        lambda x, weight, bias=None: by_matrix_and_convolution(x, weight, bias, case),
    ):
        y = function(*tensors)
        cotangent = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).requires_grad_()
        first = torch.autograd.grad(y, tensors, cotangent, create_graph=True)
        total = sum((one**2).sum() for one in first) + 0 * sum(t.sum() for t in (*tensors, cotangent))
        found.append([*first, *torch.autograd.grad(total, [*tensors, cotangent])])
    for got, wanted in zip(*found, strict=True):
        assert relative_error(got, wanted, least=1) < 1e-11


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_each_op_is_known_to_torch(keep, channels_last):
    case = Case(**{**vars(ONE), "keep": keep, "channels_last": channels_last})
    x, weight, bias = (t.requires_grad_() for t in case.tensors())
    grad = torch.randn_like(ops.forward(x, weight, bias, *case.geometry)).requires_grad_()
    check_registration(ops.forward, (x, weight, bias if keep else None, *case.geometry))
    check_registration(ops.input_grad, (grad, weight, case.input_size, *case.geometry))
    check_registration(ops.weight_grad, (grad, x, list(case.kernel), *case.geometry, keep))


def test_only_image_and_kernel_are_kept():
    kept = []
    x, weight, bias = (t.requires_grad_() for t in ONE.tensors())
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value.shape) or value, lambda value: value):
        ops.forward(x, weight, bias, *ONE.geometry)
    assert kept == [x.shape, weight.shape]


def test_no_second_image_is_made_of_the_gradient():
    """Its memory is that of the padded one."""
    case = Case(**{**vars(WHOLE), "size": (12, 11)})
    x, weight, _ = case.tensors(torch.float32)
    grad = ops.input_grad(torch.ones_like(x), weight, case.input_size, *case.geometry)
    assert grad.is_contiguous()
    assert grad.storage_offset() == 0
    if ops.extrapolate_pad.kernels_loaded("cpu"):
        assert grad.untyped_storage().nbytes() == 4 * 2 * 4 * 14 * 13


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_only_what_is_wanted_is_computed(wanted):
    tensors = [t.requires_grad_(want) for t, want in zip(ONE.tensors(), wanted, strict=True)]
    with FlopCounterMode(display=False) as counter:
        y = ops.forward(*tensors, *ONE.geometry)
        y.sum().backward()
    assert [t.grad is not None for t in tensors] == list(wanted)
    passes = 1 + wanted[0] + wanted[1]
    assert counter.get_total_flops() == passes * 2 * y.numel() * math.prod(tensors[1].shape[1:])


def test_outputs_that_are_all_at_the_border_give_the_image_nothing():
    case = Case(2, 1, (2, 2), (3, 9), (5, 3), (1, 1), (2, 2, 1, 1), (1, 1), (2, 2, 2, 2), keep=False)
    x, weight, bias = (t.requires_grad_() for t in case.tensors())
    y = ops.forward(x, weight, bias, *case.geometry)
    to_input, to_weight = torch.autograd.grad(y.sum(), (x, weight))
    assert not to_input.any()
    assert to_weight.all()


def test_channels_last_where_image_or_kernel_is():
    x, weight, _ = WHOLE.tensors(torch.float32)
    for one, other in ((x, weight), (weight, x)):
        tensors = {id(one): one.contiguous(memory_format=torch.channels_last), id(other): other}
        y = ops.forward(tensors[id(x)], tensors[id(weight)], None, *WHOLE.geometry)
        assert is_channels_last(y)
        assert is_channels_last(F.conv2d(tensors[id(x)], tensors[id(weight)]))


def test_arguments_that_are_not_contiguous():
    x, weight, bias = ONE.tensors()
    crooked = [x.mT.contiguous().mT, weight.mT.contiguous().mT, bias.repeat_interleave(2)[::2]]
    wanted = ops.forward(x, weight, bias, *ONE.geometry)
    torch.testing.assert_close(ops.forward(*crooked, *ONE.geometry), wanted)
    grad = torch.ones(()).double().expand(wanted.shape)
    dense = grad.contiguous()
    torch.testing.assert_close(
        ops.input_grad(grad, crooked[1], ONE.input_size, *ONE.geometry),
        ops.input_grad(dense, weight, ONE.input_size, *ONE.geometry),
    )
    for got, due in zip(
        ops.weight_grad(grad, crooked[0], [3, 2], *ONE.geometry, True),
        ops.weight_grad(dense, x, [3, 2], *ONE.geometry, True),
        strict=True,
    ):
        torch.testing.assert_close(got, due)


@pytest.mark.parametrize("keep", [True, False])
def test_compiled_whole_with_its_backward(keep):
    case = Case(**{**vars(ONE), "keep": keep})
    tensors = [t.requires_grad_() for t in case.tensors()]

    def loss(x, weight, bias):
        return (ops.forward(x, weight, bias, *case.geometry) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    plain = torch.autograd.grad(loss(*tensors), tensors)
    for got, wanted in zip(torch.autograd.grad(compiled(*tensors), tensors), plain, strict=True):
        torch.testing.assert_close(got, wanted)
