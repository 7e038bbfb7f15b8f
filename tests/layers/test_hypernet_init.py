"""Hyperfan initialisation: what it promises about second moments, over many draws."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convswap.layers import (
    GuidedChannelWiseConv2d,
    GuidedConv2d,
    GuidedDepthWiseConv2d,
    GuidedLocalConv2d,
    SeparableGuidedConv2d,
)
from convswap.layers.hypernet import PooledHypernet, SpatialHypernet, hyperfan_in_, hyperfan_out_

from .helpers import relative_error

DRAWS = 60
GUIDE = 24


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mean_is_one(ratios):
    """Whether the mean of independent ratios is one, within four of its own standard errors, which must be small."""
    values = torch.tensor(ratios, dtype=torch.float64)
    error = values.std() / math.sqrt(len(ratios))
    assert error < 0.04, "too few samples to tell"
    return abs(values.mean() - 1) < 4 * error


LAYERS = {
    "guided": (lambda: GuidedConv2d(24, 48, 3, groups=2, padding_mode="circular"), {}),
    "local": (lambda: GuidedLocalConv2d(8, 24, 3, padding_mode="circular"), {}),
    "low rank": (lambda: GuidedLocalConv2d(16, 32, 3, padding_mode="circular"), {"rank": 16}),
    "channelwise": (lambda: GuidedChannelWiseConv2d(24, 48, 3, padding_mode="circular"), {}),
    "depthwise": (lambda: GuidedDepthWiseConv2d(48, 96, groups=2), {}),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
with_and_without_relu = pytest.mark.parametrize("relu", [False, True])


def drawn(name, seed, **options):
    """A layer with a new hypernet, an input and a guide, both of unit-normal numbers."""
    make, own = LAYERS[name]
    pair = make().with_hypernet(GUIDE, hidden=40, generator=generator(seed), **own, **options)
    numbers = generator(10_000 + seed)
    x = torch.randn(12, pair.in_channels, 4, 4, generator=numbers)
    # What is made of the mean over space is promised a guide that is the same everywhere.
    size = (4, 4) if pair.conv.spatial and not options.get("generate_bias") else (1, 1)
    guide = torch.randn(12, GUIDE, *size, generator=numbers)
    return pair, x, guide.expand(-1, -1, 4, 4) if pair.conv.spatial else guide


@with_and_without_relu
@pytest.mark.parametrize("generate_bias", [False, True])
@every_layer
def test_fan_in_keeps_the_second_moment_forward(name, generate_bias, relu):
    ratios = []
    for seed in range(DRAWS):
        pair, x, guide = drawn(name, seed, init="fan_in", relu=relu, generate_bias=generate_bias)
        with torch.no_grad():
            y = pair(x, guide)
        y = y.relu() if relu else y
        # Where the bias is generated too, half of the second moment is its part, whatever the input.
        kept = (x.square().mean() + 1) / 2 if generate_bias else x.square().mean()
        ratios.append(float(y.square().mean() / kept))
    assert mean_is_one(ratios)


@with_and_without_relu
@every_layer
def test_fan_out_keeps_the_second_moment_of_the_gradient(name, relu):
    ratios = []
    for seed in range(DRAWS):
        pair, x, guide = drawn(name, seed, init="fan_out", relu=relu)
        y = pair(x.requires_grad_(), guide)
        grad = torch.randn(y.shape, generator=generator(seed))
        (passed,) = torch.autograd.grad(y.relu() if relu else y, x, grad)
        ratios.append(float(passed.square().mean() / grad.square().mean()))
    assert mean_is_one(ratios)


def separable(seed, norm, inner_relu, image=False, **options):
    """A separable layer with a new hypernet, an input and a guide, the same everywhere: a vector or an image."""
    layer = SeparableGuidedConv2d(24, 40, 3, groups=2, padding_mode="circular", norm=norm, relu=inner_relu)
    pair = layer.with_hypernet(GUIDE, hidden=40, generator=generator(seed), **options)
    numbers = generator(10_000 + seed)
    x, guide = torch.randn(64, 24, 4, 4, generator=numbers), torch.randn(64, GUIDE, generator=numbers)
    return pair, x, guide[..., None, None].expand(-1, -1, 4, 4) if image else guide


every_separable = pytest.mark.parametrize(
    ("norm", "inner_relu"), [(False, False), (False, True), (True, False), (True, True)]
)


@with_and_without_relu
@every_separable
def test_separable_fan_in_keeps_the_second_moment_forward(norm, inner_relu, relu):
    generate_bias = (norm + inner_relu + relu) % 2 == 1  # so any three of the four meet in every way
    ratios = []
    for seed in range(DRAWS):
        pair, x, guide = separable(seed, norm, inner_relu, generate_bias, relu=relu, generate_bias=generate_bias)
        with torch.no_grad():
            y = pair(x, guide)
        y = y.relu() if relu else y
        kept = (x.square().mean() + 1) / 2 if generate_bias else x.square().mean()
        ratios.append(float(y.square().mean() / kept))
    assert mean_is_one(ratios)


@with_and_without_relu
@every_separable
def test_separable_fan_out_keeps_the_second_moment_of_the_gradient(norm, inner_relu, relu):
    ratios = []
    for seed in range(DRAWS):
        pair, x, guide = separable(seed, norm, inner_relu, init="fan_out", relu=relu)
        y = pair(x.requires_grad_(), guide)
        grad = torch.randn(y.shape, generator=generator(seed))
        (passed,) = torch.autograd.grad(y.relu() if relu else y, x, grad)
        ratios.append(float(passed.square().mean() / grad.square().mean()))
    assert mean_is_one(ratios)


def test_of_a_guide_that_varies_over_space_less_is_left_in_what_its_mean_makes():
    """By as much as the features' mean is smaller than they are."""
    ratios, shares = [], []
    for seed in range(DRAWS):
        pair, x, _ = drawn("local", seed, relu=False, generate_bias=True)
        guide = torch.randn(12, GUIDE, 4, 4, generator=generator(20_000 + seed))
        with torch.no_grad():
            features = pair.hypernet._pixel_features(guide)
            share = features.mean((2, 3)).square().mean() / features.square().mean()
            ratios.append(float(pair(x, guide).square().mean() / ((x.square().mean() + share) / 2)))
        shares.append(float(share))
    assert mean_is_one(ratios)
    assert max(shares) < 0.5


