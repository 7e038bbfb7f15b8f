"""The 2021 form: a dilated convolution whose taps can leave their places."""

from functools import partial

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from convswap.layers import DclsDilated1d, DclsDilated2d, dcls_dilated
from convswap.layers.dcls_sampled import sampling_is_cheaper
from convswap.layers.functional import construct_dilated_kernel, dcls_dilated_conv

from .helpers import few_examples, geometries, is_channels_last, normal, plain_conv, relative_error, seeds

LAYERS = (DclsDilated1d, DclsDilated2d)


def compare_every_cell(weight, P, dilation, gain):
    """The formula, each tap against each cell: its place, clamped to the grid, and bilinear interpolation there."""
    taps = weight.shape[2:]
    dims = len(taps)
    shared = P.dim() == dims + 2
    scale = gain * (P[0].numel() ** 0.5)
    kernel = weight.new_zeros(*weight.shape[:2], *(d * (k - 1) + 1 for k, d in zip(taps, dilation, strict=True)))
    for tap in torch.cartesian_prod(*map(torch.arange, taps)).view(-1, dims).tolist():
        bump = torch.ones((), dtype=weight.dtype)
        for axis, size in enumerate(kernel.shape[2:]):
            place = (tap[axis] * dilation[axis] + P[(axis, ..., *tap)] * scale).clamp(0, size - 1)
            place = place.expand(weight.shape[:2]) if shared else place
            distance = (torch.arange(size) - place.unsqueeze(-1)).abs()
            along = (1 - distance).clamp(min=0)
            bump = bump * along.view(*weight.shape[:2], *(size if a == axis else 1 for a in range(dims)))
        kernel = kernel + weight[(..., *tap)].view(*weight.shape[:2], *(1,) * dims) * bump
    return kernel


