"""A kernel for each distance to the interior, against all kernels convolved everywhere and chosen from."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter

from convswap.layers import ExplicitBoundaryConv2d
from convswap.layers.explicit_boundary_conv import boundary_distances
from convswap.layers.functional import explicit_boundary_conv2d

from .helpers import few_examples, geometries, is_channels_last, normal, plain_conv, relative_error


def reach(g, axis):
    """Pixels that windows can lie outside before and behind, on images of any size."""
    extent = g.dilation[axis] * (g.kernel_size[axis] - 1) + 1
    if g.padding != "same":
        return (0, 0) if g.padding == "valid" else (g.padding[axis],) * 2
    sizes = range(1, 4 * extent * g.stride[axis])
    totals = [max((-(-size // g.stride[axis]) - 1) * g.stride[axis] + extent - size, 0) for size in sizes]
    return max(total // 2 for total in totals), max(total - total // 2 for total in totals)


def distances(g, axis, outputs):
    """Of each output of an axis."""
    size, extent = g.size[axis], g.dilation[axis] * (g.kernel_size[axis] - 1) + 1
    if g.padding == "same":
        before = max((outputs - 1) * g.stride[axis] + extent - size, 0) // 2
    else:
        before = 0 if g.padding == "valid" else g.padding[axis]
    found = []
    for output in range(outputs):
        first = output * g.stride[axis] - before
        low, high = max(-first, 0), max(first + extent - size, 0)
        found.append(-low if low >= high else high)
    return torch.tensor(found)


def chosen(x, layer, g):
    """Every kernel's convolution of everything, each where its distances are."""
    y = plain_conv(x, layer.weight, layer.bias, g)
    rows, columns = (distances(g, axis, y.shape[2 + axis]) for axis in range(2))
    (top, bottom), (left, right) = reach(g, 0), reach(g, 1)
    kernels = 0
    for row in range(-top, bottom + 1):
        for column in range(-left, right + 1):
            if (row, column) == (0, 0):
                continue
            own = slice(kernels * g.out_channels, (kernels + 1) * g.out_channels)
            bias = None if layer.bias is None else layer.boundary_bias[own]
            other = plain_conv(x, layer.boundary_weight[own], bias, g)
            y = torch.where((rows == row)[:, None] & (columns == column), other, y)
            kernels += 1
    held = 0 if layer.boundary_weight is None else layer.boundary_weight.shape[0]
    assert kernels * g.out_channels == held
    return y


def random_layer(g):
    """With kernels that have nothing in common."""
    layer = ExplicitBoundaryConv2d.from_conv(g.conv())
    generator = g.generator()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(normal(generator, *parameter.shape))
    return layer


def runs(g):
    amounts = (0, 0) if g.padding == "valid" else g.padding
    extents = [d * (k - 1) + 1 for k, d in zip(g.kernel_size, g.dilation, strict=True)]
    return g.padding == "same" or all(
        size + 2 * amount >= extent for size, amount, extent in zip(g.size, amounts, extents, strict=True)
    )


def zero_padded(**arguments):
    return geometries(dims=2, **arguments).filter(lambda g: g.padding_mode == "zeros" and runs(g))


@few_examples
@given(st.one_of(zero_padded(min_size=1), zero_padded(min_size=6)))
def test_each_output_has_the_kernel_of_its_distances(g):
    layer, x = random_layer(g), g.input()
    expected = chosen(x, layer, g)
    assert relative_error(layer(x), expected) < 1e-12
    assert relative_error(layer(x[0]), expected[0]) < 1e-12


