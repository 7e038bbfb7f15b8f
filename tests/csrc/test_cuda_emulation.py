"""The CUDA kernels of the large depthwise ops, run on the CPU, against a convolution in fp64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from .emulation import DTYPES, Out, needs_compiler

pytestmark = needs_compiler

SHARED = 48 * 1024

# batch, channels, multiplier, size, kernel, stride, padding (top, bottom, left, right)
CASES = {
    "one pixel": (2, 3, 1, (1, 1), (3, 3), (1, 1), (1, 1, 1, 1)),
    "one tap": (3, 2, 1, (5, 6), (1, 1), (1, 1), (0, 0, 0, 0)),
    "7 in 7": (5, 2, 1, (7, 7), (7, 7), (1, 1), (3, 3, 3, 3)),
    "17 in 14": (2, 2, 1, (14, 14), (17, 17), (1, 1), (8, 8, 8, 8)),
    "13 in 9": (1, 1, 1, (9, 9), (13, 13), (1, 1), (6, 6, 6, 6)),
    "31 in 9": (1, 1, 1, (9, 9), (31, 31), (1, 1), (15, 15, 15, 15)),
    "kernel larger than image and padding": (1, 1, 2, (3, 4), (6, 5), (1, 1), (2, 1, 0, 1)),
    "7 in 40, stride 2": (1, 2, 1, (40, 38), (7, 7), (2, 2), (3, 3, 3, 3)),
    "17 in 28, stride 2": (1, 1, 1, (28, 28), (17, 17), (2, 2), (8, 8, 8, 8)),
    "a line": (2, 2, 1, (1, 600), (1, 9), (1, 1), (0, 0, 4, 4)),
    "a column": (1, 1, 1, (300, 1), (9, 1), (1, 1), (4, 4, 0, 0)),
    "several tiles": (1, 1, 1, (70, 150), (5, 5), (1, 1), (2, 2, 2, 2)),
    "multiplier": (2, 2, 3, (8, 7), (5, 3), (1, 1), (2, 2, 1, 1)),
    "stride larger than kernel": (2, 1, 1, (17, 19), (2, 3), (5, 4), (0, 0, 0, 0)),
    "stride larger than image": (1, 2, 1, (5, 4), (5, 4), (9, 7), (1, 1, 0, 2)),
    "padding larger than kernel": (1, 1, 1, (4, 5), (3, 3), (2, 1), (7, 6, 5, 8)),
    "kernel beyond shared memory": (1, 1, 1, (12, 10), (130, 135), (1, 1), (64, 66, 67, 67)),
}


@pytest.fixture(scope="module")
def large_depthwise(driver):
    return driver("large_depthwise_driver")


def check(driver, case, dtype, blocks=1 << 30, shared=SHARED, orders=(0, 2)):
    batch, channels, multiplier, size, kernel, stride, (top, bottom, left, right) = case
    x = torch.randn(batch, channels, *size, dtype=torch.float64).to(dtype)
    w = torch.randn(channels * multiplier, 1, *kernel, dtype=torch.float64).to(dtype)
    b = torch.randn(channels * multiplier, dtype=torch.float64).to(dtype)
    exact = [t.double().requires_grad_() for t in (x, w, b)]
    y = F.conv2d(F.pad(exact[0], (left, right, top, bottom)), *exact[1:], stride, 0, 1, channels)
    g = torch.randn(y.shape, dtype=torch.float64).to(dtype)
    dx, dw, _ = torch.autograd.grad(y, exact, g.double())
    numbers = torch.tensor([batch, channels, multiplier, *size, *kernel, *stride, top, left, *y.shape[2:]])
    limits, code = (blocks, shared), DTYPES.index(dtype)

    def close(ours, theirs, terms):
        # The result is rounded once, and each of the sums before it in fp64 or fp32.
        summed = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        bound = torch.finfo(dtype).eps * theirs.abs() + 4 * summed * terms**0.5 * theirs.abs().max().clamp(min=1)
        assert ((ours.double() - theirs).abs() <= bound).all()

    ours = torch.empty_like(g)
    driver.call("forward", code, x, w, b, 1, Out(ours), numbers, *limits, orders=orders)
    close(ours, y, w[0].numel())
    driver.call("forward", code, x, w, b, 0, Out(ours), numbers, *limits, orders=orders[:1])
    close(ours, y - exact[2].view(-1, 1, 1), w[0].numel())
    ours = torch.empty_like(x)
    driver.call("input_grad", code, g, w, Out(ours), numbers, *limits, orders=orders)
    close(ours, dx, w[0].numel() * multiplier)
    ours = torch.empty_like(w)
    driver.call("weight_grad", code, g, x, Out(ours), numbers, *limits, orders=orders)
    close(ours, dw, g[:, 0].numel())


@pytest.mark.parametrize("name", CASES)
def test_fp64(large_depthwise, name):
    check(large_depthwise, CASES[name], torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["7 in 7", "17 in 14", "7 in 40, stride 2", "multiplier"])
def test_other_dtypes(large_depthwise, name, dtype):
    check(large_depthwise, CASES[name], dtype, orders=(2,))


@st.composite
def cases(draw):
    def pair(low, high):
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    size, kernel, stride = pair(1, 20), pair(1, 12), pair(1, 4)
    (top, left), (bottom, right) = pair(0, 7), pair(0, 7)
    bottom = max(bottom, kernel[0] - size[0] - top)
    right = max(right, kernel[1] - size[1] - left)
    few = st.integers(1, 4)
    return draw(few), draw(few), draw(few), size, kernel, stride, (top, bottom, left, right)


@settings(max_examples=40, deadline=None)
@given(case=cases(), blocks=st.sampled_from([1, 3, 1 << 30]), shared=st.sampled_from([2048, 4096, SHARED]))
def test_random_shapes(large_depthwise, case, blocks, shared):
    """Also with less shared memory, which cuts the work into more passes, and with fewer blocks than there is work."""
    check(large_depthwise, case, torch.float64, blocks, shared, orders=(2,))