@few_examples
@given(geometries(), st.booleans(), st.sampled_from((0.1, 1.0)))
def test_taps_are_drawn_where_they_are(g, shared, gain):
    assume(g.dims < 3)
    generator = g.generator()
    weight = normal(generator, g.out_channels, g.in_channels // g.groups, *g.kernel_size)
    P = normal(generator, g.dims, *weight.shape[shared:])
    tensors = [weight.requires_grad_(), P.requires_grad_()]
    kernel, naive = construct_dilated_kernel(*tensors, g.dilation, gain), compare_every_cell(*tensors, g.dilation, gain)
    assert relative_error(kernel, naive) < 1e-12
    G = normal(generator, *kernel.shape)
    for mine, theirs in zip(
        torch.autograd.grad(kernel, tensors, G), torch.autograd.grad(naive, tensors, G), strict=True
    ):
        assert relative_error(mine, theirs, least=1) < 1e-10
    y = dcls_dilated_conv(g.input(), weight, P, None, g.stride, g.padding, g.dilation, g.groups, g.padding_mode, gain)
    spread = type(g)(**vars(g) | {"kernel_size": tuple(kernel.shape[2:]), "dilation": (1,) * g.dims})
    assert relative_error(y, plain_conv(g.input(), kernel, None, spread), least=1e-6) < 1e-12


@few_examples
@given(geometries(), st.booleans())
def test_both_formulas_give_the_same(g, on_pixels):
    assume(g.dims < 3)
    generator = g.generator()
    weight = normal(generator, g.out_channels, g.in_channels // g.groups, *g.kernel_size)
    P = normal(generator, g.dims, *weight.shape[1:]) * (not on_pixels)
    bias = normal(generator, g.out_channels) if g.bias else None
    tensors = [t.requires_grad_() for t in (g.input(), weight, P, bias) if t is not None]
    geometry = (g.stride, g.padding, g.dilation, g.groups, g.padding_mode, 0.2)
    dense, sparse = (
        dcls_dilated_conv(*tensors[:3], bias, *geometry, formula=formula) for formula in ("dense", "sparse")
    )
    assert relative_error(sparse, dense) < 1e-12
    G = normal(generator, *dense.shape)
    for mine, theirs in zip(
        torch.autograd.grad(sparse, tensors, G), torch.autograd.grad(dense, tensors, G), strict=True
    ):
        assert relative_error(mine, theirs, least=1e-3) < 1e-10
    with torch.no_grad():
        assert relative_error(dcls_dilated_conv(*tensors[:3], bias, *geometry, formula="sparse"), dense) < 1e-12


@pytest.fixture
def sampled():
    """A layer that never builds its kernel, an input, and the output by way of the kernel."""
    torch.manual_seed(0)
    layer = DclsDilated2d(4, 6, 3, 2, 9, 9, 2, shared_positions=True)
    assert sampling_is_cheaper(layer.window, 9, 3)
    x = torch.randn(3, 4, 8, 7)
    return layer, x, layer.freeze()(x)


def test_sampling_layer_runs_everywhere(sampled, monkeypatch):
    monkeypatch.setattr(dcls_dilated, "construct_dilated_kernel", None)
    layer, x, y = sampled
    assert relative_error(layer(x), y) < 1e-5
    assert relative_error(layer(x[0]), y[0]) < 1e-5
    assert layer(x[:0]).shape == (0, *y.shape[1:])
    fast = layer(x.to(memory_format=torch.channels_last))
    assert is_channels_last(fast)
    assert relative_error(fast, y) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert relative_error(layer(x), y) < 0.03
    assert relative_error(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), y) < 1e-5
    assert relative_error(torch.fx.symbolic_trace(layer)(x), y) < 1e-5
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    assert relative_error(program.module()(x[:2]), y[:2]) < 1e-5
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert relative_error(half, y) < 0.03
    assert layer.to("meta")(x.to("meta").bfloat16()).shape == y.shape


def test_sampling_layer_names_an_input_that_is_too_small(sampled):
    layer, _, _ = sampled
    with pytest.raises(
        RuntimeError, match=r"kernel.* 19 is more than the input's 18|spans \(19, 19\) pixels.*size \(8, 0\)"
    ):
        layer(torch.randn(3, 4, 8, 0))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("layer_class", LAYERS)
def test_new_layer_of_dilation_one_is_a_convolution(layer_class, shared):
    layer = layer_class(4, 6, 3, 2, 1, groups=2, shared_positions=shared, dtype=torch.float64)
    conv = (nn.Conv1d, nn.Conv2d)[layer.dims - 1](4, 6, 3, 2, 1, groups=2, dtype=torch.float64)
    conv.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "P"})
    x = torch.randn(2, 4, *(9,) * layer.dims, dtype=torch.float64)
    assert relative_error(layer(x), conv(x)) < 1e-12


@few_examples
@given(seeds, st.booleans())
def test_first_and_second_derivatives(seed, shared):
    generator = torch.Generator().manual_seed(seed)
    weight = normal(generator, 1, 1, 2, 2).requires_grad_()
    P = (0.3 * normal(generator, 2, *weight.shape[shared:])).requires_grad_()
    places = P * P[0].numel() ** 0.5
    assume(bool(((places - places.round()).abs() > 1e-2).all()))
    function = partial(construct_dilated_kernel, dilation=3)
    assert torch.autograd.gradcheck(function, (weight, P))
    assert torch.autograd.gradgradcheck(function, (weight, P))


def test_position_beyond_the_border_has_no_gradient():
    weight, gain = torch.ones(1, 1, 2, dtype=torch.float64), 1 / 2**0.5  # P in pixels
    G = torch.tensor([1.0, 3.0, 7.0, 2.0], dtype=torch.float64)
    P = torch.tensor([-0.5, float("inf")], dtype=torch.float64).view(1, 1, 1, 2).requires_grad_()
    kernel = construct_dilated_kernel(weight, P, 3, gain)
    (kernel * G).sum().backward()
    assert kernel.flatten().tolist() == [1, 0, 0, 1]
    assert P.grad.flatten().tolist() == [0, 0]


