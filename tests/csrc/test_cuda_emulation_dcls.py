"""The CUDA device code of DCLS, run by the emulation: the same results as the plain PyTorch forms."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from convswap.layers.dcls_scatter import scatter_ref
from convswap.layers.dcls_separable import separable_ref

from .emulation import DTYPES, Out, needs_compiler

pytestmark = needs_compiler

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Of the largest number in a result, or of those that it is the difference of, which are near 1."""

SEPARABLE_BYTES = 32 * 1024
PLANE_BYTES = 32 * 1024

GRIDS = [
    # dims, size, axes, outputs, inputs, elements
    ((5,), (0,), 2, 3, 4),
    ((7, 7), (1, 0), 3, 8, 9),
    ((6, 9), (0, 1), 3, 1, 2),
    ((33, 40), (1, 0), 2, 1, 11),
    ((4, 3, 5), (0, 2, 1), 2, 2, 7),
    ((11, 12, 13), (2, 1, 0), 1, 1, 3),
    ((1, 1), (1, 0), 3, 2, 1),
    ((3, 3), (0, 1), 1, 2, 600),
]


@pytest.fixture(scope="module")
def dcls(driver):
    return driver("dcls_driver")


def close(result, expected):
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    assert torch.isfinite(result).all()
    error = (result.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
    assert error <= TOLERANCE[result.dtype] * scale, (error, scale)


def elements(size, axes, outputs, inputs, count, dtype):
    """Weights, and positions: on and between pixels, on the edges of the grid, beyond them and far beyond."""
    weight = torch.randn(outputs, inputs, count, dtype=dtype)
    P = torch.randn(len(size), outputs, inputs, count, dtype=dtype)
    for d, axis in enumerate(axes):
        P[d] *= size[axis] / 3
    on_pixel = torch.rand(P.shape) < 0.3
    P = torch.where(on_pixel, P.round(), P)
    far = torch.rand(P.shape) < 0.02
    return weight, torch.where(
        far, torch.tensor([1e30, -1e30, torch.inf, 3e9], dtype=dtype)[torch.randint(4, P.shape)], P
    )


def long(values):
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "axes", "outputs", "inputs", "count"), GRIDS)
def test_scatter(dcls, size, axes, outputs, inputs, count, dtype, normalise):
    torch.manual_seed(sum(size) + count)
    weight, P = elements(size, axes, outputs, inputs, count, dtype)
    out = torch.empty(outputs, inputs, *size, dtype=dtype)
    geometry = (len(size), long(size), long(axes), outputs * inputs, count)
    dcls.call("scatter", DTYPES.index(dtype), weight, P, Out(out), *geometry, int(normalise))
    close(out, scatter_ref(weight.double(), P.double(), list(size), list(axes), normalise, False))


@pytest.mark.parametrize("right_slope", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "axes", "outputs", "inputs", "count"), GRIDS)
def test_scatter_backward(dcls, size, axes, outputs, inputs, count, dtype, normalise, right_slope):
    torch.manual_seed(sum(size) + count)
    weight, P = elements(size, axes, outputs, inputs, count, dtype)
    # Not with 1e30 and the like: the plain form multiplies them by 0 in the backward pass, as it does nowhere else.
    grad = torch.randn(outputs, inputs, *size, dtype=dtype)
    found = torch.empty_like(weight), torch.empty_like(P)
    geometry = (len(size), long(size), long(axes), outputs * inputs, count, int(normalise), int(right_slope))
    dcls.call("scatter_backward", DTYPES.index(dtype), grad, weight, P, Out(found[0]), Out(found[1]), *geometry)
    inputs_ = [weight.double().requires_grad_(), P.double().requires_grad_()]
    kernel = scatter_ref(*inputs_, list(size), list(axes), normalise, right_slope)
    for result, expected in zip(found, torch.autograd.grad(kernel, inputs_, grad.double()), strict=True):
        close(result, expected)


def test_kernels_without_elements(dcls):
    nothing, geometry = torch.empty(0), (2, long([5, 5]), long([1, 0]), 3, 0)
    for name, arguments, more in (
        ("scatter", (nothing, nothing), (1,)),
        ("separable", (nothing, nothing, nothing), (1, 0.27, SEPARABLE_BYTES)),
    ):
        out = torch.empty(3, 5, 5)
        dcls.call(name, 0, *arguments, Out(out), *geometry, *more)
        assert (out == 0).all()


