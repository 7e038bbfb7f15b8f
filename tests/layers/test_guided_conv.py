"""The functional forms of guided convolution against their index formulas."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from convswap.layers.functional import (
    guided_channelwise_conv2d,
    guided_conv2d,
    guided_depthwise_conv2d,
    guided_local_conv2d,
    separable_guided_conv2d,
)
from convswap.layers.guided_conv import choose_formula

from . import guided_formulas as formulas
from .guided_formulas import tensors
from .helpers import Geometry, few_examples, geometries, is_channels_last, normal, plain_conv, relative_error

NAMES = ("guided", "local", "low_rank", "channelwise", "depthwise", "separable")
every_form = pytest.mark.parametrize("name", NAMES)
biases = st.sampled_from(("none", "one", "each"))
TINY = Geometry((3, 2), (2, 2), (1, 2), (1, 1), (1, 1), 2, "circular", 2, 2, True, seed=5)
SMALL = Geometry((5, 4), (2, 3), (2, 1), (1, 1), (1, 2), 2, "circular", 4, 6, True, seed=5)


def suited(name, g):
    """The nearest geometry that this form has."""
    if name == "channelwise":
        return replace(g, groups=g.in_channels, out_channels=g.in_channels * (1 + g.seed % 2))
    return replace(g, kernel_size=(1, 1)) if name == "depthwise" else g


def run(name, g, x, *rest, **options):
    """One of the functional forms, on what `tensors` gives."""
    *weights, bias = rest
    geometry = {"stride": g.stride, "padding": g.padding, "dilation": g.dilation, "padding_mode": g.padding_mode}
    if name == "channelwise":
        return guided_channelwise_conv2d(x, *weights, bias, g.kernel_size, **geometry)
    if name == "depthwise":
        return guided_depthwise_conv2d(x, *weights, bias, groups=g.groups, **geometry)
    if name == "separable":
        return separable_guided_conv2d(x, *weights, bias, g.kernel_size, groups=g.groups, **geometry, **options)
    form = guided_conv2d if name == "guided" else guided_local_conv2d
    w = tuple(weights) if name == "low_rank" else weights[0]
    return form(x, w, bias, g.kernel_size, groups=g.groups, **geometry, **options)


def expected(name, g, *arguments):
    return getattr(formulas, name)(*arguments, g)


def needing_grad(arguments):
    return [None if value is None else value.requires_grad_() for value in arguments]


def gradients(y, arguments, g):
    present = [value for value in arguments if value is not None]
    return torch.autograd.grad(y, present, normal(g.generator(), *y.shape))


def check_value_and_gradients(name, g, arguments, **options):
    arguments = needing_grad(arguments)
    y, wanted = run(name, g, *arguments, **options), expected(name, g, *arguments)
    assert relative_error(y, wanted) < 1e-12
    for ours, theirs in zip(gradients(y, arguments, g), gradients(wanted, arguments, g), strict=True):
        assert relative_error(ours, theirs, least=1e-3) < 1e-12


@few_examples
@given(geometries(dims=2, channels=3), st.integers(1, 3), biases, st.booleans())
@every_form
def test_form_is_its_index_formula(name, g, batch, bias, channels_last):
    g = suited(name, g)
    arguments = tensors(name, g, batch, bias, rank=1 + g.seed % 3)
    if channels_last:
        arguments[0] = arguments[0].contiguous(memory_format=torch.channels_last)
    check_value_and_gradients(name, g, arguments)


@few_examples
@given(geometries(dims=2, channels=3), st.integers(1, 3), biases, st.booleans())
@pytest.mark.parametrize("formula", ["grouped", "loop", "taps", "matmul"])
def test_every_formula_of_the_per_sample_form(formula, g, batch, bias, channels_last):
    if formula == "matmul":
        g = replace(g, kernel_size=(1, 1))
    arguments = tensors("guided", g, batch, bias)
    if channels_last:
        arguments[0] = arguments[0].contiguous(memory_format=torch.channels_last)
    check_value_and_gradients("guided", g, arguments, formula=formula)


@every_form
def test_first_and_second_derivatives(name):
    g = suited(name, TINY)
    arguments = needing_grad(tensors(name, g, 2, "each"))
    function = lambda *values: run(name, g, *values)
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


@pytest.mark.parametrize("formula", ["grouped", "loop", "taps"])
def test_first_and_second_derivatives_of_every_formula(formula):
    arguments = needing_grad(tensors("guided", TINY, 2, "each"))
    function = lambda *values: run("guided", TINY, *values, formula=formula)
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


@every_form
def test_result_has_the_memory_format_of_the_input(name):
    g = suited(name, SMALL)
    for batch in (1, 3):
        x, *rest = tensors(name, g, batch, "each")
        y = run(name, g, x, *rest)
        last = run(name, g, x.contiguous(memory_format=torch.channels_last), *rest)
        assert y.is_contiguous()
        assert is_channels_last(last)
        assert not last.is_contiguous()
        assert relative_error(last, y) < 1e-12


@every_form
def test_without_batch(name):
    g = suited(name, SMALL)
    for bias in ("none", "one", "each"):
        x, *weights, offset = tensors(name, g, 1, bias)
        y = run(name, g, x, *weights, offset)
        assert torch.equal(run(name, g, x[0], *weights, offset), y[0])
        bare = [w if name == "low_rank" and i == 0 else w[0] for i, w in enumerate(weights)]
        assert torch.equal(run(name, g, x[0], *bare, offset), y[0])


@every_form
@pytest.mark.parametrize("bias", ["none", "one", "each"])
def test_empty_batch(name, bias):
    g = suited(name, SMALL)
    arguments = needing_grad(tensors(name, g, 0, bias))
    y = run(name, g, *arguments)
    assert y.shape == (0, g.out_channels, *formulas.output_size(g))
    y.sum().backward()
    assert not any(value.grad.any() for value in arguments if value is not None and value.grad is not None)


@every_form
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_dtypes(name, dtype, tolerance):
    g = suited(name, SMALL)
    arguments = [None if value is None else value.to(dtype) for value in tensors(name, g, 2, "each")]
    exact = expected(name, g, *(None if value is None else value.double() for value in arguments))
    y = run(name, g, *arguments)
    assert y.dtype == dtype
    assert relative_error(y, exact) < tolerance


@every_form
def test_autocast(name):
    g = suited(name, SMALL)
    arguments = [value.float() for value in tensors(name, g, 2, "each")]
    exact = run(name, g, *arguments)
    with torch.autocast("cpu", torch.bfloat16):
        y = run(name, g, *arguments)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, exact) < 3e-2


def test_half_precision_is_summed_in_single():
    g = replace(SMALL, size=(20, 20), kernel_size=(9, 9), stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1)
    x, w, _ = (None if value is None else value.half() for value in tensors("guided", g, 2))
    exact = expected("guided", g, x.double(), w.double(), None)
    rounded = relative_error(exact.half(), exact)
    assert relative_error(run("guided", g, x, w, None, formula="taps"), exact) < 2 * rounded


@every_form
def test_weights_may_be_views(name):
    g = suited(name, SMALL)
    x, *weights, bias = tensors(name, g, 2, "one")
    turned = [w.movedim(0, -1).contiguous().movedim(-1, 0) for w in weights]
    assert all(not w.is_contiguous() for w in turned)
    assert relative_error(run(name, g, x, *turned, bias), run(name, g, x, *weights, bias)) < 1e-13


@few_examples
@given(geometries(dims=2), st.integers(1, 3))
def test_kernel_that_is_the_same_everywhere_is_a_convolution(g, batch):
    """The per-pixel forms, with torch's own convolution as the judge."""
    x = g.input(batch)
    kernel = g.conv().weight.detach()
    wanted = plain_conv(x, kernel, None, g)
    w = kernel.flatten(2).permute(1, 2, 0)[None, ..., None, None].expand(batch, -1, -1, -1, *wanted.shape[2:])
    assert relative_error(run("local", g, x, w, None), wanted) < 1e-12
    if g.groups == g.in_channels:
        w = kernel.flatten(1)[None, ..., None, None].expand(batch, -1, -1, *wanted.shape[2:])
        assert relative_error(run("channelwise", g, x, w, None), wanted) < 1e-12


