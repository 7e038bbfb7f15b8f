"""Convolution with DCLS kernels that are not built: against every element on every cell and sums written out."""

import itertools
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from convswap.layers.ops import dcls_sparse_conv2d as ops
from convswap.layers.ops._load import kernels_loaded

from ..helpers import few_examples, is_channels_last, relative_error, seeds
from .elements import Elements, on_every_cell, wanting_gradients
from .registration import check_registration

FORMS = list(itertools.product((True, False), (True, False)))
"""normalise, right_slope."""

FORMATS = (torch.contiguous_format, torch.channels_last)
EXACT = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest error of images in each dtype, relative to the largest value or 1."""


@dataclass(frozen=True)
class Case:
    batch: int
    channels: int
    multiple: int
    image: tuple
    stride: tuple
    padding: tuple
    elements: Elements
    form: tuple = (True, False)
    memory_format: torch.memory_format = torch.contiguous_format

    @property
    def options(self):
        return *self.elements.grid, *self.form, list(self.stride), list(self.padding)

    @property
    def input_size(self):
        return [self.channels, *self.image]

    def images(self, dtype=torch.float64):
        """Input, and a gradient to the output."""
        generator = torch.Generator().manual_seed(self.elements.seed + 7)
        top, bottom, left, right = self.padding
        (high, wide), (kh, kw) = self.image, self.elements.size
        out = (high + top + bottom - kh) // self.stride[0] + 1, (wide + left + right - kw) // self.stride[1] + 1
        found = []
        for size in ((self.channels, *self.image), (self.channels * self.multiple, *out)):
            value = torch.randn(self.batch, *size, generator=generator, dtype=torch.float64).to(dtype)
            found.append(value.to(memory_format=self.memory_format))
        return found

    def learned(self, dtype=torch.float64):
        return self.elements.weight(dtype), self.elements.positions(dtype)


@st.composite
def cases(draw, most_channels=18, most_image=21, most_size=10, most_count=20, between=False):
    image = tuple(draw(st.integers(1, most_image)) for _ in range(2))
    padding = tuple(draw(st.integers(0, 6)) for _ in range(4))
    room = image[0] + padding[0] + padding[1], image[1] + padding[2] + padding[3]
    channels, multiple = draw(st.integers(1, most_channels)), draw(st.sampled_from((1, 1, 2, 19)))
    drawn = Elements(
        shape=(channels * multiple, 1, draw(st.integers(1, most_count))),
        size=tuple(draw(st.integers(1, min(most_size, r))) for r in room),
        axes=draw(st.sampled_from(((0, 1), (1, 0)))),
        seed=draw(seeds) // 2,
        spread=draw(st.sampled_from((0.3, 1.0, 2.0))),
        between=between,
    )
    return Case(
        batch=draw(st.integers(0, 3)),
        channels=channels,
        multiple=multiple,
        image=image,
        stride=draw(st.sampled_from(((1, 1), (1, 1), (2, 2), (1, 3), (3, 2)))),
        padding=padding,
        elements=drawn,
        form=draw(st.sampled_from(FORMS)),
        memory_format=draw(st.sampled_from(FORMATS)),
    )


def written_out(x, weight, P, size, axes, normalise, right_slope, stride, padding):
    """Each element on each cell of the kernel, then a sum of shifted images, one for each cell. Differentiable."""
    kernel = on_every_cell(
        weight, size, axes, lambda d, cells: (1 - (cells - P[d].unsqueeze(-1)).abs()).clamp(min=0), normalise
    )
    top, bottom, left, right = padding
    x = F.pad(x.repeat_interleave(weight.shape[0] // x.shape[1], 1), (left, right, top, bottom))
    height, width = (x.shape[2] - size[0]) // stride[0] + 1, (x.shape[3] - size[1]) // stride[1] + 1
    y = x.new_zeros(x.shape[0], weight.shape[0], height, width)
    for i, j in itertools.product(range(size[0]), range(size[1])):
        y = y + kernel[:, 0, i, j, None, None] * x[:, :, i :: stride[0], j :: stride[1]][:, :, :height, :width]
    return y


@few_examples
@given(cases())
def test_as_written_out(case):
    x, grad = case.images()
    tensors = wanting_gradients(x, *case.learned())
    ours, plain = ops.forward(*tensors, *case.options), written_out(*tensors, *case.options)
    assert relative_error(ours, plain, least=1) < 1e-11
    for mine, wanted in zip(*(torch.autograd.grad(y, tensors, grad) for y in (ours, plain)), strict=True):
        assert relative_error(mine, wanted, least=1) < 1e-8


@few_examples
@given(cases(), st.booleans())
def test_same_as_the_plain_forms_whole_numbers_too(case, whole):
    (x, grad), (weight, P) = case.images(), case.learned()
    P = P.round() if whole else P
    for op, plain, arguments in (
        (ops.forward, ops.dcls_sparse_depthwise_conv2d_ref, (x, weight, P)),
        (ops.input_grad, ops.dcls_sparse_depthwise_conv2d_input_grad_ref, (grad, weight, P, case.input_size)),
        (ops.kernel_grad, ops.dcls_sparse_depthwise_conv2d_kernel_grad_ref, (grad, x, weight, P)),
    ):
        found, wanted = op(*arguments, *case.options), plain(*arguments, *case.options)
        for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (found, wanted)), strict=True):
            assert relative_error(one, other, least=1) < 1e-8
            assert one.dtype == torch.float64


@few_examples
@given(cases())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_precision(dtype, case):
    if case.channels == 1:  # torch's convolution of a single channel in channels_last is at times wrong
        case = replace(case, memory_format=torch.contiguous_format)
    weight, P = case.learned(torch.float32)
    # On a grid of 64ths: an element that barely touches the kernel is divided by nearly nothing, and rounding shows.
    learned = weight, (P * 64).round() / 64
    images = case.images(dtype)
    exact = [value.double() for value in (*images, *learned)]
    x, grad, weight, P = (*images, *learned)
    y, to_input = (
        ops.forward(x, weight, P, *case.options),
        ops.input_grad(grad, weight, P, case.input_size, *case.options),
    )
    assert y.dtype == to_input.dtype == dtype
    assert relative_error(y, written_out(exact[0], *exact[2:], *case.options), least=1) < EXACT[dtype]
    wanted = ops.input_grad(exact[1], *exact[2:], case.input_size, *case.options)
    assert relative_error(to_input, wanted, least=1) < EXACT[dtype]
    # What is stored in half precision is exact; the rest is computed in single.
    to_elements = ops.kernel_grad(grad, x, weight, P, *case.options)
    for found, wanted in zip(to_elements, ops.kernel_grad(exact[1], exact[0], *exact[2:], *case.options), strict=True):
        assert found.dtype == torch.float32
        assert relative_error(found, wanted, least=100) < 1e-3


@few_examples
@given(cases(most_channels=3, most_image=6, most_size=5, most_count=3))
def test_slopes_at_whole_numbers_are_those_of_either_side(case):
    case = replace(case, form=(False, case.form[1]))  # without a divisor, the kernel is linear on either side
    (x, grad), (weight, P) = case.images(), case.learned()
    P = P.round()

    def slopes(side):
        moved = (P + side * 1e-3).requires_grad_()
        return torch.autograd.grad(written_out(x, weight, moved, *case.options), moved, grad)[0]

    found = ops.kernel_grad(grad, x, weight, P, *case.options)[1]
    for d in range(2):
        beside = []
        for side in (1, -1):
            step = torch.zeros_like(P)
            step[d] = side
            beside.append(slopes(step)[d])
        wanted = beside[0] if case.form[1] else (beside[0] + beside[1]) / 2
        assert relative_error(found[d], wanted, least=1) < 1e-9


@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_first_and_second_order(form, stride):
    drawn = Elements((2, 1, 3), (4, 3), (1, 0), seed=5, spread=0.4, between=True)
    case = Case(2, 1, 2, (5, 4), stride, (2, 1, 0, 1), drawn, form)
    x, grad = case.images()
    forward = partial(_reordered, ops.forward, options=case.options)
    assert gradcheck(forward, wanting_gradients(x, *case.learned()), eps=1e-6, atol=1e-5)
    assert gradgradcheck(forward, wanting_gradients(x, *case.learned()), eps=1e-6, atol=1e-4)
    to_input = partial(_reordered, ops.input_grad, options=(case.input_size, *case.options))
    assert gradcheck(to_input, wanting_gradients(grad, *case.learned()), eps=1e-6, atol=1e-5)
    assert gradgradcheck(to_input, wanting_gradients(grad, *case.learned()), eps=1e-6, atol=1e-4)
    to_elements = partial(_reordered, ops.kernel_grad, options=case.options)
    assert gradcheck(to_elements, wanting_gradients(grad, x, *case.learned()), eps=1e-6, atol=1e-4)


def _reordered(op, *tensors, options):
    return op(*tensors, *options)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("form", FORMS)
def test_registered_as_torch_asks_for(form, memory_format):
    drawn = Elements((4, 1, 3), (3, 4), (0, 1), between=True)
    case = Case(2, 2, 2, (5, 6), (1, 2), (1, 0, 2, 1), drawn, form, memory_format)
    x, grad = case.images()
    weight, P = wanting_gradients(*case.learned())
    check_registration(ops.forward, (x.requires_grad_(), weight, P, *case.options), form == FORMS[0])
    check_registration(
        ops.input_grad, (grad.requires_grad_(), weight, P, case.input_size, *case.options), form == FORMS[0]
    )
    check_registration(ops.kernel_grad, (grad.detach(), x.detach(), weight, P, *case.options), form == FORMS[0])


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole_with_its_backward(dynamic):
    case = Case(2, 3, 1, (8, 9), (1, 1), (2, 2, 2, 2), Elements((3, 1, 4), (5, 5), (1, 0)))
    tensors = wanting_gradients(case.images()[0], *case.learned())

    def loss(x, weight, P):
        return (ops.forward(x, weight, P, *case.options) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    plain = torch.autograd.grad(loss(*tensors), tensors)
    for got, wanted in zip(torch.autograd.grad(compiled(*tensors), tensors), plain, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("count", "taps"), [(2, 8), (50, 35)])
def test_flops_are_those_of_the_taps(count, taps):
    case = Case(2, 3, 1, (8, 9), (1, 1), (2, 2, 3, 3), Elements((3, 1, count), (5, 7), (1, 0)))
    x, weight, P = wanting_gradients(case.images()[0], *case.learned())
    with FlopCounterMode(display=False) as counter:
        y = ops.forward(x, weight, P, *case.options)
    assert counter.get_total_flops() == 2 * y.numel() * taps
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * y.numel() * taps


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_format_of_the_first_argument_is_kept(stride, memory_format):
    case = Case(2, 20, 1, (9, 11), stride, (2, 2, 2, 2), Elements((20, 1, 4), (5, 5), (1, 0)), (True, False))
    (x, grad), (weight, P) = case.images(), case.learned()
    kept, other = replace(case, memory_format=memory_format).images()
    y, to_input = (
        ops.forward(kept, weight, P, *case.options),
        ops.input_grad(other, weight, P, case.input_size, *case.options),
    )
    for value in (y, to_input):
        assert is_channels_last(value) == (memory_format == torch.channels_last)
        assert value.is_contiguous() == (memory_format == torch.contiguous_format)
    assert relative_error(y, ops.forward(x, weight, P, *case.options)) < 1e-12
    assert relative_error(to_input, ops.input_grad(grad, weight, P, case.input_size, *case.options)) < 1e-12
    # The gradient may come in another format than the input.
    mixed = ops.kernel_grad(grad, kept, weight, P, *case.options)
    for found, wanted in zip(mixed, ops.kernel_grad(grad, x, weight, P, *case.options), strict=True):
        assert relative_error(found, wanted) < 1e-11


def test_strides_do_not_matter():
    case = Case(2, 3, 2, (7, 8), (1, 1), (2, 2, 2, 2), Elements((6, 1, 5), (5, 5), (1, 0)))
    (x, grad), (weight, P) = case.images(), case.learned()
    apart = [value.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) for value in (x, grad, P)]
    elements = weight.mT.contiguous().mT, apart[2]
    assert torch.equal(ops.forward(apart[0], *elements, *case.options), ops.forward(x, weight, P, *case.options))
    arguments = case.input_size, *case.options
    assert torch.equal(ops.input_grad(apart[1], *elements, *arguments), ops.input_grad(grad, weight, P, *arguments))
    for found, wanted in zip(
        ops.kernel_grad(apart[1], apart[0], *elements, *case.options),
        ops.kernel_grad(grad, x, weight, P, *case.options),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)
        assert found.is_contiguous()
    ones = torch.ones((), dtype=torch.float64)
    expanded, whole = ones.expand(grad.shape), ones.expand(grad.shape).contiguous()
    assert torch.equal(ops.input_grad(expanded, weight, P, *arguments), ops.input_grad(whole, weight, P, *arguments))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("batch", "channels", "image", "size", "padding"),
    [
        (0, 2, (5, 5), (3, 3), (1, 1, 1, 1)),
        (2, 0, (5, 5), (3, 3), (1, 1, 1, 1)),
        (1, 2, (1, 1), (1, 1), (0, 0, 0, 0)),
        (1, 2, (1, 1), (9, 8), (4, 4, 3, 4)),
        (2, 3, (2, 1), (31, 31), (15, 15, 15, 15)),
        (1, 1, (1, 40), (1, 9), (0, 0, 4, 4)),
        (1, 2, (6, 3), (3, 100), (1, 1, 60, 37)),
        (1, 2, (3, 3), (2, 2), (9, 0, 0, 9)),
    ],
)
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_odd_sizes(stride, batch, channels, image, size, padding, memory_format):
    drawn = Elements((channels, 1, 6), size, (1, 0), spread=0.7)
    case = Case(batch, channels, 1, image, stride, padding, drawn, (True, False), memory_format)
    if channels == 0:
        return _test_no_channels(case)
    x, grad = case.images()
    tensors = wanting_gradients(x, *case.learned())
    ours, plain = ops.forward(*tensors, *case.options), written_out(*tensors, *case.options)
    assert relative_error(ours, plain, least=1) < 1e-12
    for mine, wanted in zip(*(torch.autograd.grad(y, tensors, grad) for y in (ours, plain)), strict=True):
        assert relative_error(mine, wanted, least=1) < 1e-9


def _test_no_channels(case):
    if not kernels_loaded("cpu"):
        pytest.skip("torch has no convolution without channels")
    images = torch.empty(2, 0, *case.image, dtype=torch.float64)
    weight, P = case.learned()
    y = ops.forward(images, weight, P, *case.options)
    assert (y.shape[:2], y.numel()) == ((2, 0), 0)
    assert ops.input_grad(y, weight, P, case.input_size, *case.options).shape == images.shape
    assert ops.kernel_grad(y, images, weight, P, *case.options)[1].shape == P.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_elements_far_away_leave_nothing(dtype):
    case = Case(1, 2, 1, (6, 5), (1, 1), (2, 2, 2, 2), Elements((2, 1, 3), (5, 4), (1, 0)))
    (x, grad), (weight, _) = case.images(dtype), case.learned(dtype)
    for d, far in itertools.product(range(2), (-1e9, 1e9, 3e38, -torch.inf, torch.inf, -9.0)):
        P = torch.full((2, 2, 1, 3), 0.25, dtype=dtype)
        P[d] = far
        assert not ops.forward(x, weight, P, *case.options).any()
        assert not ops.input_grad(grad, weight, P, case.input_size, *case.options).any()
        assert not any(value.any() for value in ops.kernel_grad(grad, x, weight, P, *case.options))


def test_a_position_that_is_nan_is_seen_in_its_channel_alone():
    case = Case(2, 3, 1, (6, 5), (1, 1), (2, 2, 2, 2), Elements((3, 1, 9), (5, 5), (1, 0), spread=0.2))
    (x, grad), (weight, P) = case.images(), case.learned()
    P[0, 1, 0, 4] = torch.nan
    seen = ops.forward(x, weight, P, *case.options).isnan().flatten(2).any(2)
    assert torch.equal(seen, torch.tensor([[False, True, False]] * 2))
    for_weight, for_P = ops.kernel_grad(grad, x, weight, P, *case.options)
    assert for_weight[1, 0, 4].isnan()
    assert for_weight.isnan().sum() == 1
    assert not for_P[:, ::2].isnan().any()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_from_any_number_of_threads(dtype, memory_format):
    drawn = Elements((70, 1, 9), (7, 7), (1, 0))
    case = Case(3, 70, 1, (20, 21), (1, 1), (3, 3, 3, 3), drawn, memory_format=memory_format)
    (x, grad), (weight, P) = case.images(dtype), case.learned(torch.promote_types(dtype, torch.float32))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y, to_input = (
            ops.forward(x, weight, P, *case.options),
            ops.input_grad(grad, weight, P, case.input_size, *case.options),
        )
        found.append((y, to_input, *ops.kernel_grad(grad, x, weight, P, *case.options)))
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"input": (2, 3, 5)}, r"input must be \(batch, channels, height, width\), got \(2, 3, 5\)"),
        ({"weight": (4, 1, 2)}, r"4 outputs of weight are no multiple of the input's 3 channels"),
        ({"weight": (3, 2, 4)}, r"weight must be \(outputs, 1, elements\), got \(3, 2, 4\)"),
        ({"P": (1, 3, 1, 4)}, r"P must be \(2, 3, 1, 4\) for this weight, got \(1, 3, 1, 4\)"),
        ({"size": [9, 3]}, "the kernel's height of 9 is more than the input's 7, padding included"),
        ({"size": [3]}, "size must be two positive numbers"),
        ({"axes": [1, 1]}, "axes must be 0 and 1 in some order"),
        ({"stride": [0, 1]}, "stride must be two positive numbers"),
        ({"padding": [1, 1]}, "padding must be four numbers: top, bottom, left, right; got 2"),
        ({"padding": [-1, 3, 1, 1]}, "padding must not be negative, got -1 and 3"),
        ({"dtype": torch.float32}, "weight and P must be in double precision if the input is"),
    ],
)
def test_arguments_that_do_not_fit(change, told):
    if not kernels_loaded("cpu"):
        pytest.skip("the plain form is not asked to check")
    shape = change.get("weight", (3, 1, 4))
    arguments = {
        "input": torch.zeros(change.get("input", (2, 3, 5, 6)), dtype=torch.float64),
        "weight": torch.zeros(shape, dtype=change.get("dtype", torch.float64)),
        "P": torch.zeros(change.get("P", (2, *shape)), dtype=torch.float64),
        "size": change.get("size", [3, 3]),
        "axes": change.get("axes", [0, 1]),
        "stride": change.get("stride", [1, 1]),
        "padding": change.get("padding", [1, 1, 1, 1]),
    }
    if "weight" in change or "P" not in change:
        arguments["P"] = torch.zeros(2, shape[0], 1, shape[2], dtype=torch.float64)
    with pytest.raises(RuntimeError, match=told):
        ops.forward(**arguments, normalise=True, right_slope=False)