def test_positions_that_are_no_numbers(dcls):
    weight, P = torch.ones(1, 1, 3), torch.zeros(2, 1, 1, 3)
    P[0, 0, 0, 1] = torch.nan
    out = torch.empty(1, 1, 5, 5)
    dcls.call("scatter", 0, weight, P, Out(out), 2, long([5, 5]), long([1, 0]), 1, 3, 1)
    # It is seen at the first cell of its axis, and nowhere else.
    expected = scatter_ref(weight[..., ::2].contiguous(), P[..., ::2].contiguous(), [5, 5], [1, 0], True, False)
    assert out[0, 0, 2, 0].isnan()
    torch.testing.assert_close(out[..., 1:], expected[..., 1:])
    found = torch.empty_like(weight), torch.empty_like(P)
    dcls.call(
        "scatter_backward",
        0,
        torch.ones_like(out),
        weight,
        P,
        *map(Out, found),
        2,
        long([5, 5]),
        long([1, 0]),
        1,
        3,
        1,
        0,
    )
    assert found[0].isnan().tolist() == [[[False, True, False]]]


@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "axes", "outputs", "inputs", "count"), [*GRIDS[:-1], ((200,), (0,), 1, 2, 5)])
def test_separable(dcls, size, axes, outputs, inputs, count, dtype, gaussian):
    check_separable(dcls, size, axes, outputs, inputs, count, dtype, gaussian, SEPARABLE_BYTES)


def check_separable(dcls, size, axes, outputs, inputs, count, dtype, gaussian, most_bytes):
    torch.manual_seed(sum(size) + count)
    weight, P = elements(size, axes, outputs, inputs, count, dtype)
    P = P.clamp(-1000, 1000)  # the plain form makes nan of an infinite distance
    SIG = torch.where(torch.rand(P.shape) < 0.3, 0, torch.randn(P.shape, dtype=dtype))
    least = 0.27 if gaussian else 1.0
    geometry = (len(size), long(size), long(axes), outputs * inputs, count, int(gaussian), least, most_bytes)
    numbers = [value.double().requires_grad_() for value in (weight, P, SIG)]
    kernel = separable_ref(*numbers, list(size), list(axes), gaussian, least)
    out = torch.empty(outputs, inputs, *size, dtype=dtype)
    dcls.call("separable", DTYPES.index(dtype), weight, P, SIG, Out(out), *geometry)
    close(out, kernel.detach())
    grad = torch.randn_like(out)
    found = [torch.empty_like(value) for value in (weight, P, SIG)]
    dcls.call("separable_backward", DTYPES.index(dtype), grad, weight, P, SIG, *map(Out, found), *geometry)
    for result, expected in zip(found, torch.autograd.grad(kernel, numbers, grad.double()), strict=True):
        close(result, expected)


@pytest.mark.parametrize("most_bytes", [300, 16])
@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("grid", [GRIDS[0], GRIDS[2], GRIDS[4]])
def test_separable_without_room_for_vectors(dcls, grid, gaussian, most_bytes):
    check_separable(dcls, *grid, torch.float64, gaussian, most_bytes)


CONVOLUTIONS = [
    # batch, channels, multiplier, image, kernel, stride, padding (top, bottom, left, right), elements
    (2, 3, 1, (12, 10), (7, 7), (1, 1), (3, 3, 3, 3), 5),
    (1, 2, 2, (40, 37), (5, 9), (1, 1), (2, 2, 4, 4), 6),
    (5, 2, 1, (7, 7), (17, 17), (1, 1), (8, 8, 8, 8), 9),
    (2, 2, 3, (13, 16), (6, 5), (2, 3), (0, 4, 5, 1), 4),
    (3, 1, 2, (9, 4), (3, 3), (4, 5), (1, 0, 2, 1), 12),
    (1, 1, 1, (1, 1), (3, 3), (1, 1), (1, 1, 1, 1), 3),
    (1, 2, 1, (6, 6), (3, 3), (100, 1), (1, 1, 1, 1), 3),
    (2, 2, 1, (1, 50), (1, 9), (1, 2), (0, 0, 4, 4), 4),
    (2, 1, 1, (5, 5), (7, 7), (1, 1), (3, 3, 3, 3), 600),
    (2, 2, 1, (5, 5), (3, 3), (1, 1), (1, 1, 1, 1), 0),
    (0, 2, 1, (5, 5), (3, 3), (1, 1), (1, 1, 1, 1), 2),
]


def barely_on(P, kernel):
    """Which elements touch the grid with less than a twentieth of themselves."""
    share = torch.ones_like(P[0])
    for p, size in zip(P, reversed(kernel), strict=True):  # columns, then rows
        cells = torch.arange(size, dtype=P.dtype) - size // 2
        share *= (1 - (p[..., None] - cells).abs()).clamp_min(0).sum(-1)
    return (share > 0) & (share < 0.05)


