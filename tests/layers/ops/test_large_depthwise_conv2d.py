"""Depthwise convolution with large kernels: the three ops against sums written out, and against torch."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from convswap.layers.ops import large_depthwise_conv2d as ops

from .registration import check_registration

DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest error in each dtype, relative to the largest value."""

FORMATS = (torch.contiguous_format, torch.channels_last)


@dataclass(frozen=True)
class Case:
    batch: int
    channels: int
    multiple: int
    size: tuple
    kernel: tuple
    stride: tuple
    padding: tuple
    bias: bool
    memory_format: torch.memory_format

    def tensors(self, dtype=torch.float64, seed=0):
        """Input, weight, bias."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*size):
            return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

        x = draw(self.batch, self.channels, *self.size).to(memory_format=self.memory_format)
        outputs = self.channels * self.multiple
        return x, draw(outputs, 1, *self.kernel), draw(outputs) if self.bias else None

    @property
    def geometry(self):
        return list(self.stride), list(self.padding)


@st.composite
def cases(draw, most_channels=35, most_size=20, most_kernel=19):
    padding = tuple(draw(st.integers(0, 6)) for _ in range(4))
    size = tuple(draw(st.integers(1, most_size)) for _ in range(2))
    room = size[0] + padding[0] + padding[1], size[1] + padding[2] + padding[3]
    return Case(
        batch=draw(st.integers(0, 3)),
        channels=draw(st.integers(1, most_channels)),
        multiple=draw(st.sampled_from((1, 1, 2, 3))),
        size=size,
        kernel=tuple(draw(st.integers(1, min(most_kernel, r))) for r in room),
        stride=tuple(draw(st.integers(1, 3)) for _ in range(2)),
        padding=padding,
        bias=draw(st.booleans()),
        memory_format=draw(st.sampled_from(FORMATS)),
    )


def by_shifts(x, weight, bias, stride, padding):
    """The convolution as a sum of shifted images, one for each tap. Differentiable."""
    top, bottom, left, right = padding
    kh, kw = weight.shape[2:]
    x = F.pad(x.repeat_interleave(weight.shape[0] // x.shape[1], 1), (left, right, top, bottom))
    height, width = (x.shape[2] - kh) // stride[0] + 1, (x.shape[3] - kw) // stride[1] + 1
    y = x.new_zeros(x.shape[0], weight.shape[0], height, width)
    for i in range(kh):
        for j in range(kw):
            seen = x[:, :, i :: stride[0], j :: stride[1]][:, :, :height, :width]
            y = y + weight[:, 0, i, j, None, None] * seen
    return y if bias is None else y + bias[:, None, None]


def assert_near(got, wanted, dtype):
    assert got.dtype == dtype
    assert got.shape == wanted.shape
    if wanted.numel():
        scale = max(1.0, wanted.abs().max().item())
        assert (got.double() - wanted).abs().max().item() <= DTYPES[dtype] * scale


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=cases(), seed=st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=40)
def test_three_ops_are_what_the_written_out_sum_gives(dtype, case, seed):
    x, weight, bias = case.tensors(dtype, seed)
    exact = [None if t is None else t.double().requires_grad_() for t in (x, weight, bias)]
    wanted = by_shifts(*exact, *case.geometry)
    y = ops.forward(x, weight, bias, *case.geometry)
    assert_near(y, wanted.detach(), dtype)

    grad = torch.randn_like(y)
    wanted_x, wanted_weight = torch.autograd.grad(wanted, exact[:2], grad.double())
    input_grad = ops.input_grad(grad, weight, list(x.shape[1:]), *case.geometry)
    assert_near(input_grad, wanted_x, dtype)
    assert_near(ops.weight_grad(grad, x, list(case.kernel), *case.geometry), wanted_weight, dtype)
    assert ops.memory_format(y) in (ops.memory_format(x), torch.contiguous_format)
    if case.channels > 1 and min(*case.size, *y.shape[2:]) > 1 and y.numel():
        assert ops.memory_format(y) == ops.memory_format(x)
        assert ops.memory_format(input_grad) == ops.memory_format(grad)


@given(case=cases(most_channels=3, most_size=5, most_kernel=6), seed=st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=10)
def test_derivatives_of_first_and_second_order(case, seed):
    tensors = [t.requires_grad_() for t in case.tensors(seed=seed) if t is not None]

    def convolve(x, weight, bias=None):
        return ops.forward(x, weight, bias, *case.geometry)

    assert gradcheck(convolve, tensors, fast_mode=True)
    assert gradgradcheck(convolve, tensors, fast_mode=True)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_each_op_is_known_to_torch(stride, memory_format):
    case = Case(2, 3, 2, (6, 7), (5, 4), stride, (2, 1, 0, 3), True, memory_format)
    x, weight, bias = (t.requires_grad_() for t in case.tensors())
    grad = torch.randn_like(ops.forward(x, weight, bias, *case.geometry)).requires_grad_()
    forward, input_grad, weight_grad = ops.forward, ops.input_grad, ops.weight_grad
    check_registration(forward, (x, weight, bias, *case.geometry), stride == (2, 3))
    check_registration(forward, (x, weight, None, *case.geometry), stride == (2, 3))
    check_registration(input_grad, (grad, weight, list(x.shape[1:]), *case.geometry), stride == (2, 3))
    check_registration(weight_grad, (grad, x, list(case.kernel), *case.geometry), stride == (2, 3))


def test_compiled_whole_with_its_backward():
    case = Case(2, 4, 1, (9, 8), (5, 5), (2, 1), (2, 2, 2, 2), True, torch.contiguous_format)
    tensors = [t.requires_grad_() for t in case.tensors()]

    def loss(x, weight, bias):
        return (ops.forward(x, weight, bias, *case.geometry) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    plain = torch.autograd.grad(loss(*tensors), tensors)
    for got, wanted in zip(torch.autograd.grad(compiled(*tensors), tensors), plain, strict=True):
        torch.testing.assert_close(got, wanted)


def test_flops_are_counted():
    case = Case(2, 4, 2, (9, 8), (5, 3), (1, 1), (2, 2, 1, 1), False, torch.contiguous_format)
    x, weight, _ = (None if t is None else t.requires_grad_() for t in case.tensors())
    with FlopCounterMode(display=False) as counter:
        y = ops.forward(x, weight, None, *case.geometry)
        y.sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 8 * 9 * 8) * (5 * 3)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("size", [1, 2, 7, 14])
def test_kernels_larger_than_the_image(size, memory_format):
    case = Case(2, 19, 1, (size, size), (17, 15), (1, 1), (8, 8, 7, 7), True, memory_format)
    x, weight, bias = case.tensors()
    assert_near(ops.forward(x, weight, bias, *case.geometry), by_shifts(x, weight, bias, *case.geometry), x.dtype)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_images_that_are_taken_in_bands(memory_format):
    case = Case(1, 18, 1, (150, 90), (11, 9), (1, 2), (5, 5, 4, 4), True, memory_format)
    x, weight, bias = (t.requires_grad_() for t in case.tensors(torch.float32))
    wanted = by_shifts(x, weight, bias, *case.geometry)
    got = ops.forward(x, weight, bias, *case.geometry)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    grad = torch.randn_like(got) / 100
    for one, other in zip(*(torch.autograd.grad(y, (x, weight), grad) for y in (got, wanted)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_padding_beyond_the_kernel_gives_rows_of_the_bias_alone():
    case = Case(1, 2, 1, (3, 3), (2, 2), (1, 1), (4, 5, 6, 3), True, torch.contiguous_format)
    x, weight, bias = case.tensors()
    y = ops.forward(x, weight, bias, *case.geometry)
    assert torch.equal(y[:, :, 0], bias[:, None].expand(1, 2, y.shape[3]))
    assert_near(y, by_shifts(x, weight, bias, *case.geometry), x.dtype)


def test_no_images_in_and_none_out():
    shape = (0, 4, 5, 5)
    x, weight = torch.randn(shape), torch.randn(4, 1, 3, 3)
    geometry = [1, 1], [1, 1, 1, 1]
    y = ops.forward(x, weight, None, *geometry)
    assert y.shape == shape
    assert ops.input_grad(y, weight, list(shape[1:]), *geometry).shape == shape
    assert torch.equal(ops.weight_grad(y, x, [3, 3], *geometry), torch.zeros(4, 1, 3, 3))


def test_arguments_that_are_not_contiguous():
    case = Case(2, 5, 1, (8, 9), (5, 3), (2, 1), (2, 2, 1, 1), True, torch.contiguous_format)
    x, weight, bias = case.tensors()
    crooked = [x.mT.contiguous().mT, weight.mT.contiguous().mT, bias.repeat_interleave(2)[::2]]
    assert not any(t.is_contiguous() for t in crooked)
    wanted = by_shifts(x, weight, bias, *case.geometry)
    assert_near(ops.forward(*crooked, *case.geometry), wanted, x.dtype)
    grad = torch.ones(()).double().expand(wanted.shape)
    dense = grad.contiguous()
    for op, *rest in ((ops.input_grad, weight, crooked[1], [5, 8, 9]), (ops.weight_grad, x, crooked[0], [5, 3])):
        torch.testing.assert_close(
            op(grad, rest[1], rest[2], *case.geometry), op(dense, rest[0], rest[2], *case.geometry)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_that_are_no_numbers_stay_in_reach(dtype):
    x = torch.zeros(1, 3, 9, 40, dtype=dtype)
    x[0, 1, 4, 20] = float("nan")
    y = ops.forward(x, torch.ones(3, 1, 5, 5, dtype=dtype), None, [1, 1], [2, 2, 2, 2])
    bad = torch.zeros(1, 3, 9, 40, dtype=torch.bool)
    bad[0, 1, 2:7, 18:23] = True
    assert torch.equal(y.isnan(), bad)


@pytest.mark.parametrize("batch", [1, 5])
def test_results_do_not_depend_on_the_number_of_threads(batch):
    case = Case(batch, 40, 1, (40, 33), (7, 9), (1, 2), (3, 3, 4, 4), True, torch.contiguous_format)
    x, weight, bias = case.tensors(torch.float32)
    threads = torch.get_num_threads()

    def results(count):
        torch.set_num_threads(count)
        y = ops.forward(x, weight, bias, *case.geometry)
        return (
            y,
            ops.input_grad(y, weight, list(x.shape[1:]), *case.geometry),
            ops.weight_grad(y, x, list(case.kernel), *case.geometry),
        )

    try:
        one, *others = (results(count) for count in (1, 2, 5, 1))
    finally:
        torch.set_num_threads(threads)
    for other in others:
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)
