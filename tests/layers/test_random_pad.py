"""Padding by noise: what is drawn, from which pixels, and by which generator."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convswap.layers import RandomPadConv2d
from convswap.layers.functional import random_pad2d, random_pad_conv2d

from .helpers import few_examples, geometries, interior, is_channels_last, plain_conv, relative_error, seeds


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def padded_by_loops(image, widths, generator):
    """(B, C, H, W) of a numpy array, pixel by pixel."""
    (top, bottom), (left, right) = widths
    batch, channels, height, width = image.shape
    shapes = [(top, left + width + right), (bottom, left + width + right)]
    shapes += [(top + height + bottom, left), (top + height + bottom, right)]
    above, below, before, after = [
        torch.randn(shape, generator=generator).double().numpy() if 0 not in shape else None for shape in shapes
    ]
    result = np.full((batch, channels, *shapes[2][:1], *shapes[0][1:]), np.nan)
    for b in range(batch):
        for c in range(channels):
            own = image[b, c]
            strips = own[: top + 1], own[max(height - bottom - 1, 0) :], own[:, : left + 1]
            means, deviations = [], []
            for strip in (*strips, own[:, max(width - right - 1, 0) :]):
                values = strip.ravel()
                mean = sum(values) / len(values)
                means.append(mean)
                squares = sum((value - mean) ** 2 for value in values)
                deviations.append((squares / (len(values) - 1)) ** 0.5 if len(values) > 1 else 0.0)
            for y in range(-top, height + bottom):
                for x in range(-left, width + right):
                    row, column = y + top, x + left
                    put = []
                    if y < 0:
                        put.append(means[0] + deviations[0] * above[row, column])
                    if y >= height:
                        put.append(means[1] + deviations[1] * below[y - height, column])
                    if x < 0:
                        put.append(means[2] + deviations[2] * before[row, column])
                    if x >= width:
                        put.append(means[3] + deviations[3] * after[row, x - width])
                    result[b, c, row, column] = sum(put) / len(put) if put else own[y, x]
    return torch.from_numpy(result)


sides = st.tuples(st.integers(0, 3), st.integers(0, 3))


@few_examples
@given(seeds, st.integers(1, 5), st.integers(1, 5), sides, sides)
def test_noise_has_mean_and_deviation_of_the_outermost_rows_and_columns(seed, height, width, rows, columns):
    image = torch.randn(2, 3, height, width, generator=seeded(seed), dtype=torch.float64) * 3 + 1
    padded = random_pad2d(image, (rows, columns), seeded(seed))
    assert relative_error(padded, padded_by_loops(image.numpy(), (rows, columns), seeded(seed))) < 1e-13


def test_one_number_is_for_all_sides_and_two_are_for_the_axes():
    image = torch.randn(1, 2, 5, 6)
    assert torch.equal(random_pad2d(image, 2, seeded()), random_pad2d(image, ((2, 2), (2, 2)), seeded()))
    assert torch.equal(random_pad2d(image, (1, 2), seeded()), random_pad2d(image, ((1, 1), (2, 2)), seeded()))
    assert torch.equal(random_pad2d(image, 0), image)


@few_examples
@given(geometries(dims=2))
def test_layer_convolves_the_padded_image(g):
    conv, x = g.conv(), g.input()
    layer = RandomPadConv2d.from_conv(conv, noise_generator=seeded(g.seed))
    y, generator = layer(x), seeded(g.seed)
    extents = [d * (k - 1) + 1 for k, d in zip(g.kernel_size, g.dilation, strict=True)]
    if g.padding == "same":
        missing = [
            max((-(-size // step) - 1) * step + extent - size, 0)
            for size, step, extent in zip(g.size, g.stride, extents, strict=True)
        ]
        widths = [(amount // 2, amount - amount // 2) for amount in missing]
    else:
        widths = [(0, 0)] * 2 if g.padding == "valid" else [(amount, amount) for amount in g.padding]
    padded = padded_by_loops(x.numpy(), widths, generator)
    expected = F.conv2d(padded, conv.weight, conv.bias, g.stride, 0, g.dilation, g.groups)
    assert relative_error(y, expected) < 1e-12
    inner = interior(plain_conv(x, conv.weight, conv.bias, g), g)
    assert relative_error(interior(y, g), inner) < 1e-12


@pytest.mark.parametrize("training", [True, False])
def test_each_call_draws_anew_and_a_seed_repeats_it(training):
    layer, x = RandomPadConv2d(3, 4, 3, padding=1).train(training), torch.randn(2, 3, 6, 6)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    border = torch.ones(6, 6, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert (first != second)[..., border].all()
    assert torch.equal(first[..., 1:-1, 1:-1], second[..., 1:-1, 1:-1])
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)


def test_own_generator_is_used_and_the_global_one_is_not():
    x = torch.randn(2, 3, 6, 6)
    layer = RandomPadConv2d(3, 4, 3, padding=1, noise_generator=seeded(5))
    before = torch.get_rng_state()
    first = layer(x)
    assert torch.equal(torch.get_rng_state(), before)
    layer.noise_generator.manual_seed(5)
    assert torch.equal(layer(x), first)
    layer.noise_generator = seeded(5)
    assert torch.equal(layer(x), first)
    layer.noise_generator = None
    assert layer.noise_generator is None
    assert not torch.equal(layer(x), first)
    assert not torch.equal(torch.get_rng_state(), before)


def test_noise_is_the_same_for_all_samples_channels_and_dtypes():
    pixels = torch.randn(1, 1, 4, 5)
    image = torch.cat([pixels, 2 * pixels + 1], 1).repeat(3, 1, 1, 1)
    padded = random_pad2d(image, 2, seeded())
    assert relative_error(padded[1:], padded[:1].expand(2, -1, -1, -1)) < 1e-6
    assert relative_error(padded[:, 1], 2 * padded[:, 0] + 1) < 1e-6
    assert relative_error(padded, random_pad2d(image.double(), 2, seeded())) < 1e-6


def test_gradients_flow_through_mean_and_deviation():
    image = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    pad = lambda x: random_pad2d(x, ((1, 2), (0, 1)), seeded())
    assert torch.autograd.gradcheck(pad, image)
    assert torch.autograd.gradgradcheck(pad, image)
    weight = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    convolve = lambda x, w: random_pad_conv2d(x, w, None, 2, "same", 1, 2, seeded())
    assert torch.autograd.gradcheck(convolve, (image, weight))


@pytest.mark.parametrize("value", [0.0, 0.1, -1e30])
def test_constant_images_are_continued_as_such_with_finite_gradients(value):
    image = torch.full((1, 2, 5, 4), value, requires_grad=True)
    padded = random_pad2d(image, 2)
    assert torch.equal(padded, torch.full((1, 2, 9, 8), value))
    (gradient,) = torch.autograd.grad((padded * torch.randn(9, 8)).sum(), image, create_graph=True)
    assert gradient.isfinite().all()
    second = torch.autograd.grad(gradient.square().sum(), image, allow_unused=True, materialize_grads=True)[0]
    assert second.isfinite().all()


def test_a_single_pixel_is_repeated():
    image = torch.randn(2, 3, 1, 1, requires_grad=True)
    padded = random_pad2d(image, (1, 2))
    assert relative_error(padded, image.expand(2, 3, 3, 5)) < 1e-6
    padded.sum().backward()
    assert relative_error(image.grad, torch.full_like(image, 15)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_single_and_rounded_once(dtype):
    image = (torch.randn(1, 4, 40, 40) * 0.5 + 300).to(dtype)
    padded = random_pad2d(image, 1, seeded())
    assert padded.dtype == dtype
    expected = padded_by_loops(image.double().numpy(), [(1, 1)] * 2, seeded())
    errors = (padded.double() - expected).abs() / expected.abs()
    assert errors.max() < 0.501 * torch.finfo(dtype).eps


def test_channels_last_stays_so():
    image = torch.randn(2, 3, 6, 5).to(memory_format=torch.channels_last)
    for pad in (1, (0, 1), ((1, 0), (0, 0))):
        padded = random_pad2d(image, pad, seeded())
        assert is_channels_last(padded)
        assert relative_error(padded, random_pad2d(image.contiguous(), pad, seeded())) < 1e-6


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_draw_what_the_layer_would_have_drawn(copied):
    layer, x = RandomPadConv2d(3, 4, 3, padding=1, noise_generator=seeded()), torch.randn(2, 3, 6, 6)
    layer(x)
    other = copied(layer)
    assert other.noise_generator is not layer.noise_generator
    assert torch.equal(other(x), layer(x))
    layer(x)
    assert not torch.equal(other(x), layer(x))


def test_generator_is_no_state_and_moves_nowhere():
    layer = RandomPadConv2d(3, 4, 3, padding=1, noise_generator=seeded())
    assert set(layer.state_dict()) == {"weight", "bias"}
    layer.load_state_dict(nn.Conv2d(3, 4, 3).state_dict())
    assert layer.double()(torch.randn(1, 3, 5, 5).double()).dtype == torch.float64
    assert layer.to("meta")(torch.randn(1, 3, 5, 5, dtype=torch.float64, device="meta")).is_meta
    assert layer.noise_generator.device.type == "cpu"
    assert "padding_mode='random'" in repr(layer)
    assert "NoiseSource(device='cpu')" in repr(layer)


def test_traced_with_its_generator():
    layer, x = RandomPadConv2d(3, 4, 3, padding=1, noise_generator=seeded(2)), torch.randn(2, 3, 6, 6)
    expected = layer(x)
    traced = torch.fx.symbolic_trace(nn.Sequential(layer, nn.ReLU()))
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [random_pad_conv2d]
    layer.noise_generator.manual_seed(2)
    assert torch.equal(traced(x), expected.relu())
    assert not torch.equal(traced(x), expected.relu())


def test_compiled_with_its_generator():
    layer, x = RandomPadConv2d(3, 4, 3, padding=1, noise_generator=seeded(2)), torch.randn(2, 3, 6, 6)
    expected, second = layer(x), layer(x)
    layer.noise_generator.manual_seed(2)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager")
    assert relative_error(compiled(x), expected) < 1e-6
    assert relative_error(compiled(x), second) < 1e-6


@pytest.mark.parametrize("padding", [1, (0, 2)], ids=str)
def test_exported_with_free_sizes(padding):
    layer, x = RandomPadConv2d(3, 4, 3, padding=padding), torch.randn(2, 3, 9, 8)
    free = {2 + axis: torch.export.Dim(f"size{axis}", min=4, max=64) for axis in range(2)}
    program = torch.export.export(layer, (x,), dynamic_shapes=(free,)).module()
    for size in ((4, 5), (5, 4), (6, 20)):
        other = torch.randn(2, 3, *size)
        torch.manual_seed(0)
        expected = layer(other)
        torch.manual_seed(0)
        assert relative_error(program(other), expected) < 1e-6


def test_exported_with_its_generator():
    layer, x = RandomPadConv2d(3, 4, 3, padding=1, noise_generator=seeded(2)), torch.randn(2, 3, 6, 6)
    expected, second = layer(x), layer(x)
    try:
        program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    except NotImplementedError:
        pytest.skip("this version of torch exports no generators")
    layer.noise_generator.manual_seed(2)
    assert relative_error(program(torch.cat((x, x)))[:2], expected) < 1e-6
    assert relative_error(program(x), second) < 1e-6


def test_onnx_draws_each_time(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer, x, path = RandomPadConv2d(3, 4, 3, padding=1), torch.randn(2, 3, 6, 6), tmp_path / "layer.onnx"
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(layer, (x,), path, dynamo=True, verbose=False, dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    more = torch.cat((x, x[:1]))
    name, expected = session.get_inputs()[0].name, layer(more)
    first, second = (torch.from_numpy(session.run(None, {name: more.numpy()})[0]) for _ in range(2))
    assert relative_error(first[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1]) < 1e-5
    assert (first[..., 0, :] != second[..., 0, :]).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.randn(3, 5, 5)}, r"\(B, C, H, W\), floating-point, got \(3, 5, 5\)"),
        ({"input": torch.ones(1, 1, 5, 5, dtype=torch.int64)}, r"torch.int64"),
        ({"input": torch.randn(1, 3, 0, 5)}, r"without pixels .* \(1, 3, 0, 5\)"),
        ({"pad": -1}, "pad must not be negative, got -1"),
        ({"pad": (1, 2, 3)}, r"pad must be one number, .* got \(1, 2, 3\)"),
    ],
)
def test_what_cannot_be_padded_is_said(changes, message):
    with pytest.raises(ValueError, match=message):
        random_pad2d(**{"input": torch.randn(1, 3, 5, 5), "pad": 1, **changes})


def test_other_generators_are_refused():
    with pytest.raises(TypeError, match=r"torch\.Generator, got int"):
        RandomPadConv2d(3, 4, 3, padding=1, noise_generator=3)
    with pytest.raises(ValueError, match=r"\(O, C / groups, kh, kw\), got \(4, 3, 3\)"):
        random_pad_conv2d(torch.randn(3, 9), torch.randn(4, 3, 3))