def derivatives_by_differences(function, P, directions, step=1e-6):
    """One-sided ones, each position moved in its direction."""
    moves = step * torch.diag(directions.flatten()).view(-1, *P.shape)
    with torch.no_grad():
        slopes = torch.stack([(function(P + move) - function(P)) / step for move in moves])
    return slopes.view(P.shape) * directions


@pytest.mark.parametrize("formula", ["dense", "depthwise", "sparse"])
@pytest.mark.parametrize("taps", [(2,), (4,), (2, 2), (3, 3), (2, 1)])
def test_tap_on_the_border_has_the_slope_into_the_grid(taps, formula):
    generator, dims = torch.Generator().manual_seed(0), len(taps)
    channels = 2
    weight, P = normal(generator, channels, 1, *taps), torch.zeros(dims, 1, *taps, dtype=torch.float64)
    x = normal(generator, 2, channels, *(9,) * dims)
    dilation, gain = 3, 0.5 / P[0].numel() ** 0.5
    middle = torch.stack(torch.meshgrid([torch.arange(k) - (k - 1) / 2 for k in taps], indexing="ij")).unsqueeze(1)
    on_border = torch.stack([m.abs() == (k - 1) / 2 for m, k in zip(middle, taps, strict=True)])
    P.requires_grad_()

    def function(P):
        y = dcls_dilated_conv(x, weight, P, None, 1, 4, dilation, channels, gain=gain, formula=formula)
        return (y * normal(torch.Generator().manual_seed(1), *y.shape)).sum()

    (gradient,) = torch.autograd.grad(function(P), P)
    inward = torch.where(middle > 0, -1.0, 1.0).double()
    wanted = derivatives_by_differences(function, P, inward)
    mean = (wanted + derivatives_by_differences(function, P, -inward)) / 2
    single = torch.tensor(taps).view(-1, *(1,) * (dims + 1)) == 1
    wanted = torch.where(single, 0.0, torch.where(on_border, wanted, mean))
    assert relative_error(gradient, wanted) < 1e-6


def test_position_on_the_border_is_exactly_on_its_pixel():
    weight = torch.randn(3, 2, 3, 3)
    kernel = construct_dilated_kernel(weight, torch.zeros(2, 3, 2, 3, 3), (36, 5))
    assert torch.equal(kernel[..., ::36, ::5], weight)
    assert kernel.count_nonzero() == weight.numel()


@pytest.mark.parametrize("shared", [False, True])
def test_derivatives_in_a_corner_are_those_beside_it(shared):
    generator = torch.Generator().manual_seed(0)
    weight, G = normal(generator, 2, 1, 2, 2), normal(generator, 2, 1, 4, 4)
    P = torch.zeros(2, *weight.shape[shared:], dtype=torch.float64)
    gain = 1 / P[0].numel() ** 0.5
    inward = torch.stack(torch.meshgrid([torch.tensor([1.0, -1.0]).double()] * 2, indexing="ij"))
    inward = inward.view(2, *(1,) * (P.dim() - 3), 2, 2).expand_as(P)

    def function(P):
        return (construct_dilated_kernel(weight, P, 3, gain) * G).sum()

    # Between pixels the kernel is linear in each position alone, and so second derivatives do not depend on it.
    mine, beside = (torch.autograd.functional.hessian(function, P + move * inward) for move in (0.0, 0.25))
    assert beside.any()
    assert relative_error(mine, beside, least=1) < 1e-12