def test_distances_of_a_small_convolution():
    """Written out: 5 rows, padded by 2, two of which are taken at a time and with a stride of 2."""
    assert boundary_distances((1, 2), 1) == [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    assert boundary_distances((1, 3), (0, 2), 2) == [(0, -2), (0, -1), (0, 1), (0, 2)]
    assert boundary_distances((1, 4), "same") == [(0, -1), (0, 1), (0, 2)]
    assert boundary_distances(3, "valid") == []
    layer = ExplicitBoundaryConv2d(1, 1, (2, 1), (2, 1), (2, 0))
    assert layer.boundary_distances == [(-2, 0), (-1, 0), (1, 0), (2, 0)]
    with torch.no_grad():
        layer.boundary_bias.copy_(torch.tensor([-2.0, -1.0, 1.0, 2.0]))
        layer.bias.zero_()
    y = layer(torch.zeros(1, 1, 5, 1)).flatten()
    assert y.tolist() == [-2.0, 0.0, 0.0, 1.0]  # windows from rows -2, 0, 2 and 4
    # On a single row the second window, from row 0, ends 1 behind; the first lies 2 before.
    assert layer(torch.zeros(1, 1, 1, 1)).flatten().tolist() == [-2.0, 1.0]


def test_a_window_beyond_both_sides_counts_for_the_larger_overrun():
    layer = ExplicitBoundaryConv2d(1, 1, (4, 1), padding=(2, 0))
    with torch.no_grad():
        layer.bias.zero_()
        layer.boundary_bias.copy_(torch.tensor([-2.0, -1.0, 1.0, 2.0]))
    # Two rows: windows -2..1, -1..2 and 0..3. The second lies one beyond each: a tie, which goes to the first side.
    assert layer(torch.zeros(1, 1, 2, 1)).flatten().tolist() == [-2.0, -1.0, 2.0]


def test_parameters_and_their_start():
    conv = nn.Conv2d(4, 6, (3, 5), padding=(1, 2), groups=2)
    layer = ExplicitBoundaryConv2d.from_conv(conv)
    assert layer.boundary_weight.shape == (14 * 6, 2, 3, 5)
    assert torch.equal(layer.boundary_weight, conv.weight.repeat(14, 1, 1, 1))
    assert torch.equal(layer.boundary_bias, conv.bias.repeat(14))
    assert set(layer.new_parameters()) == {"boundary_weight", "boundary_bias"}
    bare = ExplicitBoundaryConv2d(4, 6, 3, padding=1, bias=False)
    assert bare.boundary_bias is None
    assert set(bare.state_dict()) == {"weight", "boundary_weight"}
    plain = ExplicitBoundaryConv2d(4, 6, 3)
    assert plain.boundary_weight is None
    assert set(plain.state_dict()) == {"weight", "bias"}
    x = torch.randn(2, 4, 5, 5)
    assert relative_error(plain(x), F.conv2d(x, plain.weight, plain.bias)) < 1e-6


def test_reset_starts_all_kernels_from_the_interior_one_in_place():
    layer = ExplicitBoundaryConv2d(2, 3, 3, padding=1)
    held = layer.boundary_weight
    before = held.detach().clone()
    layer.reset_parameters()
    assert layer.boundary_weight is held
    assert not torch.equal(held, before)
    assert torch.equal(held, layer.weight.repeat(8, 1, 1, 1))
    assert torch.equal(layer.boundary_bias, layer.bias.repeat(8))


def test_every_kernel_that_occurs_is_trained_and_no_other():
    torch.manual_seed(0)
    layer, x = ExplicitBoundaryConv2d(2, 3, 3, 2, 2), torch.randn(4, 2, 8, 8)
    start = copy.deepcopy(layer.state_dict())
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(x).square().mean().backward()
    optimiser.step()
    # Windows begin at -2, 0, 2, 4 and 6, where one ends at 8 and the next would at 10: distances -2, 0 and 1.
    occur = {-2, 0, 1}
    for name in ("boundary_weight", "boundary_bias"):
        moved = (getattr(layer, name) - start[name]).unflatten(0, (24, 3)).flatten(1).abs().amax(1) > 0
        expected = [row in occur and column in occur for row, column in layer.boundary_distances]
        assert moved.tolist() == expected
    assert not torch.equal(layer.weight, start["weight"])


def test_derivatives():
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 2, 2, 4), (2, 1, 2, 2), (2,), (8 * 2, 1, 2, 2), (8 * 2,)
    tensors = [normal(generator, *shape).requires_grad_() for shape in shapes]
    convolve = lambda *given_tensors: explicit_boundary_conv2d(*given_tensors, (1, 2), 1, 1, 2)
    assert torch.autograd.gradcheck(convolve, tensors)
    assert torch.autograd.gradgradcheck(convolve, tensors, fast_mode=True)


