"""The CUDA kernels of the activation of hybrid dense layers, run on the CPU, against its formula in fp64."""

import pytest
import torch

from .emulation import DTYPES, Out, needs_compiler

pytestmark = needs_compiler

# runs, channels, pixels of a run: images in C order, and rows whose channels are neighbours
CASES = [(3, 5, 7), (2, 2, 1030), (9, 3, 1), (300, 40, 1), (1, 1, 1), (4, 33, 2)]


@pytest.fixture(scope="module")
def hybrid(driver):
    return driver("hybrid_driver")


def formula(z, muls, powers):
    """Of finite numbers that do not saturate."""
    return torch.sign(z) * muls.abs() * (z.relu() + 1e-8) ** powers.clamp(-10, 10)


def close(ours, theirs, size, dtype):
    # Powers are exact to some units; in half the result is rounded as well.
    powered = 1e-13 if dtype == torch.float64 else 3e-6
    rounded = torch.finfo(dtype).eps * theirs.abs() + torch.finfo(dtype).smallest_normal if dtype.itemsize == 2 else 0
    worst = ((ours.double() - theirs).abs() - rounded - powered * size).nan_to_num(torch.inf).max()
    assert worst.item() <= 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CASES)
def test_values_and_gradients(hybrid, shape, dtype):
    channels = shape[1]
    code, limits = DTYPES.index(dtype), (3, 40)
    z, g = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(2))
    z = torch.where(z.abs() < 0.1, z.sign() * 0.1, z)
    muls = torch.randn(channels, dtype=torch.float64).to(dtype)
    powers = (1.5 * torch.rand(channels, dtype=torch.float64)).to(dtype)
    exact = [t.double().requires_grad_() for t in (z, muls, powers)]
    y = formula(exact[0].transpose(1, 2), *exact[1:]).transpose(1, 2)
    gradients = torch.autograd.grad(y, exact, g.double())
    y = y.detach()
    size = (g.double() * y).abs()
    found = torch.empty_like(z)
    hybrid.call("forward", code, z, muls, powers, Out(found), *shape, limits[0], orders=(0, 2))
    close(found, y, y.abs(), dtype)
    ours = [torch.empty_like(t) for t in (z, muls, powers)]
    hybrid.call("backward", code, g, z, muls, powers, *map(Out, ours), *shape, *limits, orders=(0, 2))
    close(ours[0], gradients[0], gradients[0].abs(), dtype)
    close(ours[1], gradients[1], size.sum((0, 2)) / muls.double().abs(), dtype)
    logs = (exact[0].detach().relu() + 1e-8).log().abs()
    close(ours[2], gradients[2], (size * logs).sum((0, 2)), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bounds(hybrid, dtype):
    """Nothing is infinite, and where values saturate, or are no numbers, all gradients are 0."""
    most, nan, inf = torch.finfo(dtype).max, torch.nan, torch.inf
    z = torch.tensor([[0.0, -0.0, most, inf, -inf, nan]] * 7, dtype=dtype)
    muls = torch.tensor([1, -2, 1, 3, nan, 0, most], dtype=dtype)
    powers = torch.tensor([1, -12, 10, nan, 2, -10, 0], dtype=dtype)
    code = DTYPES.index(dtype)
    y, ours = torch.empty_like(z), [torch.empty_like(t) for t in (z, muls, powers)]
    hybrid.call("forward", code, z, muls, powers, Out(y), 1, 7, 6, 9)
    assert y.isfinite().all()
    assert torch.equal(y[:, 1].signbit(), torch.ones(7, dtype=torch.bool))
    clipped = min(2e80, most)  # the power is -10
    assert y[1, :2].tolist() == pytest.approx([clipped, -clipped], rel=1e-12)
    assert y[2, 2:4].tolist() == [most, most]
    assert y[0, 3:].tolist() == [most, y[0, 4].item(), 0]
    assert y[3].abs().max() == y[4].abs().max() == 0
    hybrid.call("backward", code, torch.full_like(z, most), z, muls, powers, *map(Out, ours), 1, 7, 6, 9, 1)
    assert all(t.isfinite().all() for t in ours)
    assert (ours[0][1] == 0).all()
    assert ours[1][1] == 0 or clipped < most
    assert ours[2][1] == 0
    assert (ours[0][3:5] == 0).all()
