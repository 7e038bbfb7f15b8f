"""Partial convolution, with masks and without, against loops over its windows."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convswap.layers import PartialConv2d
from convswap.layers.functional import partial_conv2d

from .helpers import few_examples, geometries, interior, is_channels_last, normal, plain_conv, relative_error, seeds


def first_pixel(g, axis):
    """Of the first window, where 0 is the first of the image, and how many windows there are."""
    extent = g.dilation[axis] * (g.kernel_size[axis] - 1) + 1
    if g.padding == "same":
        outputs = -(-g.size[axis] // g.stride[axis])
        return -(max((outputs - 1) * g.stride[axis] + extent - g.size[axis], 0) // 2), outputs
    amount = 0 if g.padding == "valid" else g.padding[axis]
    return -amount, (g.size[axis] + 2 * amount - extent) // g.stride[axis] + 1


def by_loops(x, weight, bias, g, mask=None):
    """Each output from the numbers that its window sees, and where there are any, (B, O, Ho, Wo)."""
    (top, height), (left, width) = first_pixel(g, 0), first_pixel(g, 1)
    seen = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.bool().expand_as(x)
    out, channels = weight.shape[:2]
    y, found = x.new_zeros(x.shape[0], out, height, width), torch.zeros(x.shape[0], out, height, width)
    for b, o, i, j in itertools.product(range(x.shape[0]), range(out), range(height), range(width)):
        group = o // (out // g.groups) * channels
        total, count = 0.0, 0
        for v, u in itertools.product(range(weight.shape[2]), range(weight.shape[3])):
            row, column = top + i * g.stride[0] + v * g.dilation[0], left + j * g.stride[1] + u * g.dilation[1]
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                for c in range(channels):
                    if seen[b, group + c, row, column]:
                        total, count = total + weight[o, c, v, u] * x[b, group + c, row, column], count + 1
        if count:
            y[b, o, i, j] = total * weight[o].numel() / count + (0 if bias is None else bias[o])
            found[b, o, i, j] = 1
    return y, found


small = geometries(dims=2, channels=2, min_size=1, taps=st.integers(1, 3))


def runs(g):
    return all(first_pixel(g, axis)[1] > 0 for axis in range(2))


@few_examples
@given(small.filter(runs))
def test_scaled_by_the_taps_on_the_image(g):
    conv, x = g.conv(), g.input()[:1]
    y = PartialConv2d.from_conv(conv)(x)
    expected, _ = by_loops(x, conv.weight, conv.bias, g)
    assert relative_error(y, expected) < 1e-13
    if g.padding_mode == "zeros":
        assert relative_error(interior(y, g), interior(plain_conv(x, conv.weight, conv.bias, g), g)) < 1e-13


mask_shapes = st.sampled_from(("BCHW", "1CHW", "B1HW", "11HW", "HW"))
shares, dtypes = st.sampled_from((0.2, 0.6)), st.sampled_from((torch.bool, torch.float64))


@few_examples
@given(small.filter(runs), mask_shapes, shares, dtypes, seeds)
def test_masked_pixels_do_not_count(g, axes, share, dtype, seed):
    conv, x = g.conv(), g.input()
    lengths = dict(zip("BCHW1", (*x.shape, 1), strict=True))
    mask = torch.rand([lengths[axis] for axis in axes], generator=torch.Generator().manual_seed(seed)) < share
    layer = PartialConv2d.from_conv(conv)
    y, result = layer(x, mask.to(dtype), return_mask=True)
    expected, found = by_loops(x, conv.weight, conv.bias, g, mask)
    assert relative_error(y, expected) < 1e-13
    assert torch.equal(layer(x, mask.to(dtype)), y)
    assert result.dtype == dtype
    assert result.shape[:2] == (
        2 if axes[0] == "B" else 1,
        g.out_channels if axes[1:2] == "C" and g.in_channels > 1 else 1,
    )
    assert torch.equal(result.double().expand_as(y), found.double())
    # Without a batch.
    own = mask if axes == "HW" else mask[0]
    first, first_result = layer(x[0], own, return_mask=True)
    assert relative_error(first, y[0]) < 1e-13
    assert torch.equal(first_result.bool(), result[0].bool())


def test_masks_are_handed_from_layer_to_layer():
    """Holes close by one pixel on each side, and what is beyond them never matters."""
    generator = torch.Generator().manual_seed(0)
    first, second = (PartialConv2d(4, 4, 3, padding=1, groups=2, dtype=torch.float64) for _ in range(2))
    x, mask = normal(generator, 1, 4, 9, 9), torch.ones(1, 4, 9, 9)
    mask[:, :2, 2:7, 2:7] = 0
    filled = torch.where(mask > 0, x, torch.nan)
    y, after = first(filled, mask, return_mask=True)
    z, last = second(y, after, return_mask=True)
    closed = lambda width: F.pad(torch.zeros(width, width), [(9 - width) // 2] * 4, value=1.0)
    assert torch.equal(after[0], torch.stack([closed(3)] * 2 + [torch.ones(9, 9)] * 2))
    assert torch.equal(last[0], torch.stack([closed(1)] * 2 + [torch.ones(9, 9)] * 2))
    expected = second(first(torch.where(mask > 0, x, 1e9), mask), after)
    assert torch.equal(z, expected)


def test_without_a_mask_all_outputs_have_seen_something():
    x = torch.randn(2, 3, 5, 6)
    for layer in (PartialConv2d(3, 4, 3, padding=1), PartialConv2d(3, 4, 3)):
        y, mask = layer(x, return_mask=True)
        assert torch.equal(y, layer(x))
        assert torch.equal(mask, torch.ones(1, 1, *y.shape[2:]))
        assert layer(x[0], return_mask=True)[1].shape == (1, *y.shape[2:])
    layer = PartialConv2d(3, 4, 1, padding=1)  # whose outermost windows lie outside
    y, mask = layer(x, return_mask=True)
    assert torch.equal(mask[0, 0], F.pad(torch.ones(5, 6), [1] * 4))
    assert not (y * (1 - mask)).any()


def test_taps_may_leave_a_small_image_between_them():
    """Dilated further than the image is wide, none may lie on it though the window does: there the output is 0."""
    layer, x = PartialConv2d(2, 3, 2, padding=1, dilation=2, dtype=torch.float64), torch.ones(1, 2, 1, 1).double()
    assert layer(x).shape == (1, 3, 1, 1)
    assert not layer(x).any()
    assert layer(torch.ones(1, 2, 2, 2).double()).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_masked_numbers_have_no_influence_and_no_gradient(value):
    x = torch.randn(1, 2, 6, 6)
    mask = torch.ones(6, 6)
    mask[1:3, 2:4] = 0
    x[..., 1:3, 2:4] = value
    x.requires_grad_()
    mask.requires_grad_()
    layer = PartialConv2d(2, 3, 3, padding=1)
    y = layer(x, mask)
    assert y.isfinite().all()
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert not x.grad[..., 1:3, 2:4].any()
    assert x.grad[..., 0, :].all()
    assert layer.weight.grad.isfinite().all()
    assert mask.grad is None


def test_derivatives():
    generator = torch.Generator().manual_seed(0)
    tensors = [normal(generator, *shape).requires_grad_() for shape in ((2, 4, 4, 3), (2, 2, 3, 2), (2,))]
    mask = torch.rand(2, 4, 4, 3, generator=generator) < 0.5
    for own in (None, mask):
        convolve = lambda x, w, b: partial_conv2d(x, w, b, (1, 2), "same", 1, 2, own)  # noqa: B023
        assert torch.autograd.gradcheck(convolve, tensors)
        assert torch.autograd.gradgradcheck(convolve, tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_counts_are_exact_in_half_precision(dtype, autocast):
    """What is seen of the first channel, which half precision can sum exactly, is scaled by a count that it cannot."""
    weight, x = torch.zeros(1, 64, 5, 5), torch.ones(1, 64, 12, 12)
    weight[:, 0] = 1 / 32
    some = torch.rand(1, 64, 12, 12, generator=torch.Generator().manual_seed(0)) < 0.7
    for mask in (None, some, some[0, 0] * 0.5):
        expected = partial_conv2d(x.double(), weight.double(), None, 1, 2, mask=mask)
        if autocast:
            with torch.autocast("cpu", dtype):
                y = partial_conv2d(x, weight, None, 1, 2, mask=mask)
        else:
            y = partial_conv2d(x.to(dtype), weight.to(dtype), None, 1, 2, mask=mask)
        assert y.dtype == dtype
        errors = (y.double() - expected).abs() / expected
        assert errors.max() < 0.501 * torch.finfo(dtype).eps  # of a single rounding


def test_channels_last_stays_so():
    layer, x = PartialConv2d(3, 4, 3, padding=1), torch.randn(2, 3, 6, 5)
    for mask in (None, torch.rand(2, 3, 6, 5) < 0.5):
        y = layer(x.to(memory_format=torch.channels_last), mask)
        assert is_channels_last(y)
        assert relative_error(y, layer(x, mask)) < 1e-6


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = PartialConv2d(4, 6, 3, 2, 1, groups=2)

    def forward(self, x, mask):
        return self.layer(x, mask, return_mask=True)


def test_compiled_traced_and_exported_with_a_mask():
    module, x, mask = Masked(), torch.randn(2, 4, 9, 8), torch.rand(2, 4, 9, 8) < 0.4
    expected = module(x, mask)
    torch._dynamo.reset()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (x, mask), dynamic_shapes=({0: batch}, {0: batch}))
    for runs in (
        torch.compile(module, fullgraph=True, backend="aot_eager"),
        torch.fx.symbolic_trace(module),
        program.module(),
    ):
        y, result = runs(x, mask)
        assert relative_error(y, expected[0]) < 1e-6
        assert torch.equal(result, expected[1])
    more = torch.cat((x, x.flip(2))), torch.cat((mask, mask.flip(2)))
    assert relative_error(program.module()(*more)[0], module(*more)[0]) < 1e-6


def test_exported_for_images_of_any_size():
    layer, x = PartialConv2d(3, 4, 3, 2, 2, dilation=3), torch.randn(2, 3, 12, 9)
    axes = ((0, "batch", 1), (2, "height", 5), (3, "width", 5))
    dims = {axis: torch.export.Dim(name, min=least, max=64) for axis, name, least in axes}
    program = torch.export.export(layer, (x,), dynamic_shapes=(dims,)).module()
    for size in ((5, 3, 9, 20), (4, 3, 31, 8)):
        other = torch.randn(size)
        assert relative_error(program(other), layer(other)) < 1e-6
    convolutions = [node for node in program.graph.nodes if "conv" in str(node.target)]
    assert len(convolutions) == 1


@pytest.mark.parametrize("masked", [False, True])
def test_onnx(masked, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x, mask = torch.randn(2, 4, 9, 8), torch.rand(2, 4, 9, 8) < 0.4
    module, inputs = (Masked(), (x, mask)) if masked else (PartialConv2d(4, 6, 3, 2, 1), (x,))
    path, batch = tmp_path / "layer.onnx", torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = tuple({0: batch} for _ in inputs)
        torch.onnx.export(module, inputs, path, dynamo=True, verbose=False, dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    more = [torch.cat((value, value.flip(0)[:1])) for value in inputs]
    given_values = {own.name: value.numpy() for own, value in zip(session.get_inputs(), more, strict=True)}
    results = [torch.from_numpy(value) for value in session.run(None, given_values)]
    expected = module(*more) if masked else (module(*more),)
    assert relative_error(results[0], expected[0]) < 1e-5
    assert not masked or torch.equal(results[1], expected[1])


@pytest.mark.parametrize(
    "shape", [(5, 6), (1, 3, 6, 6), (2, 2, 6, 5), (3, 3, 6, 5), (3, 6, 5), (1, 1, 1, 6, 5)], ids=str
)
def test_masks_that_do_not_fit_are_named(shape):
    message = r"\(2, 3, 6, 5\) must be \(1 or 2, 1 or 3, 6, 5\) or \(6, 5\), got \(" + ", ".join(map(str, shape))
    with pytest.raises(ValueError, match=message):
        PartialConv2d(3, 4, 3, padding=1)(torch.randn(2, 3, 6, 5), torch.ones(shape))


def test_mask_for_one_image():
    with pytest.raises(ValueError, match=r"\(3, 6, 5\) must be \(1 or 3, 6, 5\) or \(6, 5\), got \(2, 6, 5\)"):
        PartialConv2d(3, 4, 3, padding=1)(torch.randn(3, 6, 5), torch.ones(2, 6, 5))
    with pytest.raises(ValueError, match=r"on the device of the input, cpu, got meta"):
        PartialConv2d(3, 4, 3, padding=1)(torch.randn(3, 6, 5), torch.ones(6, 5, device="meta"))
