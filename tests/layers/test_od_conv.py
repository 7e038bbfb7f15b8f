from dataclasses import replace
from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter

from convswap.layers import ODConv2d
from convswap.layers.functional import dynamic_conv, od_conv2d
from convswap.layers.od_formula import choose_formula
from convswap.layers.ops._load import load_kernels

from .helpers import Geometry, few_examples, geometries, is_channels_last, normal, plain_conv, relative_error

FORMULAS = (None, "grouped", "loop", "columns")
SMALL = Geometry((4, 3), (2, 3), (2, 1), (1, 1), (1, 1), 2, "circular", 2, 4, True, seed=5)
SMALL_POINT = replace(SMALL, kernel_size=(1, 1), padding=(0, 0))
TINY = replace(SMALL, size=(3, 2), kernel_size=(2, 1), padding=(1, 0))
TINY_PLAIN = replace(TINY, padding_mode="zeros")
NAMES = ("channel", "filter", "position", "kernel")


def published(x, weight, bias, attentions, g):
    """Each sample by itself: everything that attends laid over the kernels, then the sum, then a convolution."""
    kernels = attentions["kernel"].shape[1] if "kernel" in attentions else 1
    stack = weight.reshape(kernels, g.out_channels, g.in_channels // g.groups, *g.kernel_size)
    outputs = []
    for b in range(x.shape[0]):
        of = {name: value[b] for name, value in attentions.items()}
        share = of.get("kernel", torch.ones(1, dtype=x.dtype))
        place = of["position"].reshape(g.kernel_size) if "position" in of else torch.ones(g.kernel_size, dtype=x.dtype)
        channel = of.get("channel", torch.ones(g.in_channels, dtype=x.dtype))
        kernel = torch.einsum("k,hw,koihw->oihw", share, place, stack)
        y = plain_conv(x[b : b + 1] * channel[:, None, None], kernel, None, g)
        if "filter" in of:
            y = torch.einsum("o,bohw->bohw", of["filter"], y)
        if bias is not None:
            y = y + torch.einsum("k,ko->o", share, bias.reshape(kernels, -1))[:, None, None]
        outputs.append(y)
    return torch.cat(outputs)


def tensors_for(g, batch, kernels, names=NAMES, grad=False):
    generator = g.generator()
    sizes = {"channel": g.in_channels, "filter": g.out_channels, "position": prod(g.kernel_size), "kernel": kernels}
    x = normal(generator, batch, g.in_channels, *g.size)
    weight = normal(generator, kernels * g.out_channels, g.in_channels // g.groups, *g.kernel_size)
    bias = normal(generator, kernels * g.out_channels) if g.bias else None
    attentions = {name: normal(generator, batch, sizes[name]) for name in names}
    for value in (x, weight, bias, *attentions.values()):
        if value is not None:
            value.requires_grad_(grad)
    return x, weight, bias, attentions


def run(tensors, g, formula=None):
    return od_conv2d(*tensors, g.stride, g.padding, g.dilation, g.groups, g.padding_mode, formula)


def every(tensors):
    x, weight, bias, attentions = tensors
    return [value for value in (x, weight, bias, *attentions.values()) if value is not None]


def check_value_and_gradients(g, batch, kernels, names, formula):
    names = [name for name in NAMES if name in names or (name == "kernel" and kernels > 1)]
    tensors = tensors_for(g, batch, kernels, names, grad=True)
    y, expected = run(tensors, g, formula), published(*tensors, g)
    assert relative_error(y, expected) < 1e-12
    direction = normal(g.generator(), *y.shape)
    for ours, reference in zip(
        torch.autograd.grad(y, every(tensors), direction),
        torch.autograd.grad(expected, every(tensors), direction),
        strict=True,
    ):
        assert relative_error(ours, reference) < 1e-12


@few_examples
@given(geometries(dims=2), st.integers(1, 3), st.integers(1, 3), st.sets(st.sampled_from(NAMES)))
@pytest.mark.parametrize("formula", FORMULAS)
def test_every_formula_is_the_published_one(formula, g, batch, kernels, names):
    check_value_and_gradients(g, batch, kernels, names, formula)


@few_examples
@given(geometries(dims=2, taps=st.just(1)), st.integers(1, 3), st.integers(1, 3), st.sets(st.sampled_from(NAMES)))
def test_matmul_for_point_kernels(g, batch, kernels, names):
    check_value_and_gradients(g, batch, kernels, names, "matmul")


@pytest.mark.parametrize(
    ("g", "formula"),
    [*((TINY, formula) for formula in FORMULAS[1:]), (SMALL_POINT, "matmul"), (TINY_PLAIN, "depthwise")],
    ids=str,
)
def test_first_and_second_derivatives(g, formula):
    tensors = tensors_for(g, 2, 2, grad=True)

    def function(x, weight, bias, *values):
        return run((x, weight, bias, dict(zip(NAMES, values, strict=True))), g, formula)

    assert torch.autograd.gradcheck(function, every(tensors))
    assert torch.autograd.gradgradcheck(function, every(tensors))


@few_examples
@given(geometries(dims=2), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.sets(st.sampled_from(NAMES)))
def test_depthwise(g, multiplier, batch, kernels, names):
    g = replace(g, dilation=(1, 1), padding_mode="zeros", groups=g.in_channels, out_channels=multiplier * g.in_channels)
    check_value_and_gradients(g, batch, kernels, names, "depthwise")
    tensors = tensors_for(g, batch, kernels, names | {"kernel"})
    for formula in FORMULAS:
        assert relative_error(run(tensors, g, "depthwise"), run(tensors, g, formula)) < 1e-12


def test_attention_to_kernels_alone_is_dynamic_convolution():
    x, weight, bias, attentions = tensors_for(SMALL, 3, 2, ["kernel"])
    expected = dynamic_conv(x, weight, bias, attentions["kernel"], (2, 1), 1, 1, 2, "circular")
    assert relative_error(run((x, weight, bias, attentions), SMALL), expected) < 1e-13


@pytest.mark.parametrize("formula", [*FORMULAS, "matmul"])
def test_no_batch_and_an_empty_one(formula):
    g = SMALL_POINT if formula == "matmul" else SMALL
    x, weight, bias, attentions = tensors_for(g, 1, 2)
    first = {name: value[0] for name, value in attentions.items()}
    whole = run((x, weight, bias, attentions), g, formula)
    assert torch.equal(run((x[0], weight, bias, first), g, formula), whole[0])
    tensors = tensors_for(g, 0, 2, grad=True)
    y = run(tensors, g, formula)
    assert y.shape == (0, *whole.shape[1:])
    y.sum().backward()
    assert all(value.grad.shape == value.shape and not value.grad.any() for value in every(tensors))


@pytest.mark.parametrize(
    ("formula", "groups"), [*((formula, groups) for formula in FORMULAS for groups in (1, 2, 4)), ("depthwise", 4)]
)
def test_channels_last(formula, groups):
    g = Geometry((6, 6), (3, 3), (2, 2), (1, 1), (1, 1), groups, "zeros", 4, 4, True, seed=1)
    x, weight, bias, attentions = tensors_for(g, 2, 3)
    images = x.to(memory_format=torch.channels_last), weight.to(memory_format=torch.channels_last)
    y = run((*images, bias, attentions), g, formula)
    assert is_channels_last(y)
    assert relative_error(y, run((x, weight, bias, attentions), g, formula)) < 1e-13


def test_the_choice_weighs_kernels_against_columns():
    def chosen(channels, size, kernel=3, batch=8, groups=1, plain=True):
        x = torch.empty(1, 1, 1, 1).expand(batch, channels, size, size)
        weight = torch.empty(1, 1, 1, 1).expand(4 * channels, channels // groups, kernel, kernel)
        return choose_formula(x, weight, 4, groups, size * size, plain)

    assert chosen(512, 7) == "columns"
    assert chosen(512, 28) == chosen(64, 56, batch=1) == "loop"
    assert chosen(64, 56) == "grouped"
    assert chosen(144, 14, groups=144) == "grouped"
    assert chosen(144, 56, kernel=11, groups=144) == ("depthwise" if load_kernels("cpu") else "grouped")
    assert chosen(144, 56, kernel=11, groups=144, plain=False) == "grouped"
    assert chosen(64, 56, kernel=1) == "matmul"
    assert chosen(512, 7, kernel=1) == "columns"
    assert chosen(64, 56, batch=0) == "columns"


def test_batches_of_any_size_are_compiled_to_few_graphs():
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(od_conv2d, backend=counter, fullgraph=True)
    weight = torch.randn(2 * 8, 8, 3, 3)
    for batch in range(2, 8):
        x = torch.randn(batch, 8, 12, 12)
        attentions = {"position": torch.rand(batch, 9), "kernel": torch.rand(batch, 2)}
        assert relative_error(compiled(x, weight, None, attentions), od_conv2d(x, weight, None, attentions)) < 1e-5
    assert counter.frame_count <= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (2, 4, 5, 5, 5)}, r"\(2, 4, 5, 5, 5\)"),
        ({"x": (2, 3, 5, 5)}, r"4 channels.*\(2, 3, 5, 5\)"),
        ({"kernel": (2, 5)}, r"6 rows.*5 kernels"),
        ({"kernel": (3, 2)}, r"'kernel'.*\(2, 2\).*\(3, 2\)"),
        ({"channel": (2, 3)}, r"'channel'.*\(2, 4\).*\(2, 3\)"),
        ({"filter": (2, 4)}, r"'filter'.*\(2, 3\).*\(2, 4\)"),
        ({"position": (9,)}, r"'position'.*\(2, 9\).*\(9,\)"),
        ({"taps": (2, 9)}, "channel, filter, position, kernel, got 'taps'"),
        ({"bias": (3,)}, r"\(6,\).*\(3,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    shapes = {"x": (2, 4, 5, 5), "weight": (6, 4, 3, 3), "bias": (6,), "kernel": (2, 2)} | change
    made = {name: torch.zeros(shape) for name, shape in shapes.items()}
    first = made.pop("x"), made.pop("weight"), made.pop("bias")
    with pytest.raises(ValueError, match=message):
        od_conv2d(*first, made)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_images_smaller_than_the_kernel_are_named(mode, formula):
    weight, attentions = torch.randn(8, 4, 3, 2), {"kernel": torch.rand(2, 2)}

    def made(size, padding=0):
        return od_conv2d(torch.randn(2, 4, *size), weight, None, attentions, 1, padding, (2, 1), 1, mode, formula)

    with pytest.raises(ValueError, match=r"spans \(5, 2\) pixels.*input \(4, 9\), padded by \(0, 0\) and \(0, 0\)"):
        made((4, 9))
    with pytest.raises(ValueError, match=r"spans \(5, 2\) pixels.*input \(2, 9\), padded by \(1, 1\) and \(0, 0\)"):
        made((2, 9), (1, 0))
    with pytest.raises(ValueError, match=r"input \(5, 1\)"):
        made((5, 1))
    assert made((5, 2)).shape == (2, 4, 1, 1)


def test_image_of_no_pixels_is_named_for_point_kernels_too():
    with pytest.raises(ValueError, match=r"spans \(1, 1\) pixels.*input \(0, 3\)"):
        ODConv2d(4, 6, 1)(torch.randn(2, 4, 0, 3))


def test_formulas_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="fastest"):
        run(tensors_for(SMALL, 2, 2), SMALL, "fastest")
    with pytest.raises(ValueError, match=r'"matmul".*\(2, 3\)'):
        run(tensors_for(SMALL, 2, 2), SMALL, "matmul")
    with pytest.raises(ValueError, match=r'"depthwise" .* padding_mode "zeros", dilation 1 .* \'circular\''):
        run(tensors_for(SMALL, 2, 2), SMALL, "depthwise")
    with pytest.raises(ValueError, match='"depthwise" is for groups of one channel, got 2 of 3'):
        od_conv2d(torch.zeros(2, 6, 3, 3), torch.zeros(4, 3, 1, 1), None, {}, groups=2, formula="depthwise")
    with pytest.raises(ValueError, match="groups=3"):
        od_conv2d(torch.zeros(2, 6, 3, 3), torch.zeros(4, 2, 1, 1), None, {}, groups=3)


# ---- the layer


@few_examples
@given(geometries(dims=2), st.integers(1, 3), st.floats(0.5, 4))
def test_layer_is_the_published_formula_with_attentions_of_one_descriptor(g, kernels, temperature):
    torch.manual_seed(g.seed)
    arguments = g.stride, g.padding, g.dilation, g.groups, g.bias, g.padding_mode
    sizes = g.in_channels, g.out_channels, g.kernel_size
    layer = ODConv2d(*sizes, *arguments, kernels=kernels, temperature=temperature, dtype=torch.float64)
    own, x = layer.attention, g.input(3)
    mean = x.sum((2, 3)) / prod(g.size)
    descriptor = (mean @ own.fc.weight.T + own.fc.bias).clamp(min=0)
    expected = {}
    for name in NAMES:
        head = getattr(own, f"{name}_fc")
        if head is not None:
            logits = (descriptor @ head.weight.T + head.bias) / temperature
            powers = logits.exp()
            expected[name] = powers / powers.sum(1, keepdim=True) if name == "kernel" else 2 * powers / (1 + powers)
    attentions = layer.attentions(x)
    assert attentions.keys() == expected.keys()
    assert all(relative_error(attentions[name], expected[name]) < 1e-12 for name in expected)
    assert relative_error(layer(x), published(x, layer.weight, layer.bias, expected, g)) < 1e-12


def heads(layer):
    return set(layer.attention.heads())


@pytest.mark.parametrize(
    ("arguments", "kernels", "absent"),
    [
        ((8, 6, 3), 4, set()),
        ((8, 6, 3), 1, {"kernel"}),
        ((8, 6, 1), 4, {"position"}),
        ((8, 8, 3, 1, 1, 1, 8), 4, {"filter"}),
        ((8, 16, 3, 1, 1, 1, 8), 4, set()),
        ((8, 1, 3), 4, set()),
        ((1, 8, 3), 4, set()),
        ((1, 1, 3), 4, {"filter"}),
        ((8, 8, 1, 1, 0, 1, 8), 1, {"filter", "position", "kernel"}),
    ],
)
def test_attentions_that_would_do_nothing_are_absent(arguments, kernels, absent):
    layer = ODConv2d(*arguments, kernels=kernels)
    assert heads(layer) == set(NAMES) - absent
    assert set(layer.attentions(torch.randn(2, arguments[0], 5, 5))) == heads(layer)
    names = {name.split(".")[1] for name in layer.new_parameters()}
    assert names == {"fc", *(f"{name}_fc" for name in heads(layer))}


@pytest.mark.parametrize(("channels", "reduction", "hidden"), [(64, 1 / 16, 16), (512, 1 / 16, 32), (64, 0.5, 32)])
def test_hidden_width(channels, reduction, hidden):
    assert ODConv2d(channels, 2, 1, reduction=reduction).attention.fc.out_features == hidden


def test_descriptor_has_living_units_for_every_input():
    layer = ODConv2d(8, 4, 3)
    assert (layer.attention.fc(torch.rand(100, 8)) > 0).any(1).all()


def test_all_attentions_have_a_gradient_at_once():
    layer = ODConv2d.from_conv(SMALL.conv(), generator=SMALL.generator(), kernels=2)
    layer(SMALL.input(3)).square().mean().backward()
    for name, head in layer.attention.heads().items():
        assert head.bias.grad.abs().max() > 1e-5, name


def test_a_single_filter_is_attended_to_and_frozen():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 1, 3, padding=1, dtype=torch.float64)
    layer = ODConv2d.from_conv(conv, kernels=2)
    x = torch.randn(3, 8, 5, 5, dtype=torch.float64)
    assert relative_error(layer(x), conv(x)) < 1e-12
    layer.reset_parameters()
    attentions = layer.attentions(x)
    assert attentions["filter"].shape == (3, 1)
    assert attentions["filter"].std() > 1e-3
    first = layer.freeze({name: value[0] for name, value in attentions.items()})
    assert relative_error(first(x[:1]), layer(x)[:1]) < 1e-12


