"""The CUDA kernels of padding by extrapolation, run on the CPU, against the plain form in fp64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convswap.layers.ops.extrapolate_pad import extrapolate_pad_backward_ref, extrapolate_pad_ref

from ..layers.helpers import few_examples
from .emulation import DTYPES, Out, needs_compiler

pytestmark = needs_compiler

# batch, channels, and for each axis: size, padding before and after, order before and after
CASES = {
    "one pixel": (1, 1, (1, 2, 3, 0, 0)),
    "no padding": (2, 3, (5, 0, 0, 7, 0), (9, 0, 0, 0, 1)),
    "rows shorter than a vector": (3, 2, (4, 1, 0, 3, 1), (1, 0, 1, 0, 0)),
    "several rows in a vector": (2, 8, (3, 1, 1, 0, 2), (2, 1, 0, 1, 1), (1, 0, 0, 0, 0)),
    "several blocks": (2, 16, (17, 1, 1, 2, 2), (30, 1, 1, 2, 2)),
    "sides meet": (2, 8, (4, 3, 2, 3, 3), (5, 2, 3, 4, 2)),
    "wide": (1, 2, (3, 0, 40, 0, 2), (130, 21, 2, 1, 3)),
    "more weights than a launch takes": (1, 8, (18, 8, 7, 16, 16), (19, 9, 1, 16, 2)),
    "a volume": (2, 8, (5, 1, 2, 2, 1), (4, 2, 0, 1, 0), (6, 1, 1, 2, 3)),
    "a signal": (3, 5, (41, 3, 3, 6, 6)),
}


@pytest.fixture(scope="module")
def kernels(driver):
    return driver("extrapolate_driver")


def weighed(images, axes, back, absolute=False):
    """The same by matrices, along one axis after the other."""
    for i, (size, before, after, *order) in enumerate(axes):
        matrix = extrapolate_pad_ref(torch.eye(size, dtype=images.dtype)[None], [before, after], order)[0]
        matrix = matrix.abs() if absolute else matrix
        images = (images.movedim(2 + i, -1) @ (matrix.T if back else matrix)).movedim(-1, 2 + i)
    return images


def check(driver, case, dtype, channels_last, *, wide=0, off=0, blocks=1 << 30, orders=(0, 2)):
    batch, channels, *axes = case
    padding, order = [p for axis in axes for p in axis[1:3]], [o for axis in axes for o in axis[3:]]
    outer, inner = (batch, channels) if channels_last else (batch * channels, 1)
    missing = [(1, 0, 0, 0, 0)] * (3 - len(axes))
    numbers = torch.tensor([outer, inner, *(n for axis in (*missing, *axes) for n in axis)])

    def stored(images):
        return images.movedim(1, -1).contiguous() if channels_last else images

    x = torch.randn(batch, channels, *(axis[0] for axis in axes), dtype=torch.float64).to(dtype)
    for back, plain in enumerate((extrapolate_pad_ref, extrapolate_pad_backward_ref)):
        exact = plain(x.double(), padding, order)
        found = torch.empty_like(stored(exact), dtype=dtype)
        source = torch.cat([x.new_zeros(off), stored(x).flatten()])
        code = DTYPES.index(dtype)
        driver.call("extrapolate", code, source, Out(found), numbers, off, back, wide, blocks, orders=orders)
        # The result is rounded once, and in fp64 or fp32 the weights and their products, terms and sums.
        exact, size = stored(exact), stored(weighed(x.double().abs(), axes, back, absolute=True))
        terms = math.prod(1 + sum(axis[1:3] if back else axis[3:]) for axis in axes)
        summed = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        bound = torch.finfo(dtype).eps * exact.abs() + (3 + terms**0.5) * summed * size
        assert ((found.double() - exact).abs() <= bound).all()
        x = torch.randn(exact.shape, dtype=torch.float64).to(dtype)
        x = x.movedim(-1, 1) if channels_last else x


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CASES)
def test_fp64(kernels, name, channels_last):
    check(kernels, CASES[name], torch.float64, channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["several rows in a vector", "several blocks", "sides meet", "a volume"])
def test_other_dtypes(kernels, name, channels_last, dtype):
    check(kernels, CASES[name], dtype, channels_last)


def test_an_image_that_is_not_aligned(kernels):
    check(kernels, CASES["a volume"], torch.float32, True, off=1)


def test_pixels_inside_are_copied(kernels):
    """No sum is made of them: infinities, numbers that are none, and the sign of a zero remain."""
    x = torch.tensor([-0.0, 1, torch.inf, torch.nan, -torch.inf, -0.0]).view(1, 6)
    found = torch.empty(1, 10)
    numbers = torch.tensor([1, 1, *(1, 0, 0, 0, 0) * 2, 6, 2, 2, 0, 0])
    kernels.call("extrapolate", 0, x, Out(found), numbers, 0, 0, 0, 1)
    assert torch.equal(found[:, 2:8].view(torch.int32), x.view(torch.int32))


@st.composite
def cases(draw):
    axes = []
    for _ in range(draw(st.integers(1, 3))):
        size, pad = draw(st.integers(1, 9)), st.integers(0, 5)
        order = st.integers(0, min(size - 1, 5))
        axes.append((size, draw(pad), draw(pad), draw(order), draw(order)))
    return draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 4, 6])), *axes


@few_examples
@given(
    case=cases(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    channels_last=st.booleans(),
    wide=st.integers(0, 1),
    blocks=st.sampled_from([1, 3, 1 << 30]),
)
def test_random_shapes(kernels, case, dtype, channels_last, wide, blocks):
    """Also with places counted in 64 bits, and with fewer blocks than there is work."""
    check(kernels, case, dtype, channels_last, wide=wide, blocks=blocks, orders=(2,))
