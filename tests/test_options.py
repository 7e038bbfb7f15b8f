from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convswap.errors import OptionError, UnknownNameError
from convswap.options import make_options, options_to_dict, parse_assignment
from convswap.targets import Fidelity, Target


@dataclass(frozen=True)
class Options:
    """One of each kind."""

    count: int = 1
    rate: float = 0.5
    flag: bool = False
    word: str = "a"
    sizes: int | tuple[int, ...] | None = None
    order: Literal["first", "last"] = "first"
    dims: Literal[1, 2] = 1
    start: Callable[[torch.Tensor], torch.Tensor] | None = None
    named: int | Mapping[str, int] = 0

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must not be negative, got {self.count}")


class Example(Target):
    """A target that is never built."""

    name = "example"
    summary = "nothing"
    options: ClassVar[type[Any]] = Options

    def unsupported_reason(self, site: Any, options: Any) -> str | None:
        return None

    def fidelity(self, site: Any, options: Any) -> Fidelity:
        return "exact"

    def build(self, conv: Any, options: Any, generator: torch.Generator | None) -> nn.Module:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("name", "given_value", "value"),
    [
        ("count", 3, 3),
        ("rate", 2, 2.0),
        ("rate", 0.25, 0.25),
        ("flag", True, True),
        ("word", "b", "b"),
        ("sizes", 3, 3),
        ("sizes", [3, 5], (3, 5)),
        ("sizes", (3, 5), (3, 5)),
        ("sizes", None, None),
        ("order", "last", "last"),
        ("dims", 2, 2),
        ("count", np.int64(3), 3),
        ("count", np.uint8(3), 3),
        ("count", torch.tensor(3), 3),
        ("rate", np.int32(2), 2.0),
        ("rate", np.float32(0.25), 0.25),
        ("rate", np.float64(0.25), 0.25),
        ("rate", Fraction(1, 4), 0.25),
        ("sizes", np.int64(3), 3),
        ("dims", np.int64(2), 2),
        ("start", torch.zeros_like, torch.zeros_like),
        ("named", {"a": 3, "b": np.int64(5)}, {"a": 3, "b": 5}),
        ("named", MappingProxyType({"a": 3}), {"a": 3}),
        ("named", 3, 3),
    ],
)
def test_values_that_fit(name: str, given_value: object, value: object) -> None:
    made = getattr(make_options(Example(), {name: given_value}), name)
    assert made == value
    assert type(made) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("count", 1.0, "a whole number"),
        ("count", True, "a whole number"),
        ("count", "3", "a whole number"),
        ("count", None, "a whole number"),
        ("order", None, "'first' or 'last'"),
        ("count", np.True_, "a whole number"),
        ("count", torch.tensor(True), "a whole number"),
        ("count", torch.tensor([3, 5]), "a whole number"),
        ("count", np.float64(3), "a whole number"),
        ("rate", False, "a finite number"),
        ("rate", np.False_, "a finite number"),
        ("rate", "fast", "a finite number"),
        ("rate", math.nan, "a finite number"),
        ("rate", math.inf, "a finite number"),
        ("rate", np.float32("-inf"), "a finite number"),
        ("rate", 10**400, "a finite number"),
        ("flag", 1, "true or false"),
        ("word", 3, "str"),
        ("word", None, "str"),
        ("sizes", [3, "a"], "a whole number or several of int or None"),
        ("sizes", "35", "a whole number or several of int or None"),
        ("sizes", b"35", "a whole number or several of int or None"),
        ("sizes", [True], "a whole number or several of int or None"),
        ("sizes", 2.5, "a whole number or several of int or None"),
        ("order", "middle", "'first' or 'last'"),
        ("order", ["first"], "'first' or 'last'"),
        ("dims", 3, "1 or 2"),
        ("dims", True, "1 or 2"),
        ("start", 3, "or None"),
        ("named", {"a": "3"}, "a whole number or a mapping of str to int"),
        ("named", {3: 3}, "a whole number or a mapping of str to int"),
        ("named", [("a", 3)], "a whole number or a mapping of str to int"),
    ],
)
def test_values_that_do_not_fit(name: str, value: object, wanted: str) -> None:
    with pytest.raises(OptionError) as told:
        make_options(Example(), {name: value})
    assert str(told.value).startswith(f"option {name!r} of target 'example' must be ")
    assert wanted in str(told.value)
    assert str(told.value).endswith(f", got {value!r}")


def test_none_may_be_a_word() -> None:
    @dataclass(frozen=True)
    class Shared:
        share: Literal["none", "all"] = "all"
        size: int | None = 3

    class Sharing(Example):
        options: ClassVar[type[Any]] = Shared

    given_values = dict(parse_assignment(text) for text in ("share=none", "size=none"))
    assert make_options(Sharing(), given_values) == Shared(share="none", size=None)


def test_unknown_options() -> None:
    with pytest.raises(UnknownNameError, match=r"no option 'cuont'. Did you mean 'count'\? Options: count, rate, flag"):
        make_options(Example(), {"cuont": 3})


def test_values_that_the_target_does_not_allow() -> None:
    with pytest.raises(OptionError, match="target 'example': count must not be negative, got -1"):
        make_options(Example(), {"count": -1})


def test_as_json_values() -> None:
    made = options_to_dict(make_options(Example(), {"sizes": [3, 5]}))
    assert made["sizes"] == [3, 5]
    assert make_options(Example(), made) == make_options(Example(), {"sizes": (3, 5)})
    assert json.loads(json.dumps(options_to_dict(Options(named=MappingProxyType({"a": 3})))))["named"] == {"a": 3}


def test_numbers_of_other_libraries_as_json_values() -> None:
    given_values = {"count": np.int64(3), "rate": np.float32(0.5), "sizes": [np.int64(3), torch.tensor(5)]}
    written = json.dumps(options_to_dict(make_options(Example(), given_values)))
    assert {name: json.loads(written)[name] for name in given_values} == {"count": 3, "rate": 0.5, "sizes": [3, 5]}


@pytest.mark.parametrize("text", ["rate=NaN", "rate=Infinity", "rate=-Infinity", "rate=1e999"])
def test_assignments_of_numbers_that_are_not_finite(text: str) -> None:
    with pytest.raises(OptionError, match="option 'rate' of target 'example' must be a finite number"):
        make_options(Example(), dict([parse_assignment(text)]))


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("a=3", "a", 3),
        ("a=-3", "a", -3),
        ("a=0.5", "a", 0.5),
        ("a=1e-3", "a", 0.001),
        ("a=true", "a", True),
        ("a=False", "a", False),
        ("a=none", "a", None),
        ("a=null", "a", None),
        ("a=7,15", "a", [7, 15]),
        ("a=[7, 15]", "a", [7, 15]),
        ("a=gauss", "a", "gauss"),
        ('a="7"', "a", "7"),
        ("a=x=y", "a", "x=y"),
        ("a=", "a", ""),
        (" kernel-count = 3 ", "kernel_count", 3),
    ],
)
def test_assignments(text: str, name: str, value: object) -> None:
    assert parse_assignment(text) == (name, value)
    assert type(parse_assignment(text)[1]) is type(value)


@pytest.mark.parametrize("text", ["a", "", "=3", " =3"])
def test_texts_that_are_no_assignments(text: str) -> None:
    with pytest.raises(OptionError, match="expected name=value, got"):
        parse_assignment(text)


@given(value=st.integers() | st.booleans() | st.lists(st.integers(), min_size=2, max_size=4))
def test_what_is_written_is_read(value: object) -> None:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    assert parse_assignment(f"name={text}") == ("name", value)