@pytest.mark.parametrize("size", [(9, 8), (2, 3)], ids=str)
def test_channels_last_stays_so(size):
    layer, x = ExplicitBoundaryConv2d(3, 4, 3, padding=(2, 1)), torch.randn(2, 3, *size)
    expected = layer(x)
    last = layer.to(memory_format=torch.channels_last)
    assert is_channels_last(last.boundary_weight)
    y = last(x.to(memory_format=torch.channels_last))
    assert is_channels_last(y)
    assert relative_error(y, expected) < 1e-6
    converted = ExplicitBoundaryConv2d.from_conv(nn.Conv2d(3, 4, 3, padding=1).to(memory_format=torch.channels_last))
    assert is_channels_last(converted.boundary_weight)
    assert not converted.boundary_weight.is_contiguous()


def random_2d(*arguments, **options):
    layer = ExplicitBoundaryConv2d(2, 3, *arguments, **options)
    with torch.no_grad():
        layer.boundary_weight.normal_()
        layer.boundary_bias.normal_()
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: random_2d(3, padding=1),
        lambda: random_2d((4, 3), padding="same"),
        lambda: random_2d((2, 1), padding=(3, 1), dilation=2),
    ],
    ids=["numbers", "same", "wide"],
)
def test_exported_and_compiled_whole_with_free_sizes(make):
    layer, least = make(), 5
    free = {2 + axis: torch.export.Dim(f"size{axis}", min=least, max=64) for axis in range(2)}
    program = torch.export.export(layer, (torch.randn(2, 2, 12, 9),), dynamic_shapes=(free,)).module()
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(layer, fullgraph=True, backend=counter, dynamic=True)
    for size in ((least, least + 1), (6, least), (17, 30)):
        x = torch.randn(2, 2, *size)
        expected = layer(x)
        assert relative_error(program(x), expected) < 1e-6
        assert relative_error(compiled(x), expected) < 1e-6
    assert counter.frame_count == 1


def test_onnx_of_trained_kernels(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer, x = ExplicitBoundaryConv2d(4, 6, 3, 2, 2, groups=2), torch.randn(2, 4, 9, 8)
    with torch.no_grad():
        layer.boundary_weight.normal_()
    path, shapes = tmp_path / "layer.onnx", ({0: torch.export.Dim("batch", min=1, max=64)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(layer, (x,), path, dynamo=True, verbose=False, dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    more = torch.cat((x, x[:1]))
    (y,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    assert relative_error(torch.from_numpy(y), layer(more)) < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boundary_weight": None}, r"boundary_weight must be of shape \(32, 2, 3, 3\), for 8 distances .* got None"),
        ({"boundary_weight": torch.zeros(4, 2, 3, 3)}, r"boundary_weight must be of shape \(32, 2, 3, 3\), got \(4, 2"),
        ({"boundary_bias": None}, r"boundary_bias must be of shape \(32,\), for 8 distances"),
        ({"bias": None}, "there is a boundary_bias and no bias of the interior"),
        ({"boundary_bias": torch.zeros(32).double()}, "boundary_bias must have the dtype and device"),
        ({"weight": torch.zeros(4, 2, 3)}, r"weight must be \(O, C / groups, kh, kw\), got \(4, 2, 3\)"),
        ({"padding": 2}, r"boundary_weight must be of shape \(96, 2, 3, 3\), got \(32, 2, 3, 3\)"),
        ({"padding": 0, "input": torch.zeros(1, 2, 2, 5)}, r"the kernel spans \(3, 3\) pixels"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said(changes, message):
    arguments = {
        "input": torch.zeros(1, 2, 5, 5),
        "weight": torch.zeros(4, 2, 3, 3),
        "bias": torch.zeros(4),
        "boundary_weight": torch.zeros(32, 2, 3, 3),
        "boundary_bias": torch.zeros(32),
        "padding": 1,
    }
    with pytest.raises(ValueError, match=message):
        explicit_boundary_conv2d(**arguments | changes)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_memory_format_and_dtype_of_the_convolution(device):
    conv = nn.Conv2d(4, 6, 3, padding=1, device=device, dtype=torch.float64).to(memory_format=torch.channels_last)
    layer = ExplicitBoundaryConv2d.from_conv(conv)
    assert is_channels_last(layer.weight)
    assert is_channels_last(layer.boundary_weight)
    assert layer.boundary_weight.dtype == layer.boundary_bias.dtype == torch.float64
    held = layer.boundary_weight
    layer.reset_parameters()
    assert layer.boundary_weight is held  # as optimizers hold it
