from functools import partial

import DCLS.construct.modules as oracle_modules
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from convswap import layers
from convswap.layers.dcls_kernel import VERSIONS, position_bounds
from convswap.layers.functional import construct_kernel

from .helpers import few_examples, normal, relative_error, seeds


def compare_every_cell(weight, P, SIG, sizes, version):
    """The formulas as they are published, each element against each cell of the grid."""
    dims = len(sizes)
    bump = torch.ones((), dtype=weight.dtype)
    for axis, size in enumerate(sizes):
        d = dims - 1 - axis
        cells = torch.arange(size, dtype=weight.dtype).view(-1, *(1,) * (dims - 1 - axis))
        centre = (P[d] + size // 2).view(*P.shape[1:], *(1,) * dims)
        if version == "v1":
            bump = bump * (1 - (cells - centre).abs()).clamp(min=0)
        else:
            sigma = (SIG[d].abs() + 0.27).view(*P.shape[1:], *(1,) * dims)
            bump = bump * torch.exp(-0.5 * ((cells - centre) / sigma) ** 2)
    grid = tuple(range(-dims, 0))
    bump = bump / (bump.sum(grid, keepdim=True) + 1e-7)
    return (weight.view(*weight.shape, *(1,) * dims) * bump).sum(2)


def elements(seed, sizes, version, shape=(3, 2, 4), spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    weight = normal(generator, *shape)
    reach = torch.tensor([size / 2 for size in reversed(sizes)], dtype=torch.float64).view(-1, 1, 1, 1)
    P = normal(generator, len(sizes), *shape) * reach * spread
    SIG = normal(generator, len(sizes), *shape) if version == "gauss" else None
    return weight, P, SIG


def gradients(kernel, tensors, seed=0):
    present = [t for t in tensors if t is not None]
    return torch.autograd.grad(kernel, present, normal(torch.Generator().manual_seed(seed), *kernel.shape))


def with_gradients(tensors):
    return tuple(None if t is None else t.clone().requires_grad_() for t in tensors)


@few_examples
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), seeds)
@pytest.mark.parametrize("version", VERSIONS)
def test_kernel_is_that_of_comparing_every_element_with_every_cell(version, sizes, seed):
    # A spread of half the grid puts a third of the elements partly or wholly off it.
    tensors = with_gradients(elements(seed, sizes, version))
    ours, naive = construct_kernel(*tensors, sizes, version), compare_every_cell(*tensors, sizes, version)
    assert relative_error(ours, naive, least=1) < 1e-12
    for mine, theirs in zip(gradients(ours, tensors), gradients(naive, tensors), strict=True):
        assert relative_error(mine, theirs, least=1) < 1e-10


@pytest.mark.parametrize("version", VERSIONS)
def test_element_far_off_the_grid_leaves_nothing(version):
    weight, P = torch.ones(1, 1, 1), torch.tensor([40.0, -1e9]).view(2, 1, 1, 1)
    SIG = torch.zeros_like(P) if version == "gauss" else None
    tensors = with_gradients((weight, P, SIG))
    kernel = construct_kernel(*tensors, (5, 4), version)
    assert torch.equal(kernel, torch.zeros(1, 1, 5, 4))
    assert not any(gradient.any() for gradient in gradients(kernel.double(), tensors))


@pytest.mark.parametrize("version", VERSIONS)
def test_element_on_a_pixel_fills_its_cell(version):
    P = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64).view(3, 1, 1, 1)
    SIG = torch.zeros_like(P) if version == "gauss" else None
    kernel = construct_kernel(torch.ones(1, 1, 1, dtype=torch.float64), P, SIG, (3, 5, 4), version)
    assert divmod(int(kernel.argmax()), 20) == (1, 0 * 4 + 3)  # (z, y, x) = (0 + 1, -2 + 2, 1 + 2)
    assert kernel.sum().item() == pytest.approx(1, abs=2e-7)


@few_examples
@given(seeds, st.sampled_from((1, 2, 3)), st.integers(1, 6), st.sampled_from((1, 2)), st.booleans())
@pytest.mark.parametrize("version", VERSIONS)
def test_state_dict_output_and_gradients_of_the_dcls_package(version, seed, dims, size, groups, bias):
    name = f"Dcls{dims}d"
    torch.manual_seed(seed)
    arguments = (4, 6, 3, (1,) * dims, (2,) * dims, (size,) * dims, groups, bias, "zeros", version)
    oracle = getattr(oracle_modules, name)(*arguments).double()
    torch.nn.init.normal_(oracle.P)
    if oracle.SIG is not None:
        torch.nn.init.normal_(oracle.SIG)
    ours = getattr(layers, name)(*arguments, dtype=torch.float64)
    ours.load_state_dict(oracle.state_dict())
    x = torch.randn(2, 4, *(7,) * dims, dtype=torch.float64)
    y, expected = ours(x), oracle(x)
    assert relative_error(y, expected) < 1e-12
    y.square().sum().backward()
    expected.square().sum().backward()
    for key, parameter in oracle.named_parameters():
        assert relative_error(ours.get_parameter(key).grad, parameter.grad, least=1) < 1e-10, key


