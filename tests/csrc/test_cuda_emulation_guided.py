"""The CUDA kernels of the guided ops, run on the CPU, against their index formula in fp64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from .emulation import DTYPES, Out, needs_compiler

pytestmark = needs_compiler

MANY, FEW = 1 << 17, 0
"""Threads that have to remain where one has several outputs or inputs; with 0 it always has."""

# batch, groups, inputs and outputs of a group, size, kernel, stride, dilation, padding (top, bottom, left, right)
CASES = {
    "one pixel": (2, 2, 2, 3, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "one tap": (2, 1, 3, 5, (4, 6), (1, 1), (1, 1), (1, 1), (0, 0, 0, 0)),
    "3 in 7": (3, 2, 1, 1, (7, 7), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "3 in 8": (2, 1, 5, 6, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "3 in 14": (1, 3, 1, 1, (14, 14), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "3 in 6, unpadded": (1, 2, 1, 2, (6, 6), (3, 3), (1, 1), (1, 1), (0, 0, 0, 0)),
    "several blocks": (1, 1, 1, 1, (29, 36), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "7 by 5": (1, 2, 2, 1, (9, 12), (7, 5), (1, 1), (1, 1), (3, 3, 2, 2)),
    "even": (2, 1, 2, 5, (8, 7), (4, 2), (1, 1), (1, 1), (1, 2, 0, 1)),
    "stride 2": (1, 2, 1, 3, (13, 16), (3, 3), (2, 2), (1, 1), (1, 1, 1, 1)),
    "stride 3 by 2, dilation 2 by 3": (1, 1, 2, 2, (17, 19), (3, 4), (3, 2), (2, 3), (2, 1, 3, 4)),
    "stride 4, dilation 6": (1, 1, 1, 1, (25, 26), (3, 3), (4, 4), (6, 6), (6, 6, 5, 7)),
    "dilation 2": (1, 2, 2, 1, (9, 8), (3, 3), (1, 1), (2, 2), (2, 2, 2, 2)),
    "stride larger than kernel": (2, 1, 1, 2, (11, 13), (2, 1), (4, 3), (1, 1), (0, 0, 0, 0)),
    "padding larger than kernel": (1, 1, 1, 1, (2, 3), (3, 2), (1, 2), (1, 1), (5, 4, 3, 6)),
    "a line": (1, 1, 2, 1, (1, 40), (1, 5), (1, 1), (1, 1), (0, 0, 2, 2)),
    "a column": (1, 1, 1, 2, (40, 1), (5, 1), (1, 1), (1, 1), (2, 2, 0, 0)),
}


@pytest.fixture(scope="module")
def guided(driver):
    return driver("guided_driver")


def formula(x, w, groups, kernel, stride, dilation, padding):
    """y[b, o, p] = Σ w[b, i, n, o, p] x[b, i, p stride + n dilation]; w (B, inputs, taps, Co, Ho, Wo)."""
    top, bottom, left, right = padding
    x = F.pad(x, (left, right, top, bottom)).unflatten(1, (groups, -1))
    w = w.unflatten(3, (groups, -1))
    rows, columns = (torch.arange(n) * s for n, s in zip(w.shape[-2:], stride, strict=True))
    y = 0
    for tap in range(w.shape[2]):
        down, across = (i * d for i, d in zip(divmod(tap, kernel[1]), dilation, strict=True))
        seen = x[..., (rows + down)[:, None], columns + across]
        y = y + torch.einsum("bigohw,bgihw->bgohw", w[:, :, tap], seen)
    return y.flatten(1, 2)


def check(driver, case, dtype, blocks=1 << 30, enough=MANY, by_output=False, orders=(0, 1)):
    batch, groups, inputs, outputs, size, kernel, stride, dilation, padding = case
    top, bottom, left, right = padding
    padded = size[0] + top + bottom, size[1] + left + right
    out = [(n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip(padded, kernel, stride, dilation, strict=True)]
    shape = batch, inputs, kernel[0] * kernel[1], groups * outputs, *out
    x = torch.randn(batch, groups * inputs, *size, dtype=torch.float64).to(dtype)
    w = torch.randn(shape, dtype=torch.float64).to(dtype)
    b = torch.randn(batch, groups * outputs, dtype=torch.float64).to(dtype)
    g = torch.randn(batch, groups * outputs, *out, dtype=torch.float64).to(dtype)
    exact = [t.double().requires_grad_() for t in (x, w)]
    y = formula(*exact, groups, kernel, stride, dilation, padding)
    dx, dw = torch.autograd.grad(y, exact, g.double())
    stored = w[:, 0].transpose(1, 2).contiguous() if by_output else w
    pairs = [*size, *kernel, *stride, *dilation, top, left, *out]
    numbers = torch.tensor([batch, groups, inputs, outputs, *pairs, int(by_output)])
    limits, code = (blocks, enough), DTYPES.index(dtype)

    def close(ours, theirs, terms):
        # The result is rounded once, and each of the sums before it in fp64 or fp32.
        summed = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        bound = torch.finfo(dtype).eps * theirs.abs() + 4 * summed * terms**0.5 * theirs.abs().max().clamp(min=1)
        assert ((ours.double() - theirs).abs() <= bound).all()

    ours = torch.empty_like(g)
    driver.call("forward", code, x, stored, b, 0, Out(ours), numbers, *limits, orders=orders)
    close(ours, y, inputs * shape[2])
    driver.call("forward", code, x, stored, b, 1, Out(ours), numbers, *limits, orders=orders[:1])
    close(ours, y + b.double()[:, :, None, None], inputs * shape[2])
    ours = torch.empty_like(x)
    driver.call("input_grad", code, g, stored, Out(ours), numbers, *limits, orders=orders)
    close(ours, dx, outputs * shape[2])
    ours = torch.empty_like(stored)
    driver.call("weight_grad", code, g, x, Out(ours), numbers, *limits, orders=orders)
    close(ours, dw[:, 0].transpose(1, 2) if by_output else dw, 1)


@pytest.mark.parametrize("enough", [FEW, MANY], ids=["several", "one"])
@pytest.mark.parametrize("name", CASES)
def test_fp64(guided, name, enough):
    check(guided, CASES[name], torch.float64, enough=enough)


@pytest.mark.parametrize("enough", [FEW, MANY], ids=["several", "one"])
@pytest.mark.parametrize("name", ["3 in 7", "3 in 8", "3 in 14", "7 by 5", "even", "stride 2", "dilation 2"])
def test_bfloat16(guided, name, enough):
    check(guided, CASES[name], torch.bfloat16, enough=enough)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2] == 1])
def test_kernels_laid_out_by_output(guided, name):
    check(guided, CASES[name], torch.float64, by_output=True)


@st.composite
def cases(draw):
    def pair(low, high):
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    size, kernel, stride, dilation = pair(1, 13), pair(1, 5), pair(1, 4), pair(1, 4)
    if draw(st.booleans()):  # the usual ones, which are drawn next to never
        kernel, stride, dilation = draw(st.sampled_from([kernel, (3, 3)])), (1, 1), (1, 1)
    (top, left), (bottom, right) = pair(0, 5), pair(0, 5)
    bottom = max(bottom, (kernel[0] - 1) * dilation[0] + 1 - size[0] - top)
    right = max(right, (kernel[1] - 1) * dilation[1] + 1 - size[1] - left)
    few = st.integers(1, 3)
    counts = draw(few), draw(few), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    return *counts, size, kernel, stride, dilation, (top, bottom, left, right)


@settings(max_examples=150, deadline=None)
@given(case=cases(), blocks=st.sampled_from([1, 3, 1 << 30]), enough=st.sampled_from([FEW, MANY]))
def test_random_shapes(guided, case, blocks, enough):
    """Also with fewer blocks than there is work."""
    check(guided, case, torch.float64, blocks, enough, orders=(1,))


@pytest.mark.parametrize("value", [1, 2, 3, 7, 49, 56, 64, 3136, (1 << 30) - 1, (1 << 31) - 1, 1 << 31, 5 << 40])
def test_items_are_decoded_exactly(guided, value):
    near = torch.cat([k * value + torch.arange(-2, 3) for k in (0, 1, 2, (2**31 - 1) // value, 2**62 // value // 2)])
    ends = torch.tensor([0, 1, 2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, 2**40 + 12345])
    numbers = torch.cat([near, ends, torch.randint(2**31, (200,)), torch.randint(2**60, (50,))])
    numbers = numbers[numbers >= 0]
    quotients, digits = torch.empty_like(numbers), torch.empty_like(numbers)
    guided.call("divide", numbers, len(numbers), value, Out(quotients), Out(digits))
    assert torch.equal(quotients, numbers // value)
    assert torch.equal(digits, numbers % value)
