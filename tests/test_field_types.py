from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch

from convswap.field_types import NO_FIT, checked, fit


@dataclass(frozen=True)
class Inner:
    """A dataclass in another."""

    number: float


@dataclass(frozen=True)
class Fields:
    """One of each kind that files have."""

    word: str = "a"
    count: int = 1
    rate: float | None = None
    sizes: tuple[int, ...] = ()
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    table: Mapping[str, Any] | None = None
    kind: Literal["a", "b"] = "a"


def test_lists_of_json_become_tuples() -> None:
    made = checked(Fields(sizes=[1, 2], many=[Inner(1.0)], table={"a": [1]}))  # type: ignore[arg-type]
    assert made == Fields(sizes=(1, 2), many=(Inner(1.0),), table={"a": [1]})
    assert checked(made) == made


def test_whole_numbers_become_floats_where_floats_are_asked_for() -> None:
    assert type(checked(Inner(3)).number) is float
    assert math.isnan(checked(Inner(math.nan)).number)
    assert checked(Inner(math.inf)).number == math.inf


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("word", 3),
        ("count", True),
        ("count", 1.0),
        ("count", "1"),
        ("rate", "fast"),
        ("rate", False),
        ("sizes", "12"),
        ("sizes", [1, None]),
        ("inner", {"number": 1.0}),
        ("many", [Inner(1.0), 3]),
        ("table", [("a", 1)]),
        ("kind", "c"),
        ("kind", ["a"]),
    ],
)
def test_other_types_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name} cannot be "):
        checked(Fields(**{name: value}))  # type: ignore[arg-type]


def test_infinity_fits_unless_it_may_not() -> None:
    assert fit(math.inf, float) == math.inf
    assert fit(math.inf, float, finite=True) is NO_FIT
    assert fit([1.0, math.nan], tuple[float, ...], finite=True) is NO_FIT


def test_tensors_fit_where_anything_does() -> None:
    pair = (torch.ones(2), torch.ones(3))
    assert fit(pair, tuple[Any, ...]) == pair
