"""Channelwise and local convolution with generated kernels: their ops against the formula, and against torch."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from convswap.layers._geometry import memory_format as format_of
from convswap.layers.ops._load import kernels_loaded

from .guided import DTYPES, FORMATS, Case, by_index, cases
from .registration import check_registration

SMALL = {
    False: Case(2, None, 3, 2, (6, 7), (3, 2), (2, 1), (2, 1, 0, 1), (1, 2), True),
    True: Case(2, 2, 3, 2, (6, 7), (3, 2), (2, 1), (2, 1, 0, 1), (1, 2), True),
}

PARTS = "bands", "bands, strided", "many taps", "stride beyond the kernel"

each = pytest.mark.parametrize("local", [False, True], ids=["channelwise", "local"])


def assert_near(got, wanted, dtype):
    assert got.dtype == dtype
    assert got.shape == wanted.shape
    if wanted.numel():
        scale = max(1.0, wanted.abs().max().item())
        assert (got.double() - wanted).abs().max().item() <= DTYPES[dtype] * scale


def assert_all_near(case, dtype=torch.float32, seed=0):
    """The three ops, and the formats of their results."""
    x, weight, bias = case.tensors(dtype, seed)
    exact = [None if t is None else t.double().requires_grad_() for t in (x, weight, bias)]
    wanted = by_index(*exact, case)
    y = case.ops.forward(x, weight, bias, *case.geometry)
    assert_near(y, wanted.detach(), dtype)

    grad = torch.randn_like(y)
    wanted_x, wanted_weight = torch.autograd.grad(wanted, exact[:2], grad.double())
    input_grad = case.ops.input_grad(grad, weight, case.input_size, *case.geometry)
    weight_grad = case.ops.weight_grad(grad, x, *case.geometry)
    assert_near(input_grad, wanted_x, dtype)
    assert_near(weight_grad, wanted_weight, dtype)
    assert weight_grad.is_contiguous()
    for image, like in ((y, x), (input_grad, grad)):
        assert format_of(image) in (format_of(like), torch.contiguous_format)
        if min(*image.shape, *like.shape[1:]) > 1:
            assert format_of(image) == format_of(like)


@pytest.mark.parametrize("width", [16, 17], ids=["aligned rows", "others"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@each
def test_results_that_the_caches_do_not_hold(local, dtype, width):
    """From 8 MiB on, weight gradients are stored past the caches where they are aligned."""
    channels = 2**23 // (9 * 32 * width * dtype.itemsize) + 1
    if local:
        channels = int(channels**0.5) + 1
    assert_all_near(
        Case(1, 1 if local else None, channels, channels if local else 1, (32, width), (3, 3), padding=(1, 1, 1, 1)),
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each
@given(data=st.data(), seed=st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=40)
def test_three_ops_are_what_the_formula_gives(local, dtype, data, seed):
    assert_all_near(data.draw(cases(local)), dtype, seed)


@pytest.mark.parametrize(
    "case",
    [
        Case(1, None, 2, 1, (150, 90), (3, 3), padding=(1, 1, 1, 1), memory_format=torch.channels_last),
        Case(1, None, 1, 2, (161, 190), (5, 3), (2, 3), (2, 2, 1, 1), (3, 2), True),
        Case(2, None, 3, 1, (20, 18), (9, 7), padding=(4, 4, 3, 3), bias=True),
        Case(2, None, 3, 1, (20, 18), (2, 1), stride=(3, 4), padding=(1, 0, 0, 2)),
        Case(1, 1, 2, 2, (150, 90), (3, 3), padding=(1, 1, 1, 1), memory_format=torch.channels_last),
        Case(1, 2, 1, 3, (161, 190), (5, 3), (2, 3), (2, 2, 1, 1), (3, 2), True),
        Case(2, 1, 3, 17, (20, 18), (5, 7), padding=(2, 2, 3, 3), bias=True),
        Case(2, 3, 1, 1, (20, 18), (2, 1), stride=(3, 4), padding=(1, 0, 0, 2)),
    ],
    ids=[f"{kind}: {what}" for kind in ("channelwise", "local") for what in PARTS],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shapes_that_are_taken_in_parts(case, dtype):
    assert_all_near(case, dtype)


@each
@given(data=st.data(), seed=st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=10)
def test_derivatives_of_first_and_second_order(local, data, seed):
    case = data.draw(cases(local, most_size=5, most_kernel=3))
    tensors = [t.requires_grad_() for t in case.tensors(seed=seed) if t is not None]

    def convolve(x, weight, bias=None):
        return case.ops.forward(x, weight, bias, *case.geometry)

    assert gradcheck(convolve, tensors, fast_mode=True)
    assert gradgradcheck(convolve, tensors, fast_mode=True)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@each
def test_each_op_is_known_to_torch(local, memory_format):
    case = replace(SMALL[local], memory_format=memory_format)
    x, weight, bias = (t.requires_grad_() for t in case.tensors())
    grad = torch.randn_like(case.ops.forward(x, weight, bias, *case.geometry)).requires_grad_()
    check_registration(case.ops.forward, (x, weight, bias, *case.geometry))
    check_registration(case.ops.forward, (x, weight, None, *case.geometry))
    check_registration(case.ops.input_grad, (grad, weight, case.input_size, *case.geometry))
    check_registration(case.ops.weight_grad, (grad, x, *case.geometry))


@each
def test_compiled_whole_with_its_backward(local):
    case = SMALL[local]
    tensors = [t.requires_grad_() for t in case.tensors()]

    def loss(x, weight, bias):
        return (case.ops.forward(x, weight, bias, *case.geometry) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    plain = torch.autograd.grad(loss(*tensors), tensors)
    for got, wanted in zip(torch.autograd.grad(compiled(*tensors), tensors), plain, strict=True):
        torch.testing.assert_close(got, wanted)


@each
def test_flops_are_counted(local):
    case = SMALL[local]
    x, weight, _ = (t.requires_grad_() for t in case.tensors())
    with FlopCounterMode(display=False) as counter:
        case.ops.forward(x, weight, None, *case.geometry).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * weight.numel()


@each
def test_no_images_in_and_none_out(local):
    case = replace(SMALL[local], batch=0)
    x, weight, bias = case.tensors(torch.float32)
    y = case.ops.forward(x, weight, bias, *case.geometry)
    assert y.shape == (0, case.all_outputs, *case.output_size)
    assert case.ops.input_grad(y, weight, case.input_size, *case.geometry).shape == x.shape
    assert case.ops.weight_grad(y, x, *case.geometry).shape == weight.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "empty", [{"inputs": 0}, {"outputs": 0}, {"size": (0, 7)}, {"size": (6, 0), "padding": (0, 0, 2, 1)}], ids=str
)
@each
def test_images_and_kernels_without_numbers(local, empty, dtype):
    """What nothing adds to is 0, or the bias: torch convolves 0 channels so, and pixels that are all padding."""
    case = replace(SMALL[local], **empty)
    assert_all_near(case, dtype)
    assert_all_near(replace(case, stride=(1, 1), dilation=(1, 1), memory_format=torch.channels_last), dtype)


@each
def test_numbers_that_no_image_reaches(local):
    case = SMALL[local]
    x, weight, bias = case.tensors()
    kernel, stride, padding, dilation, *groups = case.geometry
    far = 2**62
    kind = "does not fit" if kernels_loaded("cpu") else "must be"
    for wrong in ([far, 1], [1, far], [far - 1, 1]):
        with pytest.raises(RuntimeError, match=kind):
            case.ops.forward(x, weight, bias, kernel, stride, padding, wrong, *groups)
    if kernels_loaded("cpu"):
        for wrong in ([far, far, 0, 0], [0, 0, 2**30, 0]):
            with pytest.raises(RuntimeError, match="less than 2\\^30 pixels"):
                case.ops.forward(x, weight, bias, kernel, stride, wrong, dilation, *groups)
    one = case.ops.forward(x, weight[..., :1, :1], bias, kernel, [10, 10], padding, dilation, *groups)
    assert torch.equal(
        case.ops.forward(x, weight[..., :1, :1], bias, kernel, [far, far], padding, dilation, *groups), one
    )
    single = weight[:, :, :1, :, : case.size[0], : case.size[1]] if local else weight[:, :, :1]
    single = torch.ones((*single.shape[:-2], *case.size), dtype=single.dtype)
    alone = [1, 1], [1, 1], [0] * 4
    wanted = case.ops.forward(x, single, bias, *alone, [1, 1], *groups)
    assert torch.equal(case.ops.forward(x, single, bias, *alone, [far, far], *groups), wanted)


@each
def test_arguments_that_are_not_contiguous(local):
    case = SMALL[local]
    x, weight, bias = case.tensors()
    crooked = [x.mT.contiguous().mT, weight.mT.contiguous().mT, bias.repeat_interleave(2, 1)[:, ::2]]
    assert not any(t.is_contiguous() for t in crooked)
    wanted = case.ops.forward(x, weight, bias, *case.geometry)
    torch.testing.assert_close(case.ops.forward(*crooked, *case.geometry), wanted)
    grad = torch.ones(()).double().expand(wanted.shape)
    for op, plain, odd, size in (
        (case.ops.input_grad, weight, crooked[1], [case.input_size]),
        (case.ops.weight_grad, x, crooked[0], []),
    ):
        got = op(grad, odd, *size, *case.geometry)
        torch.testing.assert_close(got, op(grad.contiguous(), plain, *size, *case.geometry))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each
def test_values_that_are_no_numbers_stay_in_reach(local, dtype):
    """What one channel holds reaches its own outputs, or all of them, for pixels next to it."""
    case = Case(1, 1 if local else None, 3, 2, (9, 40), (3, 3), padding=(1, 1, 1, 1))
    x, weight, _ = (None if t is None else torch.zeros_like(t) for t in case.tensors(dtype))
    x[0, 1, 4, 20] = float("nan")
    y = case.ops.forward(x, weight, None, *case.geometry)
    bad = torch.zeros(y.shape, dtype=torch.bool)
    bad[0, slice(None) if local else slice(2, 4), 3:6, 19:22] = True
    assert torch.equal(y.isnan(), bad)
    grad = torch.zeros_like(y)
    grad[0, 1, 4, 20] = float("inf")
    bad = torch.zeros(x.shape, dtype=torch.bool)
    bad[0, slice(None) if local else 0, 3:6, 19:22] = True
    assert torch.equal(case.ops.input_grad(grad, weight, case.input_size, *case.geometry).isnan(), bad)
    bad = torch.zeros(weight.shape, dtype=torch.bool)
    (bad[0, :, :, 1] if local else bad[0, 1])[..., 4, 20] = True
    assert torch.equal(case.ops.weight_grad(grad, torch.zeros_like(x), *case.geometry).isnan(), bad)


@pytest.mark.parametrize("batch", [1, 5])
@each
def test_results_do_not_depend_on_the_number_of_threads(local, batch):
    case = Case(batch, *((2, 3, 5) if local else (None, 7, 2)), (40, 33), (3, 5), (1, 2), (1, 1, 2, 2), (1, 1), True)
    x, weight, bias = case.tensors(torch.float32)
    threads = torch.get_num_threads()

    def results(count):
        torch.set_num_threads(count)
        y = case.ops.forward(x, weight, bias, *case.geometry)
        return (
            y,
            case.ops.input_grad(y, weight, case.input_size, *case.geometry),
            case.ops.weight_grad(y, x, *case.geometry),
        )

    try:
        one, *others = (results(count) for count in (1, 2, 5, 1))
    finally:
        torch.set_num_threads(threads)
    for other in others:
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@each
def test_every_number_of_half_precision_is_read_and_rounded_as_torch_does(local, dtype):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 1, 256, 256)
    case = Case(1, 1 if local else None, 1, 1, (256, 256), (1, 1))
    kernels = every.view(case.tensors()[1].shape)
    same = case.ops.forward(torch.ones_like(every), kernels, None, *case.geometry)
    torch.testing.assert_close(same, every, rtol=0, atol=0, equal_nan=True)
    for factor in (0.37, 1e-3, 77.0):
        other = torch.full_like(every, factor)
        got = case.ops.weight_grad(every, other, *case.geometry).view(every.shape)
        torch.testing.assert_close(got, every * other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("wrong", ["pixels", "batch", "taps"])
@each
def test_kernels_that_do_not_fit_are_refused(local, wrong):
    case = SMALL[local]
    x, weight, _ = case.tensors()
    weight = {"pixels": weight[..., 1:], "batch": weight[:1], "taps": weight.narrow(2, 0, 5)}[wrong]
    with pytest.raises(RuntimeError):
        case.ops.forward(x, weight.repeat_interleave(3, 0) if wrong == "batch" else weight, None, *case.geometry)