class Case:
    """A convolution by the plain forms in double precision, and what the driver is given."""

    def __init__(self, case, dtype, normalise=True, right_slope=False, channels_last=False):
        batch, channels, multiplier, image, kernel, stride, padding, count = case
        torch.manual_seed(sum(image) + count)
        self.dtype, self.count = dtype, count
        self.sums = dtype if dtype == torch.float64 else torch.float32
        weight, P = elements(kernel, (1, 0), channels * multiplier, 1, count, self.sums)
        P[:, barely_on(P, kernel)] = 0  # divided by next to nothing, they lose the digits that are compared
        self.weight, self.P = weight, P
        self.input = torch.randn(batch, channels, *image).to(dtype)
        top, bottom, left, right = padding
        numbers = [value.double().requires_grad_() for value in (self.input, weight, P)]
        dense = torch.zeros(channels * multiplier, 1, *kernel, dtype=torch.float64)
        if count:
            dense = scatter_ref(numbers[1], numbers[2], list(kernel), [1, 0], normalise, right_slope)
        y = F.conv2d(F.pad(numbers[0], (left, right, top, bottom)), dense, None, stride, groups=channels)
        self.expected = y.detach()
        self.grad = torch.randn(y.shape).to(dtype)
        self.grads = torch.autograd.grad(y, numbers, self.grad.double(), allow_unused=True)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.numbers = [batch, channels, multiplier, *image, *y.shape[2:], *stride, top, left, *kernel]
        self.numbers += [int(normalise), int(right_slope)]

    def geometry(self, first, second):
        return long([*self.numbers, *first.stride(), *second.stride()]), long([1, 0]), self.count

    def stored(self, value):
        """The numbers of an image in the order that they are stored in, to be passed by address."""
        laid = value.contiguous(memory_format=self.format)
        return laid, laid.as_strided((laid.numel(),), (1,))

    def gather(self, dcls, source, target_size, back, plane_bytes):
        laid, flat = self.stored(source)
        target = torch.empty(target_size, dtype=self.dtype, memory_format=self.format)
        out = torch.empty(target.numel(), dtype=self.dtype)
        geometry = self.geometry(laid, target)
        code = DTYPES.index(self.dtype)
        dcls.call("sparse_gather", code, flat, self.weight, self.P, Out(out), *geometry, int(back), plane_bytes)
        return out.as_strided(target.shape, target.stride())

    def check(self, dcls, plane_bytes=PLANE_BYTES):
        close(self.gather(dcls, self.input, self.expected.shape, False, plane_bytes), self.expected)
        close(self.gather(dcls, self.grad, self.input.shape, True, plane_bytes), self.grads[0])
        if not self.count:
            return
        grad, flat_grad = self.stored(self.grad)
        laid, flat = self.stored(self.input)
        found = torch.empty_like(self.weight), torch.empty_like(self.P)
        given = (flat_grad, flat, self.weight, self.P, Out(found[0]), Out(found[1]), *self.geometry(grad, laid))
        dcls.call("sparse_kernel_grads", DTYPES.index(self.dtype), *given, plane_bytes)
        for result, expected in zip(found, self.grads[1:], strict=True):
            close(result, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_sparse(dcls, case, dtype):
    Case(case, dtype).check(dcls)


@pytest.mark.parametrize("plane_bytes", [0, 600])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_sparse_without_room_for_a_plane(dcls, case, plane_bytes):
    Case(case, torch.float64).check(dcls, plane_bytes)


@pytest.mark.parametrize("case", CONVOLUTIONS[:5])
@pytest.mark.parametrize(("normalise", "right_slope"), [(False, False), (False, True), (True, True)])
def test_sparse_as_drawn(dcls, case, normalise, right_slope):
    Case(case, torch.float64, normalise, right_slope).check(dcls)


@pytest.mark.parametrize("case", CONVOLUTIONS[:5])
def test_sparse_in_channels_last(dcls, case):
    Case(case, torch.float64, channels_last=True).check(dcls)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_sparse_of_any_shape(dcls, data):
    def pair(least, most):
        return data.draw(st.integers(least, most)), data.draw(st.integers(least, most))

    kernel, padding = pair(1, 9), (*pair(0, 4), *pair(0, 4))
    extra = pair(0, 9)
    image = tuple(max(1, kernel[i] + extra[i] - padding[2 * i] - padding[2 * i + 1]) for i in range(2))
    case = (*pair(1, 3), data.draw(st.integers(1, 3)), image, kernel, pair(1, 4), padding, data.draw(st.integers(1, 9)))
    normalise, right_slope, channels_last = (data.draw(st.booleans()) for _ in range(3))
    plane_bytes = data.draw(st.sampled_from([0, 300, 1500, PLANE_BYTES]))
    Case(case, torch.float64, normalise, right_slope, channels_last).check(dcls, plane_bytes)