def test_position_on_a_pixel_has_the_mean_of_both_slopes_where_the_package_has_none():
    size, radius = 7, 3
    weight = torch.randn(3, 2, 4, dtype=torch.float64)
    P = torch.randint(1 - radius, radius, (2, 3, 2, 4)).double()
    ours = with_gradients((weight, P, None))
    G = torch.randn(3, 2, size, size, dtype=torch.float64)
    (construct_kernel(*ours, (size, size)) * G).sum().backward()
    o, i = torch.arange(3).view(3, 1, 1), torch.arange(2).view(1, 2, 1)
    column, row = (P + radius).long()
    expected_x = weight * (G[o, i, row, column + 1] - G[o, i, row, column - 1]) / 2
    expected_y = weight * (G[o, i, row + 1, column] - G[o, i, row - 1, column]) / 2
    assert relative_error(ours[1].grad, torch.stack((expected_x, expected_y))) < 1e-6  # the normaliser's 1e-7

    oracle = oracle_modules.Dcls2d(2, 3, 4, dilated_kernel_size=(size, size), version="v1").double()
    theirs = with_gradients((weight, P, None))
    (oracle.DCK(*theirs) * G).sum().backward()
    assert not theirs[1].grad.any()


def test_position_on_the_border_has_the_mean_of_both_slopes():
    weight, P = torch.ones(1, 1, 1, dtype=torch.float64), torch.full((1, 1, 1, 1), -2.0, dtype=torch.float64)
    G = torch.tensor([3.0, 5.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    value = lambda P: (construct_kernel(weight, P, None, (5,)) * G).sum()
    step = 1e-4
    right, left = (value(P + step) - value(P)) / step, (value(P) - value(P - step)) / step
    P.requires_grad_()
    value(P).backward()
    assert P.grad.item() == pytest.approx((right + left).item() / 2, rel=1e-3)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_width_at_zero_grows_where_the_package_has_no_gradient(sign):
    weight, P, _ = elements(3, (5, 5), "gauss", spread=0.5)
    width = lambda value: torch.full_like(P, value)
    on_kink = gradients(construct_kernel(*(at := with_gradients((weight, P, width(sign * 0.0)))), (5, 5), "gauss"), at)
    beside = gradients(construct_kernel(*(by := with_gradients((weight, P, width(1e-9)))), (5, 5), "gauss"), by)
    assert relative_error(on_kink[2], beside[2]) < 1e-6
    oracle = oracle_modules.Dcls2d(2, 3, 4, dilated_kernel_size=(5, 5), version="gauss").double()
    theirs = with_gradients((weight, P, width(0.0)))
    assert not gradients(oracle.DCK(*theirs), theirs)[2].any()


@few_examples
@given(seeds, st.lists(st.integers(2, 4), min_size=1, max_size=2))
@pytest.mark.parametrize("version", VERSIONS)
def test_first_and_second_derivatives(version, seed, sizes):
    tensors = with_gradients(elements(seed, sizes, version, shape=(1, 1, 2)))
    assume(bool(((tensors[1] - tensors[1].round()).abs() > 1e-2).all()))
    assume(tensors[2] is None or bool((tensors[2].abs() > 1e-2).all()))
    present = tuple(t for t in tensors if t is not None)
    function = partial(construct_with, sizes=sizes, version=version)
    # Normalised triangles that all but miss the grid are too steep for finite differences.
    reach = torch.tensor([size / 2 for size in reversed(sizes)], dtype=torch.float64).view(-1, 1, 1, 1)
    assume(bool((tensors[1].abs() < reach).all()))
    assert torch.autograd.gradcheck(function, present)
    assert torch.autograd.gradgradcheck(function, present)


def construct_with(*tensors, sizes, version):
    weight, P, *SIG = tensors
    return construct_kernel(weight, P, SIG[0] if SIG else None, sizes, version)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("version", VERSIONS)
def test_half_precision_is_computed_in_single(version, dtype):
    tensors = [None if t is None else t.to(dtype) for t in elements(1, (7, 7), version)]
    kernel = construct_kernel(*tensors, (7, 7), version)
    exact = construct_kernel(*(None if t is None else t.double() for t in tensors), (7, 7), version)
    assert kernel.dtype == dtype
    assert relative_error(kernel, exact) <= torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "v7"}, "v7"),
        ({"version": "gauss"}, "needs SIG"),
        ({"SIG": (2, 3, 2, 4)}, "has no SIG"),
        ({"P": (1, 3, 2, 4)}, r"\(2, 3, 2, 4\), got \(1, 3, 2, 4\)"),
        ({"P": (2, 3, 2, 5)}, r"\(2, 3, 2, 4\), got \(2, 3, 2, 5\)"),
        ({"version": "gauss", "SIG": (1, 3, 2, 4)}, r"SIG.*\(2, 3, 2, 4\), got \(1, 3, 2, 4\)"),
        ({"weight": (3, 2)}, r"weight.*\(3, 2\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message):
    shapes = {"weight": (3, 2, 4), "P": (2, 3, 2, 4), "SIG": None} | {k: v for k, v in change.items() if k != "version"}
    tensors = {name: None if shape is None else torch.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=message):
        construct_kernel(**tensors, dilated_kernel_size=(5, 5), version=change.get("version", "v1"))


@pytest.mark.parametrize("size", range(1, 7))
def test_bounds_are_the_first_and_last_cell(size):
    low, high = position_bounds(size)
    assert (low + size // 2, high + size // 2) == (0, size - 1)


@pytest.mark.parametrize("version", VERSIONS)
def test_autocast_leaves_the_kernel_precise(version):
    tensors = [None if t is None else t.float() for t in elements(2, (7, 7), version)]
    expected = construct_kernel(*tensors, (7, 7), version)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(construct_kernel(*tensors, (7, 7), version), expected)
