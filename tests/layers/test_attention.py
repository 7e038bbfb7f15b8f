"""Attention branches: the user's own, and their temperature."""

import pytest
import torch
from torch import nn

from convswap.layers import CondConv2d, DynamicConv1d, DynamicConv2d, DynamicConv3d, KernelAttention, ODConv2d, Tempered

from .helpers import relative_error

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
LAYERS = {1: DynamicConv1d, 2: DynamicConv2d, 3: DynamicConv3d}


def of_means(channels, hidden):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, hidden), nn.Tanh())


def of_pixels(dims):
    return lambda channels, hidden: nn.Sequential(CONVS[dims](channels, hidden, 3, 2), nn.Tanh())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_features_of_a_body_are_averaged_over_space_and_mapped(dims):
    torch.manual_seed(0)
    layer = LAYERS[dims](3, 4, 1, kernels=5, temperature=2.0, attention=of_pixels(dims), dtype=torch.float64)
    x = torch.randn(2, 3, *(7,) * dims, dtype=torch.float64)
    own = layer.attention
    features = own.body(x).flatten(2).sum(2) / 3**dims
    powers = ((features @ own.fc2.weight.T + own.fc2.bias) / 2).exp()
    assert relative_error(own(x), powers / powers.sum(1, keepdim=True)) < 1e-12
    assert relative_error(own(x[0]), own(x)[0]) < 1e-12
    assert not hasattr(own, "fc1")
    assert all(name.startswith(("attention.body.", "attention.fc2.")) for name in layer.new_parameters())


def test_features_without_space_are_taken_as_they_are():
    layer = DynamicConv2d(3, 4, 1, attention=of_means)
    x = torch.randn(2, 3, 5, 5)
    expected = layer.attention.fc2(layer.attention.body(x)).softmax(1)
    assert relative_error(layer.attention(x), expected) < 1e-6


def test_hidden_width_is_the_same_as_without_a_body():
    seen = []

    def factory(channels, hidden):
        seen.append((channels, hidden))
        return of_means(channels, hidden)

    DynamicConv2d(64, 4, 1, reduction=8, attention=factory)
    DynamicConv2d.from_conv(nn.Conv2d(8, 4, 1), attention=factory)
    assert seen == [(64, 8), (8, 4)]  # and called once for each layer


def test_from_conv_with_a_body_is_exact_and_learns_in_two_steps():
    conv = nn.Conv2d(3, 4, 3, padding=1).double()
    layer = DynamicConv2d.from_conv(conv, attention=of_means, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    assert relative_error(layer(x), conv(x)) < 1e-12
    start = {name: value.detach().clone() for name, value in layer.new_parameters().items()}
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        layer(x).square().mean().backward()
        optimiser.step()
    assert all((value - start[name]).abs().max() > 1e-12 for name, value in layer.new_parameters().items())


def test_reset_leaves_a_body_alone():
    layer = DynamicConv2d(3, 4, 1, attention=of_means)
    body = layer.attention.body[2].weight.clone()
    last = layer.attention.fc2.weight.clone()
    layer.reset_parameters()
    assert torch.equal(layer.attention.body[2].weight, body)
    assert not torch.equal(layer.attention.fc2.weight, last)


def test_what_is_no_body_is_refused():
    with pytest.raises(TypeError, match=r"attention must be .* returned int"):
        DynamicConv2d(3, 4, 1, attention=lambda channels, hidden: 3)
    wide = DynamicConv2d(3, 4, 1, attention=lambda channels, hidden: nn.Conv2d(channels, hidden + 1, 1))
    with pytest.raises(ValueError, match=r"hidden=4.*\(2, 5, 6, 6\)"):
        wide(torch.randn(2, 3, 6, 6))


def test_a_body_is_a_copy_of_what_the_factory_keeps():
    kept = nn.Conv2d(8, 4, 1)
    layers = [
        DynamicConv2d.from_conv(nn.Conv2d(8, 8, 3, device=device, dtype=torch.float64), attention=lambda *_: kept)
        for device in ("meta", "cpu", "cpu")
    ]
    assert (kept.weight.device.type, kept.weight.dtype) == ("cpu", torch.float32)
    assert layers[0].attention.body.weight.is_meta
    for layer in layers[1:]:
        assert torch.equal(layer.attention.body.weight, kept.weight.double())
    assert len({id(layer.attention.body) for layer in layers} | {id(kept)}) == 4
    with pytest.raises(ValueError, match="attention must be a function that makes a new net each time"):
        DynamicConv2d(8, 8, 3, attention=lambda *_: kept.to("meta"))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_bodies_that_hold_computed_tensors():
    layer = DynamicConv2d(4, 4, 1, attention=lambda i, h: torch.nn.utils.weight_norm(nn.Conv2d(i, h, 1)))
    layer(torch.randn(2, 4, 3, 3)).sum().backward()
    assert layer.attention.body.weight_g.grad is not None


@pytest.mark.parametrize("kind", [DynamicConv2d, CondConv2d, ODConv2d])
def test_arguments_of_the_wrong_type_are_named(kind):
    wrong = [("kernels", 2.5), ("kernels", "a"), ("kernels", True)]
    if kind is not CondConv2d:
        wrong += [("reduction", "a"), ("temperature", "1"), ("temperature", None)]
    if kind is DynamicConv2d:
        wrong += [("attention", 3), ("reduction", 2.5)]
    for name, value in wrong:
        for make in (kind, lambda *_, **given: kind.from_conv(nn.Conv2d(4, 4, 3), **given)):
            with pytest.raises(TypeError, match=f"{name} must be .*, got {value!r}"):
                make(4, 4, 3, **{name: value})


@pytest.mark.parametrize("kind", [DynamicConv2d, ODConv2d])
@pytest.mark.parametrize(
    ("temperature", "dtype"), [(1e-60, torch.float32), (1e-9, torch.float16), (1e5, torch.float16), (1e39, None)]
)
def test_temperatures_that_the_precision_lacks(kind, temperature, dtype):
    words = rf"temperature={temperature} is no temperature that torch\.float"
    for make in (kind, lambda *_, **given: kind.from_conv(nn.Conv2d(4, 4, 3, dtype=dtype), temperature=temperature)):
        with pytest.raises(ValueError, match=words.replace("+", r"\+")):
            make(4, 4, 3, temperature=temperature, dtype=dtype)
    assert kind(4, 4, 3, temperature=1e-60, dtype=torch.float64).attention.temperature == 1e-60


def test_temperature_divides_all_logits():
    for attention in (KernelAttention(3, 4, 4, 2), ODConv2d(3, 5, 3).attention):
        assert isinstance(attention, Tempered)
        attention.temperature.fill_(1e6)
        made = attention(torch.randn(2, 3, 4, 4))
        for value in made.values() if isinstance(made, dict) else [made]:
            assert value.std() < 1e-5
