from __future__ import annotations

import sys

import pytest
from torch import nn

import convswap
from convswap.errors import NothingToSwapError
from convswap.formatting import size, sizes, times


@pytest.mark.parametrize(
    ("numbers", "texts"),
    [
        ((9217, 9216), ("9217 B", "9216 B")),
        ((2**28 + 1, 2**28), ("268435457 B", "268435456 B")),
        ((9216, 9216), ("9 KiB", "9 KiB")),
        ((9 * 2**20, 9216), ("9 MiB", "9 KiB")),
        ((12, 11), ("12 B", "11 B")),
    ],
)
def test_sizes_that_differ_look_different(numbers: tuple[int, ...], texts: tuple[str, ...]) -> None:
    assert sizes(*numbers) == texts


def test_factors() -> None:
    factors = (1.0, 1.26, 31.0, 128.6, 2815.0, 1.5e7, sys.float_info.max)
    assert [times(factor) for factor in factors] == ["1×", "1.3×", "31×", "129×", "2815×", "1.5e+07×", "overflow"]


def test_a_single_size_is_rounded() -> None:
    assert sizes(9217) == (size(9217),) == ("9 KiB",)


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("guided", "would take 36864 B for each sample (9.22 k numbers), and max_kernel_bytes is 36863 B: choose"),
        ("dcls", "would take 200704 B, built anew in each forward pass, and max_kernel_bytes is 200703 B: choose"),
    ],
)
def test_limits_that_rounding_would_hide(to: str, words: str) -> None:
    needed = {"guided": 4 * 32 * 32 * 9, "dcls": 4 * 32 * 32 * 49}[to]
    with pytest.raises(NothingToSwapError) as told:
        convswap.plan(nn.Conv2d(32, 32, 3), to, max_kernel_bytes=needed - 1)
    assert words in str(told.value)
