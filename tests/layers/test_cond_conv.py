import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convswap.layers import CondConv2d, RoutingAttention

from .helpers import Geometry, few_examples, geometries, normal, plain_conv, relative_error

SMALL = Geometry((4, 3), (2, 2), (2, 1), (1, 1), (1, 1), 2, "reflect", 2, 4, True, seed=5)


def published(x, layer, g):
    """Experts convolve one after the other, and their outputs are summed with the sigmoids of each sample."""
    logits = x.sum((2, 3)) / (g.size[0] * g.size[1]) @ layer.attention.fc.weight.T + layer.attention.fc.bias
    total = 0
    for k, share in enumerate((1 / (1 + (-logits).exp())).unbind(1)):
        rows = slice(k * g.out_channels, (k + 1) * g.out_channels)
        y = plain_conv(x, layer.weight[rows], None if layer.bias is None else layer.bias[rows], g)
        total = total + share.view(-1, 1, 1, 1) * y
    return total


def layer_of(g, kernels):
    torch.manual_seed(g.seed)
    arguments = g.in_channels, g.out_channels, g.kernel_size, g.stride, g.padding, g.dilation, g.groups, g.bias
    return CondConv2d(*arguments, padding_mode=g.padding_mode, kernels=kernels, dtype=torch.float64)


@few_examples
@given(geometries(dims=2), st.integers(1, 5), st.integers(1, 3))
def test_layer_is_the_published_formula(g, kernels, batch):
    layer, x = layer_of(g, kernels), g.input(batch)
    expected = published(x, layer, g)
    assert relative_error(layer(x), expected) < 1e-12
    parameters = list(layer.parameters())
    direction = normal(g.generator(), *expected.shape)
    for ours, reference in zip(
        torch.autograd.grad(layer(x), parameters, direction),
        torch.autograd.grad(expected, parameters, direction),
        strict=True,
    ):
        assert relative_error(ours, reference) < 1e-11


def test_first_and_second_derivatives():
    layer, x = layer_of(SMALL, 2), SMALL.input(2).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def function(image, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (image,))

    inputs = (x, *(parameter.detach().requires_grad_() for parameter in layer.parameters()))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@few_examples
@given(geometries(dims=2), st.integers(2, 6), st.floats(0.01, 1))
def test_kernels_scatter_around_twice_the_convolution_s_over_their_number(g, kernels, noise):
    conv = g.conv()
    layer = CondConv2d.from_conv(conv, generator=g.generator(), kernels=kernels, noise=noise)
    for stacked, source in [(layer.weight, conv.weight), *([(layer.bias, conv.bias)] if g.bias else [])]:
        own = stacked.view(kernels, *source.shape)
        assert relative_error(own.sum(0) / 2, source) < 1e-12
        assert ((own - 2 * source / kernels).flatten(1).norm(dim=1) > 0).all()


def test_noise_is_relative_to_the_kernels():
    conv = nn.Conv2d(32, 32, 3, dtype=torch.float64)
    nn.init.normal_(conv.weight, std=6)
    layer = CondConv2d.from_conv(conv, generator=torch.Generator().manual_seed(0), kernels=4, noise=0.1)
    deviation = layer.weight.view(4, *conv.weight.shape) - conv.weight / 2
    assert deviation.std().item() == pytest.approx(0.3, rel=0.03)


def test_routing_starts_at_a_half_for_every_kernel():
    layer = CondConv2d.from_conv(SMALL.conv(), kernels=3)
    assert torch.equal(layer.attentions(SMALL.input())["kernel"], torch.full((2, 3), 0.5, dtype=torch.float64))


def test_kernels_are_routed_apart_from_the_first_step_on():
    layer, x = CondConv2d.from_conv(SMALL.conv(), generator=SMALL.generator()), SMALL.input(3)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(x).square().mean().backward()
    optimiser.step()
    shares = layer.attentions(x)["kernel"]
    assert shares.std(1).min() > 1e-5
    assert shares.std(0).max() > 1e-5


def test_a_single_kernel_is_routed_too():
    conv, x = SMALL.conv(), SMALL.input(3)
    layer = CondConv2d.from_conv(conv, kernels=1)
    assert relative_error(layer(x), plain_conv(x, conv.weight, conv.bias, SMALL)) < 1e-12
    layer(x).square().mean().backward()
    assert layer.attention.fc.weight.grad.abs().max() > 1e-5


def test_routing_has_no_temperature():
    assert set(RoutingAttention(3, 2, 2).state_dict()) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(("change", "message"), [({"kernels": 0}, "kernels.*0"), ({"noise": 1.5}, r"noise.*1\.5")])
def test_bad_options_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        CondConv2d.from_conv(nn.Conv2d(4, 4, 3), **change)
