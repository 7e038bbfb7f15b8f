"""Numbers that there are no kernels for, which torch's own operations convolve: complex ones and integers."""

import pytest
import torch
import torch.nn.functional as F

from convswap.layers.functional import guided_channelwise_conv2d, guided_local_conv2d, large_depthwise_conv2d
from convswap.layers.ops._autocast import autocast_like_conv

from .guided import Case, by_index

CASES = {
    "channelwise": Case(2, None, 3, 2, (6, 7), (3, 3), padding=(1, 1, 1, 1), bias=True),
    "local": Case(2, 2, 3, 2, (6, 7), (3, 3), padding=(1, 1, 1, 1), bias=True),
}


def convolve(case, x, weight, bias):
    if case.groups is None:
        return guided_channelwise_conv2d(x, weight, bias, case.kernel)
    return guided_local_conv2d(x, weight, bias, case.kernel, groups=case.groups)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_complex_guided(case, dtype):
    parts = zip(case.tensors(), case.tensors(seed=1), strict=True)
    tensors = [torch.complex(real, imaginary) for real, imaginary in parts]
    rounded = [value.to(dtype).requires_grad_() for value in tensors]
    exact = [value.detach().to(torch.complex128).requires_grad_() for value in rounded]
    tolerance = 1e-12 if dtype == torch.complex128 else 1e-5
    y, wanted = convolve(case, *rounded), by_index(*exact, case)
    assert y.dtype == dtype
    assert (y - wanted).abs().max() < tolerance * wanted.abs().max()
    gradients = torch.autograd.grad(y, rounded, y.detach())
    for got, due in zip(gradients, torch.autograd.grad(wanted, exact, wanted.detach()), strict=True):
        assert (got - due).abs().max() < tolerance * due.abs().max()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_integers_guided(case, dtype):
    """Exactly, beyond what single precision can hold; those of few bits start again from 0, as torch's do."""
    factor = {torch.int64: 2**30 + 1, torch.int32: 2**13 + 1, torch.uint8: 255}[dtype]
    whole = [(factor * value).long().remainder(factor) + 1 for value in case.tensors()]
    got = convolve(case, *(value.to(dtype) for value in whole))
    wanted = by_index(*(value.to(dtype).long() for value in whole), case)
    assert torch.equal(got, wanted.to(dtype))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int64, torch.uint8], ids=str)
def test_large_depthwise(dtype):
    x, weight = torch.randint(0, 9, (2, 3, 9, 8)).to(dtype), torch.randint(0, 9, (6, 1, 5, 5)).to(dtype)
    if dtype.is_complex:
        x, weight = x * (1 + 2j), weight * (3 - 1j)
    got = large_depthwise_conv2d(x, weight, None, 1, 2)
    torch.testing.assert_close(got, F.conv2d(x, weight, None, 1, 2, 1, 3))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.float64, torch.float32], ids=str)
def test_autocast_takes_what_it_takes_of_a_convolution(dtype):
    value = torch.ones(1, 1, 3, 3, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = F.conv2d(value, value).dtype
        assert autocast_like_conv(value).dtype == wanted