def test_a_single_kernel_is_the_convolution_s_own():
    conv = SMALL.conv()
    layer = ODConv2d.from_conv(conv, kernels=1)
    assert torch.equal(layer.weight, conv.weight)
    assert torch.equal(layer.bias, conv.bias)


def test_batch_of_one_in_training_mode_learns():
    layer = ODConv2d.from_conv(SMALL.conv()).train()
    start = {name: value.detach().clone() for name, value in layer.new_parameters().items()}
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        layer(SMALL.input(1)).square().mean().backward()
        optimiser.step()
    assert all((value - start[name]).abs().max() > 1e-12 for name, value in layer.new_parameters().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kernels": 0}, "kernels.*0"), ({"reduction": 0.0}, "reduction.*0"), ({"temperature": -1.0}, "temperature.*-1")],
)
def test_bad_options_are_named(change, message):
    for make in (lambda: ODConv2d(4, 4, 3, **change), lambda: ODConv2d.from_conv(nn.Conv2d(4, 4, 3), **change)):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize(("kernel_size", "kernels"), list(product((1, 3), (1, 2))))
def test_export_with_any_batch(kernel_size, kernels):
    layer = ODConv2d(4, 6, kernel_size, 2, "same", groups=2, kernels=kernels, dtype=torch.float64)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = torch.cat((x, x.flip(0), x))
    assert relative_error(program.module()(more), layer(more)) < 1e-12


def test_export_with_any_size():
    """As of a plain convolution, without a least height or width."""
    layer, x = ODConv2d(4, 6, 3, padding=1), torch.randn(2, 4, 9, 8)
    sizes = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    program = torch.export.export(layer, (x,), dynamic_shapes=(sizes,)).module()
    for size in ((5, 17), (1, 2)):
        image = torch.randn(2, 4, *size)
        assert relative_error(program(image), layer(image)) < 1e-5
    with pytest.raises(RuntimeError):
        program(torch.randn(2, 4, 0, 5))
