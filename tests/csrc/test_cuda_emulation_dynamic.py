"""The CUDA kernels of the dynamic ops, run on the CPU, against convolutions of each sample with its kernel in fp64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ..layers.helpers import few_examples
from .emulation import DTYPES, Out, needs_compiler

pytestmark = needs_compiler

MANY, FEW = 264, 0
"""Blocks that keep a GPU busy: what sums are cut into parts for, or not at all."""

# batch, kernels, groups, inputs and outputs of a group, size, kernel, stride, dilation, padding (top, bottom, left,
# right)
CASES = {
    "one pixel": (2, 2, 1, 3, 40, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "one tap": (3, 4, 1, 40, 36, (4, 6), (1, 1), (1, 1), (1, 1), (0, 0, 0, 0)),
    "long reduction": (1, 2, 1, 34, 33, (5, 4), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "samples that share a tile": (5, 3, 1, 5, 70, (7, 7), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "several tiles": (1, 2, 1, 4, 33, (17, 18), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "few outputs": (2, 5, 2, 9, 11, (6, 7), (3, 2), (1, 1), (1, 1), (1, 1, 0, 1)),
    "few outputs, one kernel": (1, 1, 1, 17, 16, (5, 5), (3, 3), (2, 2), (1, 1), (1, 1, 1, 1)),
    "depthwise": (3, 4, 6, 1, 1, (9, 8), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "depthwise, several tiles": (1, 2, 2, 1, 1, (23, 24), (5, 5), (1, 1), (1, 1), (2, 2, 2, 2)),
    "depthwise, 9 by 9, stride 2": (1, 3, 2, 1, 2, (11, 10), (9, 9), (2, 2), (1, 1), (4, 4, 4, 4)),
    "narrow": (2, 3, 3, 4, 5, (8, 7), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "narrow, many inputs": (2, 2, 1, 20, 3, (6, 5), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    "stride 2": (2, 2, 1, 12, 35, (9, 8), (3, 3), (2, 2), (1, 1), (1, 1, 1, 1)),
    "stride 3 by 2, dilation 2 by 3": (1, 2, 1, 10, 12, (17, 19), (3, 4), (3, 2), (2, 3), (2, 1, 3, 4)),
    "stride 4, dilation 6": (1, 2, 1, 9, 33, (15, 16), (3, 3), (4, 4), (6, 6), (6, 6, 5, 7)),
    "stride larger than kernel": (2, 1, 2, 9, 10, (11, 13), (2, 1), (4, 3), (1, 1), (0, 0, 0, 0)),
    "padding larger than kernel": (1, 2, 1, 2, 9, (2, 3), (3, 2), (1, 2), (1, 1), (5, 4, 3, 6)),
}


@pytest.fixture(scope="module")
def dynamic(driver):
    return driver("dynamic_driver")


def formula(x, w, a, geometry, groups):
    """y[b] = (Σ a[b, k] w[k]) * x[b]; x is padded."""
    stride, dilation = geometry
    mixed = torch.einsum("bk,koihw->boihw", a, w)
    samples = zip(x[:, None], mixed, strict=True)
    return torch.cat([F.conv2d(one, kernel, None, stride, 0, dilation, groups) for one, kernel in samples])


def stored(tensor, last):
    """In memory with the channels last, if asked for."""
    return tensor.permute(0, 2, 3, 1).contiguous() if last else tensor.contiguous()


def check(driver, case, dtype, blocks=1 << 30, enough=MANY, last=False, orders=(0, 2)):
    batch, kernels, groups, inputs, outputs, size, kernel, stride, dilation, padding = case
    top, bottom, left, right = padding
    pad = (left, right, top, bottom)

    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64).to(dtype)

    x, a = draw(batch, groups * inputs, *size), draw(batch, kernels)
    w = draw(kernels, groups * outputs, inputs, *kernel)
    exact = [t.double().requires_grad_() for t in (x, w, a)]
    geometry = (stride, dilation), groups
    y = formula(F.pad(exact[0], pad), *exact[1:], *geometry)
    g, b = draw(*y.shape), draw(batch, groups * outputs)
    dx, dw, da = torch.autograd.grad(y, exact, g.double())
    pairs = [*size, *kernel, *stride, *dilation, top, left, *y.shape[2:]]
    numbers = torch.tensor([batch, kernels, groups, inputs, outputs, *pairs, int(last)])
    limits, code = (blocks, enough), DTYPES.index(dtype)
    w_stored = stored(w.flatten(0, 1), last)

    # Half precision multiplies with mixed kernels that are rounded to it, each by half of this.
    sizes = [t.detach().abs().requires_grad_() for t in exact]
    most = formula(F.pad(sizes[0], pad), *sizes[1:], *geometry)
    x_most, w_most, a_most = torch.autograd.grad(most, sizes, g.double().abs())
    rounded = torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0
    summed = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps

    def close(ours, theirs, size, mixed, terms):
        bound = torch.finfo(dtype).eps * theirs.abs() + (mixed * rounded + 4 * summed * terms**0.5) * size
        worst = ((ours.double() - theirs).abs() - bound).nan_to_num(torch.inf).max().item()
        assert worst <= 0

    taps = kernel[0] * kernel[1]
    ours = torch.empty_like(stored(g, last))
    terms = inputs * taps * kernels
    driver.call("convolve", code, 0, x, w_stored, a, b, 0, Out(ours), numbers, int(last), *limits, orders=orders)
    close(ours, stored(y.detach(), last), stored(most.detach(), last), 1.1, terms)
    driver.call("convolve", code, 0, x, w_stored, a, b, 1, Out(ours), numbers, int(last), *limits, orders=orders[:1])
    y, most = y.detach() + b.double()[:, :, None, None], most.detach() + b.double().abs()[:, :, None, None]
    close(ours, stored(y, last), stored(most, last), 1.1, terms)
    ours = torch.empty_like(stored(x, last))
    driver.call("convolve", code, 1, g, w_stored, a, b, 0, Out(ours), numbers, int(last), *limits, orders=orders)
    close(ours, stored(dx, last), stored(x_most, last), 1.1, outputs * taps * kernels)
    ours, own = torch.empty_like(w_stored), torch.empty_like(a)
    driver.call("weight_grad", code, g, x, w_stored, a, Out(ours), Out(own), numbers, *limits, orders=orders)
    close(ours, stored(dw.flatten(0, 1), last), stored(w_most.flatten(0, 1), last), 0, g[:, 0].numel())
    close(own, da, a_most, 0, g[0].numel() * inputs * taps)


@pytest.mark.parametrize("name", CASES)
def test_fp32(dynamic, name):
    check(dynamic, CASES[name], torch.float32, enough=FEW)


@pytest.mark.parametrize("name", ["long reduction", "few outputs", "depthwise", "narrow"])
def test_in_parts(dynamic, name):
    check(dynamic, CASES[name], torch.float32, last=True)


@pytest.mark.parametrize("name", ["one tap", "depthwise", "narrow", "stride 2"])
def test_fp64(dynamic, name):
    check(dynamic, CASES[name], torch.float64, last=True, orders=(2,))


@pytest.mark.parametrize("name", ["samples that share a tile", "few outputs", "depthwise", "narrow", "stride 2"])
def test_bfloat16(dynamic, name):
    check(dynamic, CASES[name], torch.bfloat16, last=name == "few outputs")


@pytest.mark.parametrize(
    ("name", "dtype"), [("several tiles", torch.float64), ("narrow, many inputs", torch.float32)], ids=str
)
def test_one_block_after_the_other(dynamic, name, dtype):
    """In the same shared memory."""
    check(dynamic, CASES[name], dtype, blocks=1, orders=(0, 2, 3))


@st.composite
def cases(draw):
    def pair(low, high):
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    size, kernel, stride, dilation = pair(1, 9), pair(1, 4), pair(1, 3), pair(1, 3)
    (top, left), (bottom, right) = pair(0, 4), pair(0, 4)
    bottom = max(bottom, (kernel[0] - 1) * dilation[0] + 1 - size[0] - top)
    right = max(right, (kernel[1] - 1) * dilation[1] + 1 - size[1] - left)
    few, many = st.integers(1, 3), st.sampled_from([1, 2, 5, 9, 17, 33])
    counts = draw(st.integers(1, 5)), draw(few), draw(few), draw(many), draw(many)
    return *counts, size, kernel, stride, dilation, (top, bottom, left, right)


@settings(few_examples, max_examples=15)
@given(cases(), st.sampled_from([1, 3, 1 << 30]), st.sampled_from([FEW, MANY]), st.booleans())
def test_random_shapes(dynamic, case, blocks, enough, last):
    """Also with fewer blocks than there is work."""
    check(dynamic, case, torch.float32, blocks, enough, last, orders=(2,))