@pytest.mark.parametrize(
    ("batch", "channels", "out", "kernel", "size", "groups", "channels_last", "formula"),
    [
        (0, 8, 8, 3, 9, 1, False, "taps"),
        (1, 8, 8, 3, 9, 1, False, "loop"),
        (4, 8, 8, 1, 9, 1, False, "matmul"),
        (4, 8, 8, 1, 9, 8, True, "matmul"),
        (4, 64, 64, 3, 56, 1, False, "grouped"),
        (8, 512, 512, 3, 7, 1, False, "loop"),
        (8, 96, 96, 7, 28, 96, True, "loop"),
        (8, 96, 96, 7, 28, 96, False, "grouped"),
        (64, 8, 8, 3, 8, 1, True, "grouped"),
    ],
)
def test_choice_of_formula(batch, channels, out, kernel, size, groups, channels_last, formula):
    x = torch.empty(batch, channels, size, size)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    kernels = torch.empty(batch, out, channels // groups, kernel, kernel)
    assert choose_formula(x, kernels, groups, size * size) == formula


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_of_any_size_are_compiled_to_few_graphs(channels_last):
    """Where a turn for each sample is the cheapest, without a compiler."""
    torch._dynamo.reset()
    counter, chosen = CompileCounter(), set()
    compiled = torch.compile(guided_conv2d, backend=counter, fullgraph=True)
    for batch in range(2, 11):
        x, w = torch.randn(batch, 160, 9, 9), torch.randn(batch, 160, 9, 160)
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        chosen.add(choose_formula(x, w.permute(0, 3, 1, 2).unflatten(3, (3, 3)), 1, 81))
        y = compiled(x, w)
        assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        if batch in (2, 10):
            assert relative_error(y, guided_conv2d(x, w)) < 1e-5
    assert chosen == {"loop"} if channels_last else "loop" not in chosen
    assert counter.frame_count <= 3


X = torch.randn(2, 4, 5, 6)
BASIS, SHARES = torch.randn(3, 4, 9, 6), torch.randn(2, 3, 5, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guided_conv2d(X[0, 0], torch.randn(2, 4, 9, 6)), r"\(B, C, H, W\) or \(C, H, W\), got \(5, 6\)"),
        (lambda: guided_conv2d(X, torch.randn(4, 9, 6)), r"w must have 4 axes, got \(4, 9, 6\)"),
        (lambda: guided_conv2d(X, torch.randn(3, 4, 9, 6)), r"each of the 2 samples .* got 3: \(3, 4, 9, 6\)"),
        (lambda: guided_conv2d(X, torch.randn(2, 3, 9, 6)), r"input of 3 channels with groups=1, got .*\(2, 4, 5, 6\)"),
        (lambda: guided_conv2d(X, torch.randn(2, 4, 8, 6)), r"9 taps on axis 2 for a 3x3 kernel, got 8"),
        (
            lambda: guided_conv2d(X, torch.randn(2, 4, 9, 6), torch.randn(5)),
            r"bias must be \(6,\) or \(2, 6\), got \(5",
        ),
        (lambda: guided_conv2d(X, torch.randn(2, 4, 9, 6).double()), r"w must have the dtype .*float32.*float64"),
        (lambda: guided_conv2d(X, torch.randn(2, 2, 9, 5), groups=2), r"groups must divide the 5 output channels"),
        (lambda: guided_conv2d(X, torch.randn(2, 4, 9, 6), groups=0), r"groups=0"),
        (lambda: guided_conv2d(X, torch.randn(2, 4, 9, 6), stride=0), r"stride must be at least 1, got \(0, 0\)"),
        (lambda: guided_conv2d(X, torch.randn(2, 4, 9, 6), padding_mode="mirror"), r"mirror"),
        (lambda: guided_conv2d(X, torch.randn(2, 4, 9, 6), padding="full"), r"full"),
        (lambda: guided_conv2d(X, torch.randn(2, 4, 81, 6), None, 9, padding=1), r"spans \(9, 9\) .*\(5, 6\), padded"),
        (lambda: guided_conv2d(X, torch.randn(2, 4, 9, 6), formula="fft"), r"formula must be one of .*got 'fft'"),
        (lambda: guided_conv2d(X, torch.randn(2, 4, 9, 6), formula="matmul"), r'"matmul" is for 1x1 kernels, got \(3'),
        (lambda: guided_conv2d(X, torch.tensor(1.0)), r"w must have 4 axes, .*got \(\)"),
        (lambda: guided_conv2d(X, torch.randn(9)), r"w must have 4 axes, .*got \(9,\)"),
        (lambda: guided_conv2d(X, torch.randn(2, 4, 9, 6), torch.tensor(1.0)), r"\(6,\) or \(2, 6\), got \(\)"),
        (lambda: guided_conv2d(X, torch.randn(2, 4, 9, 0)), r"got 4 and 0: .*\(2, 4, 5, 6\) and w of .*\(2, 4, 9, 0\)"),
        (lambda: guided_conv2d(X[:, :0], torch.randn(2, 0, 9, 6)), r"got 0 and 6: .*\(2, 0, 5, 6\) and w of"),
        (lambda: guided_depthwise_conv2d(X[:, :0], torch.randn(2, 0, 6)), r"got 0 and 6: "),
        (lambda: guided_channelwise_conv2d(X[:, :0], torch.randn(2, 0, 9, 5, 6)), r"got 0 and 0: "),
        (lambda: guided_local_conv2d(X[0, :0], torch.randn(0, 9, 6, 5, 6)), r"got 0 and 6: .*\(0, 5, 6\) and w of"),
        (lambda: guided_local_conv2d(X, (BASIS[..., :0], SHARES)), r"got 4 and 0: "),
        (lambda: guided_local_conv2d(X, (BASIS,)), r"basis and coefficients.*got 1"),
        (lambda: guided_depthwise_conv2d(X, torch.randn(2, 4, 1, 6)), r"w must be \(B, Ci / groups, Co\)"),
        (lambda: guided_depthwise_conv2d(X, torch.randn(4, 6)), r"w must have 4 axes"),
        (
            lambda: guided_channelwise_conv2d(X, torch.randn(2, 6, 9, 5, 6)),
            r"multiple of the input's 4 channels, got 6",
        ),
        (lambda: guided_channelwise_conv2d(X, torch.randn(2, 4, 9, 5, 5)), r"output's 5x6 pixels, got \(2, 4, 9, 5, 5"),
        (lambda: guided_channelwise_conv2d(X, torch.randn(2, 4, 8, 5, 6)), r"9 taps on axis 2 .* got 8"),
        (lambda: guided_channelwise_conv2d(X, torch.randn(4, 9)), r"w must be \(B, Co, taps, Ho, Wo\)"),
        (lambda: guided_local_conv2d(X, torch.randn(2, 4, 9, 6)), r"w must be \(B, Ci / groups, taps, Co, Ho, Wo\)"),
        (lambda: guided_local_conv2d(X, torch.randn(2, 4, 9, 6, 6, 5)), r"output's 5x6 pixels"),
        (lambda: guided_local_conv2d(X, (BASIS[0], SHARES)), r"basis must be \(R, .*got \(4, 9, 6\)"),
        (lambda: guided_local_conv2d(X, (BASIS[:2], SHARES)), r"a coefficient for each kernel .*got 3 and 2"),
        (lambda: guided_local_conv2d(X, (BASIS, SHARES[..., :4])), r"the coefficients must have .*5x6 pixels"),
        (lambda: guided_local_conv2d(X, (BASIS.double(), SHARES)), r"the basis must have the dtype"),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
