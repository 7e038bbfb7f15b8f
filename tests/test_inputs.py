from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convswap.errors import ConvswapError
from convswap.inputs import as_call, is_shape, make_inputs

from .models import TwoConvs


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        ((3, 8, 8), True),
        ([3, 8, 8], True),
        (torch.Size([3, 8, 8]), True),
        (np.zeros((3, 8, 8)).shape, True),
        (tuple(np.array([3, 8, 8])), True),
        ((0, -1), True),
        ((), False),
        ((3.0, 8), False),
        ((True, 8), False),
        ((np.True_, 8), False),
        ("388", False),
        (b"388", False),
        ((torch.tensor(3), 8), False),
        ((torch.ones(1, 3, 8, 8),), False),
        ({"x": 3}, False),
        (3, False),
    ],
)
def test_shapes(inputs: Any, shape: bool) -> None:
    assert is_shape(inputs) is shape


@pytest.mark.parametrize("inputs", [None, 3, "388", b"388"])
def test_no_inputs(inputs: Any) -> None:
    with pytest.raises(ConvswapError, match="example_inputs must be a tensor, a tuple of arguments"):
        as_call(inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_inputs_are_like_the_parameters(dtype: torch.dtype) -> None:
    made = make_inputs(TwoConvs().to(dtype), (3, 8, 8), batch=2)
    assert (made.shape, made.dtype, made.device.type) == ((2, 3, 8, 8), dtype, "cpu")
    made = make_inputs(TwoConvs().to("meta", dtype), (3, 8, 8), batch=2)
    assert (made.shape, made.dtype, made.device.type) == ((2, 3, 8, 8), dtype, "meta")


def test_numbers_of_numpy() -> None:
    made = make_inputs(nn.Identity(), tuple(np.array([3, 8, 8])))
    assert made.shape == (1, 3, 8, 8)
    assert all(type(size) is int for size in made.shape)


@pytest.mark.parametrize(
    ("shape", "named"), [((3, 0, 8), r"0 in \(3, 0, 8\)"), ((np.int64(-2), 8), r"-2 in \(-2, 8\)")]
)
def test_shapes_that_are_not_positive(shape: Any, named: str) -> None:
    with pytest.raises(ConvswapError, match=f"the shape of a sample must be of positive numbers, got {named}"):
        make_inputs(nn.Identity(), shape)


@pytest.fixture
def meta_by_default() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def drawn(model: nn.Module) -> torch.Tensor:
    return make_inputs(model, (3, 4, 4), 2, torch.Generator("cpu").manual_seed(0))


@pytest.mark.parametrize("model", [TwoConvs(), nn.Identity()], ids=["parameters", "no parameters"])
def test_other_devices_as_context(model: nn.Module) -> None:
    wanted = drawn(model)
    with torch.device("meta"):
        made = drawn(model)
    assert torch.equal(made, wanted)


@pytest.mark.usefixtures("meta_by_default")
def test_other_devices_by_default() -> None:
    assert drawn(nn.Identity()).device.type == "cpu"
    assert drawn(TwoConvs()).device.type == "meta"
