"""How a guide is brought to the size that a hypernet needs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convswap.layers.hypernet import fit_guide

from .helpers import few_examples, normal, relative_error, seeds

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def averaged(x, size):
    """Mean of the pixels that each output overlaps, along the last axis."""
    width = x.shape[-1]
    cuts = [(i * width // size, -(-(i + 1) * width // size)) for i in range(size)]
    return torch.stack([x[..., low:high].mean(-1) for low, high in cuts], -1)


def interpolated(x, size):
    """Linear interpolation between the centres of pixels, constant beyond the outermost, along the last axis."""
    width = x.shape[-1]
    at = ((torch.arange(size, dtype=x.dtype) + 0.5) * width / size - 0.5).clamp(0, width - 1)
    low = at.floor().long().clamp(max=max(width - 2, 0))
    high = (low + 1).clamp(max=width - 1)
    return x[..., low] + (x[..., high] - x[..., low]) * (at - low)


def fitted(x, size):
    for axis, wanted in ((3, size[1]), (2, size[0])):
        x = x.movedim(axis, -1)
        x = averaged(x, wanted) if x.shape[-1] > wanted else interpolated(x, wanted)
        x = x.movedim(-1, axis)
    return x


@few_examples
@given(seeds, sizes, sizes, st.booleans())
def test_guide_of_any_size_is_fitted(seed, size, wanted, channels_last):
    guide = normal(torch.Generator().manual_seed(seed), 2, 3, *size).requires_grad_()
    x = torch.empty(2, 1, *wanted)
    if channels_last:
        guide = guide.contiguous(memory_format=torch.channels_last)
    made = fit_guide(guide, x, ((1, 1), (1, 1), (0, 0), (1, 1)))
    assert relative_error(made, fitted(guide, wanted)) < 1e-12
    if size == wanted:
        assert made is guide


@pytest.mark.parametrize("size", [(9, 8), (4, 4), (20, 3), (1, 1)], ids=str)
@pytest.mark.parametrize(
    ("fit", "wanted"),
    [
        (((3, 3), (1, 1), "same", (1, 1)), (9, 8)),
        (((3, 3), (2, 2), "same", (1, 1)), (5, 4)),
        (((3, 2), (2, 1), (1, 0), (2, 1)), (4, 7)),
        (((3, 2), (1, 1), "valid", (1, 3)), (7, 5)),
    ],
)
def test_guide_is_fitted_to_the_output(fit, wanted, size):
    guide, x = torch.randn(2, 3, *size, dtype=torch.float64), torch.randn(2, 5, 9, 8)
    assert relative_error(fit_guide(guide, x, fit), fitted(guide, wanted)) < 1e-12
    assert fit_guide(guide[:0], x[:0], fit).shape == (0, 3, *wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_guide_keeps_its_dtype(dtype):
    guide = torch.randn(2, 3, 12, 3).to(dtype)
    made = fit_guide(guide, torch.empty(2, 1, 5, 6), ((1, 1), (1, 1), (0, 0), (1, 1)))
    assert made.dtype == dtype
    assert relative_error(made, fitted(guide.double(), (5, 6))) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("fit", [None, ((3, 3), (1, 1), "same", (1, 1))])
def test_guide_without_batch_or_pixels(fit):
    guide, x = torch.randn(3, 4, 5), torch.randn(2, 4, 5)
    made = fit_guide(guide, x, fit)
    assert torch.equal(made, guide[None])
    vector = fit_guide(guide[:, 0, 0], x, fit)
    assert torch.equal(vector, guide[None, :, 0, 0] if fit is None else guide[None, :, :1, :1].expand(1, 3, 4, 5))


def test_guide_of_another_batch_is_refused():
    with pytest.raises(ValueError, match=r"guide of shape \(3, 2, 5, 5\) and an input of shape \(2, 4, 5, 5\)"):
        fit_guide(torch.randn(3, 2, 5, 5), torch.randn(2, 4, 5, 5), None)
    with pytest.raises(ValueError, match=r"guide of shape \(3, 2\) and an input of shape \(4, 5, 5\)"):
        fit_guide(torch.randn(3, 2), torch.randn(4, 5, 5), None)
    with pytest.raises(ValueError, match=r"\(B, G, H, W\) or \(B, G\), got \(1, 1, 1, 1, 1\)"):
        fit_guide(torch.randn(1, 1, 1, 1, 1), torch.randn(4, 5, 5), None)
    with pytest.raises(ValueError, match=r"0x5 pixels cannot be brought to 4x5"):
        fit_guide(torch.randn(1, 2, 0, 5), torch.randn(1, 4, 4, 5), ((1, 1), (1, 1), (0, 0), (1, 1)))
