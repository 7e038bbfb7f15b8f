"""Hypernets: what they generate from a guide."""

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
    hypernet,
)
from convswap.layers.hypernet import (
    LowRankHypernet,
    PooledHypernet,
    SeparableHypernet,
    SpatialHypernet,
)

from .helpers import normal, relative_error

HYPERNETS = {
    "pooled": (PooledHypernet, ((2, 9, 6),)),
    "spatial": (SpatialHypernet, ((2, 9, 6),)),
    "low_rank": (LowRankHypernet, ((6, 2, 3, 3), 2)),
    "separable": (SeparableHypernet, ((4, 9), (2, 6))),
}
every_hypernet = pytest.mark.parametrize("name", HYPERNETS)


def make(name, generate_bias=True, **options):
    """A hypernet for a guide of 3 channels, all of whose numbers are random."""
    kind, shapes = HYPERNETS[name]
    made = kind(3, *shapes, 5, bias_channels=6 if generate_bias else None, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(normal(torch.Generator().manual_seed(parameter.numel()), *parameter.shape))
    return made


def linear(map_, x):
    """A linear map of the channels, of the vectors of a batch or of pixels."""
    y = torch.einsum("oi,bi...->bo...", map_.weight, x)
    return y if map_.bias is None else y + map_.bias.view(-1, *(1,) * (x.dim() - 2))


def leaky(x):
    return torch.where(x > 0, x, 0.01 * x)


def expected(net, guide):
    """All that ``net`` generates, written out."""
    if isinstance(net, PooledHypernet):
        features = leaky(linear(net.reduce, guide.sum((2, 3)) / guide[0, 0].numel()))
        rows = linear(net.expand, features).view(-1, 6, 2, 9)
        return [rows.permute(0, 2, 3, 1), linear(net.expand_bias, features)]
    features = leaky(linear(net.reduce, guide))
    mean = features.sum((2, 3)) / guide[0, 0].numel()
    numbers, bias = linear(net.expand, features), linear(net.expand_bias, mean)
    if isinstance(net, LowRankHypernet):
        kernels = torch.stack([net.kernel, *(one.view(net.kernel.shape) for one in net.basis)])
        ones = torch.ones(guide.shape[0], 1, *guide.shape[2:], dtype=guide.dtype)
        return [kernels.flatten(3).permute(0, 2, 3, 1), torch.cat((ones, numbers), 1), bias]
    if isinstance(net, SeparableHypernet):
        matrix = linear(net.expand_depth, mean).view(-1, 6, 2).transpose(1, 2)
        return [numbers.unflatten(1, (4, 9)), matrix, bias]
    return [numbers.unflatten(1, (2, 9, 6)), bias]


def flat(made):
    return [part for value in made for part in (value if isinstance(value, tuple) else (value,))]


@every_hypernet
def test_what_is_generated(name):
    net = make(name)
    guide = normal(torch.Generator().manual_seed(1), 2, 3, 4, 5)
    made = net(guide)
    assert len(made) == net.outputs
    for ours, theirs in zip(flat(made), expected(net, guide), strict=True):
        assert relative_error(ours, theirs) < 1e-12
    without = make(name, generate_bias=False)
    assert without.outputs == net.outputs - 1
    alone = without(guide)
    for ours, theirs in zip(flat(alone if isinstance(alone, tuple) else (alone,)), flat(made), strict=False):
        assert relative_error(ours, theirs) < 1e-12


@every_hypernet
def test_a_vector_counts_as_one_pixel(name):
    net = make(name)
    guide = normal(torch.Generator().manual_seed(1), 2, 3)
    for ours, theirs in zip(flat(net(guide)), flat(net(guide[..., None, None])), strict=True):
        assert torch.equal(ours, theirs)


@every_hypernet
def test_kernels_are_stored_as_they_are_read_whatever_the_guide_s_format(name):
    net = make(name, generate_bias=False)
    guide = normal(torch.Generator().manual_seed(1), 2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    made = net(guide)
    first = made[0] if isinstance(made, tuple) else made
    if name == "pooled":
        assert first.movedim(-1, 1).is_contiguous()
    elif name == "low_rank":
        assert first.movedim(-1, 1).is_contiguous()
        assert made[1].is_contiguous()
    else:
        assert first.is_contiguous()
    for ours, theirs in zip(flat((made,)), flat((net(guide.contiguous()),)), strict=True):
        assert relative_error(ours, theirs) < 1e-13


@every_hypernet
def test_no_convolution_is_inside(name):
    assert {type(module) for module in make(name).modules()} <= {HYPERNETS[name][0], nn.Linear}


@every_hypernet
def test_numbers_that_are_generated(name):
    net, pixels = make(name), 20
    made = net(torch.randn(1, 3, 4, 5, dtype=torch.float64))
    if name == "low_rank":
        assert net.generated_numbers(pixels) == (1 + 2) * (1 + 6) * pixels + 6
    else:
        assert net.generated_numbers(pixels) == sum(value.numel() for value in made)


@every_hypernet
def test_a_new_one_generates_nothing(name):
    kind, shapes = HYPERNETS[name]
    for _ in range(2):
        net = kind(3, *shapes, bias_channels=6)
        made = flat(net(torch.randn(2, 3, 4, 5)))
        assert not made[0].any() or (name == "low_rank" and not made[0][0].any() and not made[1][:, 1:].any())
        assert not made[-1].any()
        net.reset_parameters(torch.Generator().manual_seed(0))


@every_hypernet
def test_random_start_is_that_of_nn_linear_and_comes_from_the_generator(name):
    kind, shapes = HYPERNETS[name]
    before = torch.get_rng_state()
    one, same, other = (kind(64, *shapes, 50, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.reduce.weight, same.reduce.weight)
    assert not torch.equal(one.reduce.weight, other.reduce.weight)
    for parameter in (one.reduce.weight, one.reduce.bias):
        assert 0.9 * 64**-0.5 < parameter.abs().max() <= 64**-0.5
    same.reset_parameters(torch.Generator().manual_seed(2))
    assert torch.equal(other.reduce.weight, same.reduce.weight)
    if name == "low_rank":
        assert one.basis.std().item() == pytest.approx(18**-0.5, rel=0.2)
        assert torch.equal(other.basis, same.basis)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: PooledHypernet(0, (1, 1, 1)), "guide_channels must be at least 1, got 0"),
        (lambda: PooledHypernet(3, (1, 1, 1), 0), "hidden must be at least 1, got 0"),
        (lambda: LowRankHypernet(3, (1, 1, 1, 1), 0), "rank must be at least 1, got 0"),
        (lambda: PooledHypernet(3, (1, 1, 1))(torch.randn(2, 3, 0, 5)), r"must have pixels .*got \(2, 3, 0, 5\)"),
        (lambda: PooledHypernet(3, (1, 1, 1))(torch.randn(2, 3).double()), r"the guide must .*float32 .*got .*float64"),
        (lambda: PooledHypernet(3, (1, 1, 1))(torch.ones(2, 3).long()), r"the guide must .*float32 .*got .*int64"),
        (lambda: SpatialHypernet(3, (1, 1))(torch.randn(2, 3, 5, 5).half()), r"the guide .*float32 .*got .*float16"),
        (
            lambda: PooledHypernet(3, (1, 1, 1))(torch.ones(2, 3, device="meta")),
            r"the guide must .* on cpu, got .* meta",
        ),
        (lambda: PooledHypernet(3, (1, 1, 1))(torch.randn(2, 4, 5, 5)), r"guide_channels=3 .*got \(2, 4, 5, 5\)"),
        (lambda: PooledHypernet(3, (1, 1, 1))(torch.randn(2, 4)), r"guide_channels=3 .*got \(2, 4\)"),
        (lambda: SpatialHypernet(3, (1, 1))(torch.randn(2, 4, 5, 5)), r"guide_channels=3 .*got \(2, 4, 5, 5\)"),
        (lambda: SpatialHypernet(3, (1, 1))(torch.randn(3, 5, 5)), r"guide_channels=3 .*got \(3, 5, 5\)"),
        (
            lambda: SpatialHypernet(3, (1, 1), 4, body=nn.Conv2d(3, 5, 1))(torch.randn(2, 3, 5, 5)),
            r"the hypernet's body returns must have hidden=4 channels on axis 1, got \(2, 5, 5, 5\)",
        ),
    ],
)
def test_what_does_not_fit_is_said(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


@every_hypernet
def test_guide_of_another_dtype_under_autocast(name):
    net, guide = make(name).float(), torch.randn(2, 3, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        made = flat(net(guide.bfloat16()))
    for ours, theirs in zip(made, flat(net(guide)), strict=True):
        assert relative_error(ours, theirs) < 5e-2


# ---- a body of the user's own


def shrinking(guide_channels, hidden):
    return nn.Sequential(nn.Conv2d(guide_channels, hidden, 3, 2), nn.ReLU())


def to_vectors(guide_channels, hidden):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(guide_channels, hidden))


@pytest.mark.parametrize("factory", [shrinking, to_vectors])
@every_hypernet
def test_own_body_takes_the_place_of_reduce_and_activation(name, factory):
    body = factory(3, 5).double()
    net, guide = make(name, body=body), torch.randn(2, 3, 7, 7, dtype=torch.float64)
    assert net.reduce is None
    features = body(guide)
    features = features if features.dim() == 4 else features[..., None, None]
    made = flat(net(guide))
    if name == "pooled":
        rows = linear(net.expand, features.mean((2, 3)))
        assert relative_error(made[0], rows.view(2, 6, 2, 9).permute(0, 2, 3, 1)) < 1e-12
        return
    fitted = F.interpolate(features, (7, 7), mode="bilinear")
    rows = linear(net.expand, fitted)
    assert relative_error(made[1][:, 1:] if name == "low_rank" else made[0].flatten(1, -3), rows) < 1e-12
    assert relative_error(made[-1], linear(net.expand_bias, fitted.mean((2, 3)))) < 1e-12


CONV = nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float64)
LAYERS = (GuidedConv2d, GuidedLocalConv2d, SeparableGuidedConv2d)


