"""Dynamic convolution: the three ops against sums over kernels, taps and samples written out."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from convswap.layers._geometry import memory_format
from convswap.layers.ops import dynamic_conv2d as ops

from ..helpers import few_examples
from .registration import check_registration

DTYPES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest error in each dtype, relative to the largest value."""

FORMATS = (torch.contiguous_format, torch.channels_last)


@dataclass(frozen=True)
class Case:
    batch: int
    kernels: int
    inputs: int
    outputs: int
    size: tuple
    kernel: tuple
    stride: tuple = (1, 1)
    padding: tuple = (0, 0, 0, 0)
    dilation: tuple = (1, 1)
    groups: int = 1
    bias: bool = True
    image_format: torch.memory_format = torch.contiguous_format
    weight_format: torch.memory_format = torch.contiguous_format

    def tensors(self, dtype=torch.float64, seed=0):
        """Input, weight, bias, attention; inputs and outputs of the case are those of a group."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*size):
            return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

        x = draw(self.batch, self.groups * self.inputs, *self.size).to(memory_format=self.image_format)
        outputs = self.groups * self.outputs
        weight = draw(self.kernels * outputs, self.inputs, *self.kernel).to(memory_format=self.weight_format)
        bias = draw(self.batch, outputs) if self.bias else None
        return x, weight, bias, draw(self.batch, self.kernels)

    @property
    def geometry(self):
        return list(self.stride), list(self.padding), list(self.dilation), self.groups


@st.composite
def cases(draw, most_channels=40, most_size=12, most_kernel=5, least_batch=0):
    padding = tuple(draw(st.integers(0, 4)) for _ in range(4))
    dilation = tuple(draw(st.sampled_from((1, 1, 2, 3))) for _ in range(2))
    size = tuple(draw(st.integers(1, most_size)) for _ in range(2))
    room = size[0] + padding[0] + padding[1], size[1] + padding[2] + padding[3]
    return Case(
        batch=draw(st.integers(least_batch, 11 if least_batch == 0 else 2)),
        kernels=draw(st.integers(1, 6)),
        inputs=draw(st.integers(1, most_channels)),
        outputs=draw(st.integers(1, most_channels)),
        size=size,
        kernel=tuple(
            draw(st.integers(1, min(most_kernel, (r - 1) // d + 1))) for r, d in zip(room, dilation, strict=True)
        ),
        stride=tuple(draw(st.integers(1, 3)) for _ in range(2)),
        padding=padding,
        dilation=dilation,
        groups=draw(st.sampled_from((1, 1, 2, 3))),
        bias=draw(st.booleans()),
        image_format=draw(st.sampled_from(FORMATS)),
        weight_format=draw(st.sampled_from(FORMATS)),
    )


def written_out(x, weight, bias, attention, stride, padding, dilation, groups):
    """A sum over taps of products of mixed kernels with shifted images. Differentiable."""
    top, bottom, left, right = padding
    batch, kernels = attention.shape
    kh, kw = weight.shape[2:]
    x = F.pad(x, (left, right, top, bottom)).unflatten(1, (groups, -1))
    height = (x.shape[3] - (kh - 1) * dilation[0] - 1) // stride[0] + 1
    width = (x.shape[4] - (kw - 1) * dilation[1] - 1) // stride[1] + 1
    outputs = weight.shape[0] // kernels // groups
    stack = weight.reshape(kernels, groups, outputs, *weight.shape[1:])
    y = x.new_zeros(batch, groups, outputs, height, width)
    for i in range(kh):
        for j in range(kw):
            rows, columns = x[:, :, :, i * dilation[0] :: stride[0]], slice(j * dilation[1], None, stride[1])
            seen = rows[..., columns][..., :height, :width]
            y = y + torch.einsum("bk,kgoc,bgchw->bgohw", attention, stack[..., i, j], seen)
    y = y.flatten(1, 2)
    return y if bias is None else y + bias[:, :, None, None]


def assert_near(got, wanted, dtype):
    assert got.dtype == dtype
    assert got.shape == wanted.shape
    if wanted.numel():
        scale = max(1.0, wanted.abs().max().item())
        assert (got.double() - wanted).abs().max().item() <= DTYPES[dtype] * scale


def check_three_ops(case, dtype, seed=0):
    x, weight, bias, attention = case.tensors(dtype, seed)
    exact = [None if t is None else t.double().requires_grad_() for t in (x, weight, bias, attention)]
    wanted = written_out(*exact, *case.geometry)
    y = ops.forward(x, weight, bias, attention, *case.geometry)
    assert_near(y, wanted.detach(), dtype)

    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y)
    grad = grad.contiguous(memory_format=case.image_format)
    inputs = [exact[0], exact[1], exact[3]]
    wanted_x, wanted_weight, wanted_attention = torch.autograd.grad(wanted, inputs, grad.double())
    input_grad = ops.input_grad(grad, weight, attention, list(x.shape[1:]), *case.geometry)
    weight_grad, attention_grad = ops.weight_grad(grad, x, weight, attention, *case.geometry)
    assert_near(input_grad, wanted_x, dtype)
    assert_near(weight_grad, wanted_weight, dtype)
    assert_near(attention_grad, wanted_attention, dtype)
    for found, like in ((y, x), (input_grad, grad), (weight_grad, weight)):
        assert found.is_contiguous(memory_format=memory_format(like))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=cases(), seed=st.integers(0, 2**31 - 1))
@few_examples
def test_three_ops_are_what_the_written_out_sum_gives(dtype, case, seed):
    check_three_ops(case, dtype, seed)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        Case(9, 4, 70, 40, (7, 7), (3, 3), padding=(1, 1, 1, 1)),  # several blocks of lanes, terms and samples
        Case(2, 7, 3, 33, (40, 39), (7, 5), stride=(2, 1), padding=(3, 3, 2, 2)),  # bands of pixels
        Case(3, 40, 20, 8, (5, 5), (3, 3)),  # more kernels than are mixed at once
        Case(40, 2, 5, 17, (4, 4), (2, 2)),  # samples that are taken in parts
        Case(2, 2, 2, 3, (4, 4), (2, 2), groups=150),  # more blocks than sums for the attention
    ],
    ids=str,
)
def test_blocks_of_all_kinds(case, last):
    image_format = FORMATS[last]
    check_three_ops(replace(case, image_format=image_format, weight_format=image_format), torch.float32)


@given(case=cases(most_channels=2, most_size=5, most_kernel=3, least_batch=1), seed=st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=5)
def test_derivatives_of_first_and_second_order(case, seed):
    x, weight, bias, attention = (None if t is None else t.requires_grad_() for t in case.tensors(seed=seed))
    tensors = [t for t in (x, weight, attention, bias) if t is not None]

    def convolve(x, weight, attention, bias=None):
        return ops.forward(x, weight, bias, attention, *case.geometry)

    assert gradcheck(convolve, tensors, fast_mode=True)
    assert gradgradcheck(convolve, tensors, fast_mode=True)


def test_derivatives_of_the_gradients():
    case = Case(2, 2, 2, 3, (4, 3), (2, 2), (2, 1), (1, 0, 0, 1), (1, 2), groups=2)
    x, weight, _, attention = (t.requires_grad_() for t in case.tensors())
    grad = torch.randn_like(ops.forward(x, weight, None, attention, *case.geometry)).requires_grad_()

    def to_input(grad, weight, attention):
        return ops.input_grad(grad, weight, attention, list(x.shape[1:]), *case.geometry)

    def to_kernels(*tensors):
        return ops.weight_grad(*tensors, *case.geometry)

    for function, tensors in ((to_input, (grad, weight, attention)), (to_kernels, (grad, x, weight, attention))):
        assert gradcheck(function, tensors, fast_mode=True)
        assert gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("last", [False, True])
def test_each_op_is_known_to_torch(last):
    case = Case(2, 2, 3, 2, (5, 6), (3, 2), (2, 1), (2, 1, 0, 1), (1, 2), 2, True, FORMATS[last], FORMATS[last])
    x, weight, bias, attention = (t.requires_grad_() for t in case.tensors())
    grad = torch.randn_like(ops.forward(x, weight, bias, attention, *case.geometry)).requires_grad_()
    check_registration(ops.forward, (x, weight, bias, attention, *case.geometry))
    check_registration(ops.forward, (x, weight, None, attention, *case.geometry))
    check_registration(ops.input_grad, (grad, weight, attention, list(x.shape[1:]), *case.geometry))
    check_registration(ops.weight_grad, (grad, x, weight, attention, *case.geometry))


def test_compiled_whole_with_its_backward():
    case = Case(3, 2, 4, 5, (6, 5), (3, 3), (2, 1), (1, 1, 1, 1))
    tensors = [t.requires_grad_() for t in case.tensors()]

    def loss(*tensors):
        return (ops.forward(*tensors, *case.geometry) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    plain = torch.autograd.grad(loss(*tensors), tensors)
    for got, wanted in zip(torch.autograd.grad(compiled(*tensors), tensors), plain, strict=True):
        torch.testing.assert_close(got, wanted)


def test_flops_are_counted():
    case = Case(2, 3, 4, 5, (9, 8), (5, 3), padding=(2, 2, 1, 1), groups=2)
    x, weight, _, attention = (t.requires_grad_() for t in case.tensors())
    with FlopCounterMode(display=False) as counter:
        y = ops.forward(x, weight, None, attention, *case.geometry)
        y.sum().backward()
    convolving, mixing = 2 * (2 * 10 * 9 * 8) * (4 * 5 * 3), 2 * (2 * 3) * (10 * 4 * 5 * 3)
    assert counter.get_total_flops() == 3 * convolving + 4 * mixing


def test_only_what_is_asked_for_is_computed():
    case = Case(2, 2, 3, 4, (5, 5), (3, 3))
    x, weight, bias, attention = case.tensors()
    for wanted in (x, weight, attention, bias):
        wanted.requires_grad_()
        y = ops.forward(x, weight, bias, attention, *case.geometry)
        y.sum().backward()
        wanted.requires_grad_(False)
    exact = [t.detach().clone().requires_grad_() for t in (x, weight, bias, attention)]
    written_out(*exact, *case.geometry).sum().backward()
    for got, due in zip((x, weight, bias, attention), exact, strict=True):
        torch.testing.assert_close(got.grad, due.grad)


def test_no_images_in_and_none_out():
    x, weight, attention = torch.randn(0, 4, 5, 5), torch.randn(6, 4, 3, 3), torch.randn(0, 2)
    geometry = [1, 1], [1, 1, 1, 1], [1, 1], 1
    y = ops.forward(x, weight, None, attention, *geometry)
    assert y.shape == (0, 3, 5, 5)
    assert ops.input_grad(y, weight, attention, [4, 5, 5], *geometry).shape == x.shape
    to_weight, to_attention = ops.weight_grad(y, x, weight, attention, *geometry)
    assert torch.equal(to_weight, torch.zeros_like(weight))
    assert to_attention.shape == (0, 2)


def test_arguments_that_are_not_contiguous():
    case = Case(2, 2, 5, 4, (8, 9), (3, 2), (2, 1), (2, 2, 1, 1))
    x, weight, bias, attention = case.tensors()
    crooked = [t.mT.contiguous().mT for t in (x, weight, bias, attention)]
    assert not any(t.is_contiguous() for t in crooked)
    wanted = written_out(x, weight, bias, attention, *case.geometry)
    assert_near(ops.forward(*crooked, *case.geometry), wanted, x.dtype)
    grad = torch.ones(()).double().expand(wanted.shape)
    dense = grad.contiguous()
    size = list(x.shape[1:])
    torch.testing.assert_close(
        ops.input_grad(grad, crooked[1], crooked[3], size, *case.geometry),
        ops.input_grad(dense, weight, attention, size, *case.geometry),
    )
    torch.testing.assert_close(
        ops.weight_grad(grad, *crooked[:2], crooked[3], *case.geometry),
        ops.weight_grad(dense, x, weight, attention, *case.geometry),
    )


def test_a_sample_that_is_no_number_leaves_the_others_alone():
    case = Case(3, 2, 4, 5, (6, 6), (3, 3), padding=(1, 1, 1, 1))
    x, weight, bias, attention = case.tensors(torch.float32)
    x[1, 2, 3, 3] = float("nan")
    y = ops.forward(x, weight, bias, attention, *case.geometry)
    bad = torch.zeros(y.shape, dtype=torch.bool)
    bad[1, :, 2:5, 2:5] = True
    assert torch.equal(y.isnan(), bad)


def test_results_do_not_depend_on_the_number_of_threads():
    case = Case(5, 3, 20, 70, (12, 11), (3, 3), (2, 1), (1, 1, 1, 1))
    x, weight, bias, attention = case.tensors(torch.float32)
    threads = torch.get_num_threads()

    def results(count):
        torch.set_num_threads(count)
        y = ops.forward(x, weight, bias, attention, *case.geometry)
        to_input = ops.input_grad(y, weight, attention, list(x.shape[1:]), *case.geometry)
        return y, to_input, *ops.weight_grad(y, x, weight, attention, *case.geometry)

    try:
        one, *others = (results(count) for count in (1, 2, 3))
    finally:
        torch.set_num_threads(threads)
    for other in others:
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": (3, 2)}, r"attention must be \(.*2, kernels\).*\(3, 2\)"),
        ({"attention": (2, 0)}, r"attention must be \(.*2, kernels\).*\(2, 0\)"),
        ({"attention": (2, 4)}, r"4 kernels.*\(6, 4, 3, 3\)"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    shapes = {"x": (2, 4, 5, 5), "weight": (6, 4, 3, 3), "attention": (2, 2)} | change
    x, weight, attention = (torch.zeros(shape) for shape in shapes.values())
    geometry = [1, 1], [1, 1, 1, 1], [1, 1], 1
    grad = torch.zeros(2, 3, 5, 5)
    with pytest.raises(RuntimeError, match=message):
        ops.forward(x, weight, None, attention, *geometry)
    with pytest.raises(RuntimeError, match=message):
        ops.input_grad(grad, weight, attention, [4, 5, 5], *geometry)
    with pytest.raises(RuntimeError, match=message):
        ops.weight_grad(grad, x, weight, attention, *geometry)
