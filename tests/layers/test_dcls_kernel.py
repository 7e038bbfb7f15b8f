from functools import partial

import DCLS.construct.modules as oracle_modules
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from convswap.layers.dcls_grid import position_axes, position_bounds
from convswap.layers.dcls_kernel import LEAST_SIGMA, VERSIONS
from convswap.layers.dcls_scatter import scatter_ref
from convswap.layers.functional import construct_kernel

from .helpers import few_examples, normal, relative_error, seeds


def compare_every_cell(weight, P, SIG, sizes, version):
    """The formulas as they are published, each element against each cell of the grid."""
    dims = len(sizes)
    # Which kernel axis each P[d] moves along: 0 is the first.
    axes = {1: [0], 2: [0, 1], 3: [0, 2, 1]}[dims] if version == "v0" else list(range(dims))[::-1]
    bump = torch.ones((), dtype=weight.dtype)
    for d, axis in enumerate(axes):
        size = sizes[axis]
        cells = torch.arange(size, dtype=weight.dtype).view(-1, *(1,) * (dims - 1 - axis))
        centre = (P[d] + size // 2).view(*P.shape[1:], *(1,) * dims)
        distance = (cells - centre).abs()
        if version in ("v0", "v1"):
            bump = bump * (1 - distance).clamp(min=0)
        elif version == "max":
            bump = bump * (SIG[d].abs().view(centre.shape) + 1 - distance).clamp(min=0)
        else:
            bump = bump * torch.exp(-0.5 * (distance / (SIG[d].abs().view(centre.shape) + 0.27)) ** 2)
    if version != "v0":
        bump = bump / (bump.sum(tuple(range(-dims, 0)), keepdim=True) + 1e-7)
    return (weight.view(*weight.shape, *(1,) * dims) * bump).sum(2)


def elements(seed, sizes, version, shape=(3, 2, 4), spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    weight = normal(generator, *shape)
    P = normal(generator, len(sizes), *shape) * half_sizes(sizes, version) * spread
    SIG = normal(generator, len(sizes), *shape) if version in LEAST_SIGMA else None
    return weight, P, SIG


def half_sizes(sizes, version):
    """Of the axis that each P[d] moves along."""
    halves = [sizes[axis] / 2 for axis in position_axes(version, len(sizes))]
    return torch.tensor(halves, dtype=torch.float64).view(-1, 1, 1, 1)


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
    SIG = torch.zeros_like(P) if version in LEAST_SIGMA else None
    tensors = with_gradients((weight, P, SIG))
    kernel = construct_kernel(*tensors, (5, 4), version)
    assert torch.equal(kernel, torch.zeros(1, 1, 5, 4))
    assert not any(gradient.any() for gradient in gradients(kernel.double(), tensors))


@pytest.mark.parametrize("version", VERSIONS)
def test_element_on_a_pixel_fills_its_cell(version):
    x, y, z = 1.0, -2.0, 0.0
    P = torch.tensor([z, x, y] if version == "v0" else [x, y, z], dtype=torch.float64).view(3, 1, 1, 1)
    SIG = torch.zeros_like(P) if version in LEAST_SIGMA else None
    kernel = construct_kernel(torch.ones(1, 1, 1, dtype=torch.float64), P, SIG, (3, 5, 4), version)
    assert divmod(int(kernel.argmax()), 20) == (0 + 1, (-2 + 2) * 4 + 1 + 2)  # z, then y and x
    assert kernel.sum().item() == pytest.approx(1, abs=2e-7)


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
    assume(bool((tensors[1].abs() < half_sizes(sizes, version)).all()))
    if version == "max":  # further kinks, a width away
        fractions = (tensors[1].abs() - tensors[2].abs()) % 1, (tensors[1].abs() + tensors[2].abs()) % 1
        assume(all(bool(((f > 1e-2) & (f < 0.99)).all()) for f in fractions))
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
        ({"version": "max"}, "needs SIG"),
        ({"least_sigma": 0.5}, "least_sigma.*0.5 for 'v1'"),
        ({"version": "gauss", "SIG": (2, 3, 2, 4), "least_sigma": 0.0}, "least_sigma.*0.0"),
        ({"weight": (3, 2, 2, 4)}, r"P must have shape \(2, 3, 2, 2, 4\)"),
        ({"SIG": (2, 3, 2, 4)}, "has no SIG"),
        ({"P": (1, 3, 2, 4)}, r"\(2, 3, 2, 4\), got \(1, 3, 2, 4\)"),
        ({"P": (2, 3, 2, 5)}, r"\(2, 3, 2, 4\), got \(2, 3, 2, 5\)"),
        ({"version": "gauss", "SIG": (1, 3, 2, 4)}, r"SIG.*\(2, 3, 2, 4\), got \(1, 3, 2, 4\)"),
        ({"weight": (3, 2)}, r"weight.*\(3, 2\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message):
    shapes = {"weight": (3, 2, 4), "P": (2, 3, 2, 4), "SIG": None} | {
        k: change[k] for k in change if k in ("weight", "P", "SIG")
    }
    tensors = {name: None if shape is None else torch.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=message):
        construct_kernel(
            **tensors,
            dilated_kernel_size=(5, 5),
            version=change.get("version", "v1"),
            least_sigma=change.get("least_sigma"),
        )


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


@pytest.mark.parametrize("version", VERSIONS)
def test_dense_axes_are_as_so_many_more_input_channels(version):
    sizes = (5, 4)
    weight, P, SIG = elements(5, sizes, version, shape=(3, 2 * 3 * 2, 4))
    expected = construct_kernel(weight, P, SIG, sizes, version).view(3, 2, 3, 2, *sizes)
    with_axes = [None if t is None else t.unflatten(-2, (2, 3, 2)) for t in (weight, P, SIG)]
    assert torch.equal(construct_kernel(*with_axes, sizes, version), expected)


@few_examples
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), seeds, st.booleans())
def test_triangles_of_least_width_are_those_of_v1(sizes, seed, on_pixels):
    weight, P, _ = elements(seed, sizes, "v1", spread=0.5)
    P = P.round() if on_pixels else P
    narrow, wide = with_gradients((weight, P, None)), with_gradients((weight, P, torch.zeros_like(P)))
    kernels = construct_kernel(*narrow, sizes, "v1"), construct_kernel(*wide, sizes, "max")
    assert relative_error(kernels[1], kernels[0], least=1) < 1e-13
    for mine, theirs in zip(gradients(kernels[0], narrow), gradients(kernels[1], wide), strict=False):
        assert relative_error(theirs, mine, least=1) < 1e-12


def test_width_on_a_kink_has_the_mean_of_both_slopes():
    weight, P = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    G = normal(torch.Generator().manual_seed(0), 5)
    value = lambda SIG: (construct_kernel(weight, P, SIG, (5,), "max") * G).sum()
    SIG = torch.full_like(P, 1.0, requires_grad=True)  # reaches the second pixel on either side
    value(SIG).backward()
    step = 1e-6
    with torch.no_grad():
        right, left = (value(SIG + step) - value(SIG)) / step, (value(SIG) - value(SIG - step)) / step
    assert abs(right - left) > 0.01
    assert SIG.grad.item() == pytest.approx((right + left).item() / 2, rel=1e-4)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_v0_on_a_pixel_has_the_package_s_slope(dims):
    weight = normal(torch.Generator().manual_seed(0), 3, 2, 4)
    P = torch.randint(-2, 3, (dims, 3, 2, 4), generator=torch.Generator().manual_seed(1)).double()
    oracle = getattr(oracle_modules, f"Dcls{dims}d")(2, 3, 4, dilated_kernel_size=5, version="v0").double()
    ours, theirs = with_gradients((weight, P, None)), with_gradients((weight, P, None))
    mine = gradients(construct_kernel(*ours, (5,) * dims, "v0"), ours)
    for one, other in zip(mine, gradients(oracle.DCK(*theirs), theirs), strict=True):
        assert other.any()
        assert relative_error(one, other) < 1e-12


@pytest.mark.parametrize("version", VERSIONS)
def test_position_that_is_no_number_is_seen_in_the_kernel(version):
    weight, P, SIG = elements(0, (5, 5), version)
    P[0, 1, 0, 2] = torch.nan
    kernel = construct_kernel(weight, P, SIG, (5, 5), version)
    assert kernel[1, 0].isnan().any()
    assert not kernel[0].isnan().any()


@pytest.mark.parametrize("right_slope", [False, True])
def test_forward_derivatives_on_pixels_do_not_depend_on_whether_gradients_are_recorded(right_slope):
    generator = torch.Generator().manual_seed(0)
    weight, P = normal(generator, 2, 3, 4), torch.randint(-2, 3, (2, 2, 3, 4), generator=generator).double()
    tangent = normal(generator, *P.shape)
    function = lambda P: scatter_ref(weight, P, [5, 6], [1, 0], True, right_slope)
    jacobian = torch.autograd.functional.jacobian(function, P)
    with torch.no_grad():
        _, mine = torch.func.jvp(function, (P,), (tangent,))
    assert relative_error(mine, (jacobian * tangent).sum((-4, -3, -2, -1))) < 1e-12


@pytest.mark.parametrize("on_pixels", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_kernel_without_gradients_is_the_same(version, on_pixels):
    weight, P, SIG = elements(2, (6, 5), version)
    tensors = weight, P.round() if on_pixels else P, SIG
    expected = construct_kernel(*tensors, (6, 5), version)
    with torch.no_grad():
        assert torch.equal(construct_kernel(*tensors, (6, 5), version), expected)