def test_tap_leaves_the_border_where_that_lowers_the_loss():
    conv = nn.Conv1d(1, 1, 2, dilation=3, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[1.0, 0.0]]]))
    layer, G = DclsDilated1d.from_conv(conv), torch.tensor([[[-4.0, -1.0, -0.5, 0.0]]])
    optimiser = torch.optim.SGD([layer.P], lr=0.05)

    def loss():
        return (layer.construct_kernel() * G).sum()

    for _ in range(300):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        layer.clamp_positions()
    assert loss().item() == pytest.approx(-4.0, abs=1e-5)  # as good as it gets: it has stayed

    optimiser = torch.optim.SGD([layer.P], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        (-loss()).backward()
        optimiser.step()
        layer.clamp_positions()
    assert loss().item() == pytest.approx(0.0, abs=1e-5)


def test_forward_derivatives_are_those_of_the_backward_pass_without_gradients_too(monkeypatch):
    torch.manual_seed(0)
    layer = DclsDilated2d(2, 3, 3, dilation=2, shared_positions=True, dtype=torch.float64)
    x, P = torch.randn(1, 2, 9, 9, dtype=torch.float64), torch.zeros_like(layer.P)  # on pixels and on the border
    tangent = torch.randn_like(P)
    function = partial(dcls_dilated_conv, x, layer.weight.detach(), bias=None, padding=2, dilation=2, formula="sparse")
    jacobian = torch.autograd.functional.jacobian(function, P)
    wanted = (jacobian * tangent).sum(tuple(range(-P.dim(), 0)))
    monkeypatch.setattr(dcls_dilated, "use_kernels", lambda x: False)  # which have no such derivatives
    with torch.no_grad():
        _, mine = torch.func.jvp(function, (P,), (tangent,))
    assert relative_error(mine, wanted) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clamped_positions_can_come_back(dtype):
    layer = DclsDilated2d(3, 5, 3, dilation=(7, 5), gain=0.37, dtype=dtype)
    with torch.no_grad():
        layer.P.copy_(torch.where(torch.randn(layer.P.shape) > 0, 100.0, -100.0))
    layer.clamp_positions()
    layer.construct_kernel().square().sum().backward()
    assert layer.P.grad.count_nonzero() > 0.9 * layer.P.numel()


def test_positions_of_a_new_layer_have_half_the_dilation_s_deviation():
    torch.manual_seed(0)
    for shared in (False, True):
        layer = DclsDilated2d(64, 32, 5, dilation=(8, 1), gain=0.5, shared_positions=shared)
        assert layer.P.shape == ((2, 64, 5, 5) if shared else (2, 32, 64, 5, 5))
        pixels = layer.P * 0.5 * layer.P[0].numel() ** 0.5
        middle = pixels[0][..., 2, :]  # not cut off by the border of the grid
        assert middle.std().item() == pytest.approx(4, rel=0.1)
        assert not pixels[1].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: dcls_dilated_conv(
                torch.ones(1, 1, 9), torch.ones(1, 1, 3), torch.ones(1, 1, 1, 3), None, formula="sparse"
            ),
            "formula must be one of auto, dense, depthwise here, got 'sparse'",
        ),
        (lambda: DclsDilated2d(4, 4, 3, gain=0.0), "gain must be a number above 0, got 0.0"),
        (lambda: DclsDilated2d(4, 4, 3, gain=float("inf")), "gain must be a number above 0, got inf"),
        (lambda: DclsDilated2d(4, 0, 3), "out_channels must be at least 1, got 4 and 0"),
        (lambda: DclsDilated2d.from_conv(nn.Conv2d(4, 4, 1)), "1×1 kernel has nothing to space"),
        (
            lambda: construct_dilated_kernel(torch.ones(2, 2, 3), torch.ones(1, 3, 3), 2),
            r"\(1, 2, 2, 3\), or \(1, 2, 3\)",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("formula", ["auto", "dense", "sparse"])
@pytest.mark.parametrize("shape", [(9, 9), (1, 3, 9, 9), (3, 9, 9), (1, 1, 4, 9, 9), (9,)])
def test_input_that_does_not_fit_is_named(formula, shape):
    layer = DclsDilated2d(4, 6, 3, 1, 9, 9, 2, shared_positions=True)
    layer.formula = formula
    with pytest.raises(ValueError, match=r"input must be \(B, 4, \*size\) or \(4, \*size\), with 2 sizes.*got \("):
        layer(torch.ones(shape))
