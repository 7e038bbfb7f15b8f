"""Padding-free convolution with the interface of the published package."""

import warnings

import pytest
import torch
from torch import nn

from convswap.layers import DiffConv2d, DiffConv2dLayer, PaddingFreeConv2d

from .helpers import normal, relative_error
from .published_padding_free import published_conv2d


def tensors(k=3, groups=2):
    generator = torch.Generator().manual_seed(k)
    return normal(generator, 2, 4, 9, 8), *(normal(generator, 6, 4 // groups, k, k) for _ in range(2))


@pytest.mark.parametrize("k", [3, 5])
def test_conv2d(k):
    x, kernel, edge_kernel = tensors(k)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convolve = DiffConv2d(k).conv2d
        assert relative_error(convolve(x, kernel, 2), published_conv2d(x, kernel, 2)) < 1e-13
        ours = convolve(x, kernel, groups=2, edge_kernel=edge_kernel, keep_img_grad_at_invalid=False)
    assert relative_error(ours, published_conv2d(x, kernel, 2, edge_kernel)) < 1e-13
    assert relative_error(convolve(x[0], kernel, 2), convolve(x, kernel, 2)[0]) < 1e-13


def test_keep_img_grad_at_invalid():
    x, kernel, _ = tensors()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(DiffConv2d(3).conv2d(x, kernel, 2, False).sum(), [x])
    (valid,) = torch.autograd.grad(torch.conv2d(x, kernel, groups=2).sum(), [x])
    assert relative_error(gradient, valid) < 1e-13


@pytest.mark.parametrize("kernel_size", [1, 2, 4, (3, 6), 9])
def test_kernels_of_any_size_keep_the_size_of_the_image(kernel_size):
    made = DiffConv2d(kernel_size)
    kernel = torch.ones(1, 1, *made.kernel_size, dtype=torch.float64)
    y = made.conv2d(torch.ones(1, 1, 9, 10, dtype=torch.float64), kernel)
    assert y.shape == (1, 1, 9, 10)
    assert relative_error(y, torch.full_like(y, kernel.numel())) < 1e-9
    assert str(made.kernel_size) in repr(made)


@pytest.mark.parametrize(
    "make",
    [
        lambda **given: DiffConv2d(3).conv2d(*tensors()[:2], 2, **given),
        lambda **given: DiffConv2dLayer(4, 6, 3, 2, **given),
        lambda **given: DiffConv2dLayer.from_conv(nn.Conv2d(4, 6, 3), **given),
    ],
    ids=["function", "layer", "from a convolution"],
)
def test_optimized_for(make):
    with pytest.warns(UserWarning, match="optimized_for='speed' has no effect") as caught:
        make(optimized_for="speed")
    assert caught[0].filename == __file__
    with pytest.raises(ValueError, match="'speed' or 'memory', got 'size'"):
        make(optimized_for="size")


def test_errors():
    with pytest.raises(ValueError, match="kernel_size must be at least 1"):
        DiffConv2d(0)
    with pytest.raises(ValueError, match=r"\(5, 5\) taps.*\(6, 2, 3, 3\)"):
        DiffConv2d(5).conv2d(*tensors()[:2], 2)
    with pytest.raises(ValueError, match="a lower order or a larger image"):
        DiffConv2d(3).conv2d(torch.zeros(1, 2, 2, 9), torch.zeros(1, 2, 3, 3))


class Filter(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))
        self.diff = DiffConv2d(3)

    def forward(self, x):
        return self.diff.conv2d(x.relu(), self.weight)


def test_symbolic_trace():
    model, x = Filter(), torch.randn(1, 4, 6, 7)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("edge", [False, True])
def test_published_state_dicts(edge):
    x, kernel, edge_kernel = tensors()
    bias, edge_bias = torch.randn(2, 6, dtype=torch.float64)
    published = {"net.0.inter_layer.weight": kernel, "net.0.inter_layer.bias": bias}
    if edge:
        published |= {"net.0.edge_layer.weight": edge_kernel, "net.0.edge_layer.bias": edge_bias}
    layer = DiffConv2dLayer(4, 6, 3, 2, train_edge_kernel=edge, dtype=torch.float64)
    model = nn.ModuleDict({"net": nn.Sequential(layer)})
    given = dict(published)
    model.load_state_dict(given)
    assert given.keys() == published.keys()
    expected = published_conv2d(x, kernel, 2, edge_kernel if edge else None) + bias.view(-1, 1, 1)
    if edge:
        inner = expected[..., 1:-1, 1:-1].clone()
        expected = expected + (edge_bias - bias).view(-1, 1, 1)
        expected[..., 1:-1, 1:-1] = inner
    assert relative_error(layer(x), expected) < 1e-13
    own = DiffConv2dLayer(4, 6, 3, 2, train_edge_kernel=edge, dtype=torch.float64)
    own.load_state_dict(layer.state_dict())
    assert torch.equal(own(x), layer(x))
    if edge:
        with pytest.raises(RuntimeError, match=r"Unexpected key.*edge_layer\.weight"):
            DiffConv2dLayer(4, 6, 3, 2).load_state_dict({k.removeprefix("net.0."): v for k, v in published.items()})


def test_published_names_do_not_replace_own_ones():
    layer = DiffConv2dLayer(4, 6, 3)
    both = {**layer.state_dict(), "inter_layer.weight": torch.zeros(6, 4, 3, 3)}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*inter_layer\.weight"):
        layer.load_state_dict(both)
    assert layer.weight.all()


def test_layer_has_what_the_published_one_lacks():
    layer = DiffConv2dLayer(4, 6, 4, stride=2, dilation=2)
    assert layer(torch.randn(1, 4, 9, 8)).shape == (1, 6, 5, 4)
    assert layer.padding == "same"
    assert layer.order == ((3, 3), (3, 3))
    conv = nn.Conv2d(4, 6, 3, 2, (1, 0), dtype=torch.float64)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    expected = PaddingFreeConv2d.from_conv(conv)(x)
    assert torch.equal(DiffConv2dLayer.from_conv(conv)(x), expected)
