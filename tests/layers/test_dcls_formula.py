"""All formulas give the same numbers and gradients; which one is taken by itself; forcing one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convswap.layers import Dcls1d, Dcls2_1d, Dcls2d, Dcls2dK1d
from convswap.layers.functional import dcls_conv
from convswap.layers.ops._load import load_kernels

from .helpers import few_examples, normal, relative_error, seeds

needs_kernels = pytest.mark.skipif(
    not load_kernels("cpu"), reason="without compiled kernels there is nothing to choose"
)


@st.composite
def cases(draw):
    dims = draw(st.sampled_from((1, 2, 2)))
    each = lambda numbers: tuple(draw(numbers) for _ in range(dims))
    channels = draw(st.integers(1, 5))
    return {
        "version": draw(st.sampled_from(("v0", "v1", "max", "gauss"))),
        "size": each(st.integers(7, 20)),
        "grid": each(st.integers(1, 9)),
        "stride": each(st.sampled_from((1, 1, 2, 3))),
        "padding": draw(st.sampled_from(("same", each(st.integers(4, 6))))),
        "padding_mode": draw(st.sampled_from(("zeros", "zeros", "reflect", "circular"))),
        "shape": (channels * draw(st.integers(1, 3)), 1, draw(st.integers(1, 8))),
        "channels": channels,
        "bias": draw(st.booleans()),
        "batch": draw(st.sampled_from(((), (1,), (3,)))),
        "seed": draw(seeds),
    }


@few_examples
@given(cases())
def test_formulas_agree(case):
    generator = torch.Generator().manual_seed(case["seed"])
    dims, shape = len(case["size"]), case["shape"]
    x = normal(generator, *case["batch"], case["channels"], *case["size"])
    weight, P = normal(generator, *shape), 2 * normal(generator, dims, *shape)
    SIG = normal(generator, dims, *shape) if case["version"] in ("max", "gauss") else None
    bias = normal(generator, shape[0]) if case["bias"] else None
    inputs = [value.requires_grad_() for value in (x, weight, P, SIG, bias) if value is not None]
    results = []
    for formula in ("dense", "depthwise", "sparse") if SIG is None else ("dense", "depthwise"):
        geometry = case["stride"], case["padding"], case["grid"], case["channels"], case["padding_mode"]
        y = dcls_conv(x, weight, P, SIG, bias, *geometry, case["version"], formula=formula)
        results.append((y, *torch.autograd.grad(y.sin().sum(), inputs)))
    for result in results[1:]:
        for value, expected in zip(result, results[0], strict=True):
            # Of one cell, all of an element is there wherever it is: its gradients are what rounding leaves of 0.
            assert relative_error(value, expected, least=1e-3) < 1e-10


@pytest.mark.parametrize("flat_dim", [0, 1])
def test_formulas_agree_on_flat_kernels(flat_dim):
    layer = Dcls2dK1d(3, 6, 4, padding=2, groups=3, flat_dim=flat_dim, dtype=torch.float64)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    ys = [layer(x) for layer.formula in ("dense", "depthwise", "sparse", "auto")]
    assert all(relative_error(y, ys[0]) < 1e-12 for y in ys)


@pytest.mark.parametrize("formula", ["dense", "depthwise", "sparse"])
def test_every_formula_with_autocast_compile_and_export(formula):
    layer = Dcls2d(4, 4, 5, padding=3, groups=4)
    layer.formula = formula
    assert f"formula={formula!r}" in repr(layer)
    x = torch.randn(2, 4, 9, 8)
    y = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    assert relative_error(low, y) < 0.03
    torch._dynamo.reset()
    assert relative_error(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), y) < 1e-5
    assert relative_error(torch.export.export(layer, (x,)).module()(x), y) < 1e-5
    channels_last = layer(x.to(memory_format=torch.channels_last))
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(channels_last, y) < 1e-5
    for dtype in (torch.bfloat16, torch.float16):
        assert relative_error(layer.to(dtype)(x.to(dtype)), y) < 0.03
        layer.float()


def test_a_formula_that_does_not_fit_is_refused():
    x = torch.randn(1, 4, 9, 9)
    for layer, formula, told in (
        (Dcls2d(4, 4, 5), "depthwise", "one of auto, dense here, got 'depthwise'"),
        (Dcls2d(4, 4, 5, groups=4, version="gauss"), "sparse", "one of auto, dense, depthwise here, got 'sparse'"),
        (Dcls2_1d(4, 4, 5, dense_kernel_size=3, groups=4), "sparse", "got 'sparse'"),
        (Dcls2d(4, 4, 5, groups=4), "fft", "one of auto, dense, depthwise, sparse here, got 'fft'"),
    ):
        layer.formula = formula
        with pytest.raises(ValueError, match=told):
            layer(x)


def taken(layer, x):
    """Names of the operators that run."""
    with torch.profiler.profile() as profile:
        layer(x)
    return {event.key for event in profile.key_averages()}


@needs_kernels
def test_large_depthwise_kernels_get_their_own_convolution():
    x = torch.randn(1, 32, 30, 30)
    ops = taken(Dcls2d(32, 32, 34, padding=8, dilated_kernel_size=17, groups=32, version="gauss"), x)
    assert "convswap::large_depthwise_conv2d" in ops
    assert "aten::conv2d" not in ops
    ops = taken(Dcls2d(32, 32, 5, padding=15, dilated_kernel_size=31, groups=32), x)
    assert "convswap::dcls_sparse_depthwise_conv2d" in ops
    assert "convswap::dcls_scatter" not in ops
    ops = taken(Dcls1d(32, 32, 5, padding=15, dilated_kernel_size=31, groups=32, version="max"), x[:, :, 0])
    assert "convswap::large_depthwise_conv2d" in ops


def test_dense_layers_run_torch_s_convolution():
    ops = taken(Dcls2d(8, 8, 5, padding=3), torch.randn(1, 8, 9, 9))
    assert "aten::conv2d" in ops


def test_a_dtype_that_does_not_fit_is_refused_by_every_formula():
    layer = Dcls2d(4, 4, 2, padding=8, dilated_kernel_size=17, groups=4, dtype=torch.bfloat16)
    for layer.formula in ("auto", "dense", "depthwise", "sparse"):
        with pytest.raises((ValueError, RuntimeError), match="type"):
            layer(torch.randn(1, 4, 56, 56))


@pytest.mark.parametrize("formula", ["auto", "dense", "depthwise", "sparse"])
def test_every_formula_on_meta_and_with_a_huge_stride(formula):
    layer = Dcls2d(4, 4, 3, (1, 2**22), 1, 3, 4)
    layer.formula = formula
    x = torch.randn(1, 4, 9, 9)
    y = layer(x)
    assert relative_error(y, layer.freeze()(x)) < 1e-5
    assert layer.to("meta")(x.to("meta")).shape == y.shape
