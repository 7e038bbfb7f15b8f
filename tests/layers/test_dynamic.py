import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convswap.layers import DynamicConv2d, KernelAttention

from .helpers import Geometry, few_examples, geometries, normal, relative_error, seeds


def conv_layer(groups=1, **options):
    g = Geometry((6, 5), (3, 2), (1, 1), (1, 1), (1, 1), groups, "zeros", 4, 6, bias=True, seed=2)
    return g.conv(), DynamicConv2d.from_conv(g.conv(), generator=g.generator(), **options), g.input(3)


@few_examples
@given(seeds, st.integers(1, 3), st.integers(2, 5), st.floats(0.5, 30))
def test_attention_is_the_published_formula(seed, dims, kernels, temperature):
    generator = torch.Generator().manual_seed(seed)
    attention = KernelAttention(5, kernels, 4, dims, temperature, dtype=torch.float64)
    attention.reset_parameters(generator)
    x = normal(generator, 3, 5, *(4,) * dims)
    mean = x.flatten(2).sum(2) / 4**dims
    hidden = (mean @ attention.fc1.weight.T + attention.fc1.bias).clamp(min=0)
    exponentials = ((hidden @ attention.fc2.weight.T + attention.fc2.bias) / temperature).exp()
    expected = exponentials / exponentials.sum(1, keepdim=True)
    assert relative_error(attention(x), expected) < 1e-12
    assert relative_error(attention(x[0]), expected[0]) < 1e-12


def test_attention_has_living_units_for_every_input():
    attention = KernelAttention(8, 4, 4, 2)
    hidden = attention.fc1(torch.rand(100, 8))
    assert (hidden > 0).any(1).all()


def test_attention_start_is_bounded_by_the_fan_in():
    attention = KernelAttention(100, 4, 25, 2)
    for linear in (attention.fc1, attention.fc2):
        bound = linear.in_features**-0.5
        assert 0.8 * bound < linear.weight.abs().max() <= bound


def test_temperature_is_a_buffer_and_flattens_the_attention():
    _, layer, x = conv_layer()
    nn.init.normal_(layer.attention.fc2.weight)
    sharp = layer.attention(x)
    layer.load_state_dict(layer.state_dict() | {"attention.temperature": torch.tensor(1e6)})
    assert sharp.std() > 1e-2
    assert relative_error(layer.attention(x), torch.full_like(sharp, 0.25)) < 1e-4


def test_layer_mixes_its_kernels_by_the_attention_of_each_sample():
    torch.manual_seed(0)
    layer = DynamicConv2d(4, 6, 3, padding=1, groups=2, kernels=3, dtype=torch.float64)
    nn.init.normal_(layer.attention.fc2.weight, std=5)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    shares = layer.attention(x)
    assert (shares[0] - shares[1]).abs().max() > 0.05
    outputs = [
        nn.functional.conv2d(x, layer.weight[6 * k : 6 * k + 6], layer.bias[6 * k : 6 * k + 6], padding=1, groups=2)
        for k in range(3)
    ]
    expected = sum(shares[:, k].view(2, 1, 1, 1) * outputs[k] for k in range(3))
    assert relative_error(layer(x), expected) < 1e-12


@pytest.mark.parametrize(("in_channels", "reduction", "hidden"), [(64, 4, 16), (64, 16, 4), (3, 4, 4), (21, 4, 5)])
def test_hidden_width(in_channels, reduction, hidden):
    assert DynamicConv2d(in_channels, 2, 1, reduction=reduction).attention.fc1.out_features == hidden


@few_examples
@given(geometries(dims=2), st.integers(2, 6), st.floats(0.01, 1))
def test_kernels_scatter_around_the_convolution_s(g, kernels, noise):
    conv = g.conv()
    layer = DynamicConv2d.from_conv(conv, generator=g.generator(), kernels=kernels, noise=noise)
    for stacked, source in [(layer.weight, conv.weight), *([(layer.bias, conv.bias)] if g.bias else [])]:
        own = stacked.view(kernels, *source.shape)
        assert relative_error(own.mean(0), source) < 1e-12
        assert ((own - source).flatten(1).norm(dim=1) > 0).all()


def test_noise_is_relative_to_the_weights():
    conv = nn.Conv2d(32, 32, 3, dtype=torch.float64)
    nn.init.normal_(conv.weight, std=7)
    layer = DynamicConv2d.from_conv(conv, generator=torch.Generator().manual_seed(0), noise=0.1)
    deviation = layer.weight.view(4, *conv.weight.shape) - conv.weight
    assert deviation.std().item() == pytest.approx(0.7, rel=0.03)


@pytest.mark.parametrize("temperature", [1.0, 30.0])
def test_attention_starts_uniform_at_any_temperature(temperature):
    _, layer, x = conv_layer(temperature=temperature, kernels=3)
    assert relative_error(layer.attention(x), torch.full((3, 3), 1 / 3, dtype=torch.float64)) < 1e-12
    assert layer.attention.temperature.item() == temperature
    assert layer.attention.fc1.weight.any()


def test_attention_has_a_gradient_at_once():
    _, layer, x = conv_layer(groups=2)
    layer(x).square().mean().backward()
    assert layer.attention.fc2.bias.grad.abs().max() > 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kernels": 1}, "1"), ({"reduction": 0}, "reduction.*0"), ({"temperature": 0.0}, "temperature.*0")],
)
def test_bad_options_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        DynamicConv2d(4, 4, 3, **change)
    with pytest.raises(ValueError, match=message):
        DynamicConv2d.from_conv(nn.Conv2d(4, 4, 3), **change)


def test_kernels_that_would_never_differ_are_refused():
    with pytest.raises(ValueError, match=r"noise.*0"):
        DynamicConv2d.from_conv(nn.Conv2d(4, 4, 3), noise=0.0)


def test_kernels_but_not_biases_differ_where_the_convolution_is_zero():
    conv = nn.Conv2d(2, 3, 3)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    layer = DynamicConv2d.from_conv(conv)
    assert layer.weight.std().item() == pytest.approx(0.1 * 18**-0.5, rel=0.3)
    assert not layer.bias.any()


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_export_of_large_images_with_any_batch(kernel_size):
    layer, x = DynamicConv2d(4, 6, kernel_size, dtype=torch.float64), torch.randn(2, 4, 20, 20, dtype=torch.float64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = torch.cat((x, x, x))
    assert relative_error(program.module()(more), layer(more)) < 1e-12