@pytest.mark.parametrize("layer_class", LAYERS)
def test_factory_is_told_the_numbers_and_its_net_is_placed(layer_class):
    told = []

    def factory(guide_channels, hidden):
        told.append((guide_channels, hidden))
        return shrinking(guide_channels, hidden)

    pair = layer_class.from_conv(CONV, guide_channels=3, hidden=6, hypernet=factory)
    assert told == [(3, 6)]
    assert {parameter.dtype for parameter in pair.parameters()} == {torch.float64}
    assert any(name.startswith("hypernet.body.0") for name in pair.new_parameters())
    meta = layer_class.from_conv(nn.Conv2d(4, 4, 3, device="meta"), guide_channels=3, hidden=6, hypernet=factory)
    assert all(parameter.is_meta for parameter in meta.parameters())


def test_start_of_own_body_comes_from_the_generator():
    before = torch.get_rng_state()
    one, same, other = (
        GuidedConv2d.from_conv(CONV, hypernet=shrinking, generator=torch.Generator().manual_seed(seed)).hypernet.body
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one[0].weight, same[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)


def test_factory_must_return_a_module():
    with pytest.raises(TypeError, match=r"returns an nn.Module, it returned Tensor"):
        GuidedConv2d.from_conv(CONV, hypernet=lambda guide_channels, hidden: torch.zeros(hidden))


def test_names_are_public():
    assert set(hypernet.__all__) >= {"PooledHypernet", "SpatialHypernet", "LowRankHypernet", "SeparableHypernet"}
    assert GuidedDepthWiseConv2d(2, 2).with_hypernet().hypernet.__class__ is PooledHypernet
    assert GuidedChannelWiseConv2d(2).with_hypernet().hypernet.__class__ is SpatialHypernet