@pytest.mark.parametrize("bias_generated", [False, True])
@with_and_without_relu
def test_variances_are_the_published_ones(relu, bias_generated):
    count = 400_000
    tolerance = 4 * math.sqrt(2 / count)
    c = 2 if relu else 1
    weight = hyperfan_in_(torch.empty(8000, 50), 27, 0.3, relu, bias_generated, generator())
    expected = c / ((2 if bias_generated else 1) * 27 * 50 * 0.3)
    assert weight.square().mean().item() == pytest.approx(expected, rel=tolerance)
    weight = hyperfan_out_(torch.empty(8000, 50), 27, 0.3, relu, generator())
    assert weight.square().mean().item() == pytest.approx(c / (27 * 50 * 0.3), rel=tolerance)
    assert weight.mean().abs() < 4 * weight.std() / math.sqrt(count)


def test_draws_come_from_the_generator():
    before = torch.get_rng_state()
    one, same, other = (hyperfan_in_(torch.empty(4, 3), 9, 1.0, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("function", [hyperfan_in_, hyperfan_out_])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 1.0), "at least 1, got 0"), ((9, 0.0), r"positive, got 0\.0"), ((9, math.inf), "positive, got inf")],
)
def test_what_has_no_variance_is_refused(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(torch.empty(2, 2), *arguments)


def test_unknown_init_is_named():
    with pytest.raises(ValueError, match=r'init must be "fan_in" or "fan_out", got \'xavier\''):
        GuidedConv2d(2, 2, 3).with_hypernet(init="xavier")


# ---- the mean square of the features


@pytest.mark.parametrize("kind", [PooledHypernet, SpatialHypernet])
def test_mean_square_of_the_features_in_closed_form(kind):
    net = kind(6, (2, 3, 4), 5, dtype=torch.float64)
    guide = torch.randn(400_000, 6, generator=generator(), dtype=torch.float64)
    features = F.leaky_relu(F.linear(guide, net.reduce.weight, net.reduce.bias), 0.01)
    squares = features.square().mean(1)
    assert net.mean_square() == pytest.approx(squares.mean().item(), abs=4 * squares.std().item() / 400_000**0.5)
    # Which the variance is not: the features' mean is not zero.
    assert features.var().item() < 0.9 * net.mean_square()


class Body(nn.Module):
    def __init__(self, guide_channels, hidden):
        super().__init__()
        self.conv = nn.Conv2d(guide_channels, hidden, 1)
        self.norm = nn.BatchNorm2d(hidden)
        self.drop = nn.Dropout(0.5)

    def forward(self, guide):
        return self.drop(self.norm(self.conv(guide)).relu())


@pytest.mark.parametrize("kind", [PooledHypernet, SpatialHypernet])
def test_mean_square_of_own_features_is_estimated_and_changes_nothing(kind):
    body = Body(6, 5)
    body.conv.eval()
    net = kind(6, (2, 3, 4), 5, body=body)
    state, before = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    estimate = net.mean_square()
    assert estimate == net.mean_square()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert (body.training, body.conv.training, body.norm.training) == (True, False, True)
    guide = torch.randn(4000, 6, 16, 16, generator=generator(5))
    if kind is PooledHypernet:
        guide += torch.randn(4000, 6, 1, 1, generator=generator(6))
    with torch.no_grad():
        features = body.eval()(guide)
    features = features.mean((2, 3)) if kind is PooledHypernet else features
    assert estimate == pytest.approx(features.square().mean().item(), rel=0.2)


def with_1x1_body(body):
    return SeparableGuidedConv2d(2, 3, 1).with_hypernet(6, hidden=5, hypernet=body, generator=generator(3)).hypernet


@pytest.mark.parametrize("own", [False, True])
def test_joint_mean_square_of_pixels_and_means(own):
    hypernet = with_1x1_body((lambda g, n: nn.Sequential(nn.Conv2d(g, n, 1), nn.ReLU())) if own else None)
    guide = torch.randn(100_000, 6, 1, 1, generator=generator())
    with torch.no_grad():
        squares = hypernet._pixel_features(guide).double().square().sum((1, 2, 3))
    expected = squares.square().mean() / squares.mean() / 5
    # A ratio of means: each sample has its part in both. The hypernet's own samples are fewer than these.
    part = squares.square() / squares.square().mean() - squares / squares.mean()
    tolerance = 4 * float(part.std()) / math.sqrt(256 if own else 2**14)
    assert hypernet.joint_mean_square() == pytest.approx(float(expected), rel=tolerance)
    assert expected > 1.2 * squares.mean() / 5


def test_guides_that_vary_and_that_do_not_are_told_apart_by_what_is_made_of_them():
    body = lambda g, n: nn.AvgPool2d(4)  # leaves a sixteenth of what varies from pixel to pixel
    varying = GuidedLocalConv2d(2, 2, 3).with_hypernet(5, hidden=5, hypernet=body).hypernet
    alike = GuidedLocalConv2d(2, 2, 3).with_hypernet(5, hidden=5, hypernet=body, generate_bias=True).hypernet
    assert varying.mean_square() == pytest.approx(1 / 16, rel=0.1)
    assert alike.mean_square() == pytest.approx(1, rel=4 * math.sqrt(2 / (256 * 5)))
    assert alike.mean_square(pooled=True) == pytest.approx(alike.mean_square())


@pytest.mark.parametrize("layer", [GuidedConv2d(2, 2, 3), GuidedLocalConv2d(2, 2, 3), SeparableGuidedConv2d(2, 2, 3)])
def test_own_body_that_takes_no_small_images_is_told_what_was_tried(layer):
    body = lambda guide_channels, hidden: nn.Conv2d(guide_channels, hidden, 20)
    with pytest.raises(
        RuntimeError, match=r"body failed on a guide of shape \(\d+, 2, 16, 16\).*guides of 16x16 pixels"
    ):
        layer.with_hypernet(hypernet=body)
    conv = nn.Conv2d(2, 2, 3, padding=1)
    assert type(layer).from_conv(conv, hypernet=body)(torch.randn(1, 2, 32, 32)).shape == (1, 2, 32, 32)


def test_own_body_that_gives_nothing_is_refused():
    class Nothing(nn.Module):
        def forward(self, guide):
            return guide[:, :1] * 0

    with pytest.raises(ValueError, match=r"positive, got 0\.0: the hypernet's body gives nothing"):
        GuidedConv2d(2, 2, 3).with_hypernet(hidden=1, hypernet=lambda guide_channels, hidden: Nothing())


def test_own_body_keeps_the_second_moment_too():
    ratios = []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        layer = GuidedLocalConv2d(8, 24, 1)
        pair = layer.with_hypernet(
            GUIDE, hidden=40, hypernet=lambda g, n: nn.Sequential(nn.Conv2d(g, n, 1), nn.ReLU()), relu=False
        )
        x, guide = torch.randn(12, 8, 4, 4), torch.randn(12, GUIDE, 4, 4)
        with torch.no_grad():
            ratios.append(float(pair(x, guide).square().mean() / x.square().mean()))
    assert mean_is_one(ratios)


def test_low_rank_basis_has_variance_one_over_the_rank():
    hypernet = GuidedLocalConv2d(16, 32, 3).with_hypernet(rank=5, generator=generator()).hypernet
    assert hypernet.basis.square().mean().item() == pytest.approx(0.2, rel=4 * math.sqrt(2 / hypernet.basis.numel()))
    assert not hypernet.kernel.any()
    conv = nn.Conv2d(16, 32, 3)
    nn.init.normal_(conv.weight, std=7, generator=generator())
    made = GuidedLocalConv2d.from_conv(conv, rank=5, generator=generator()).hypernet
    assert relative_error(made.basis.std(), conv.weight.std()) < 4 * math.sqrt(1 / conv.weight.numel())
