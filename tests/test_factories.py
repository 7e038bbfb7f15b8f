from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convswap.errors import ConvswapError
from convswap.factories import check_name, described, factory_name, require_name, resolve_factory
from convswap.options import code_named_by, make_options, options_to_dict
from convswap.targets import Fidelity, Target, register, registry


def body(channels: int, hidden: int) -> nn.Module:
    return nn.Conv2d(channels, hidden, 3)


class Body(nn.Linear):
    """Called as a function, a class makes modules too."""

    @classmethod
    def wide(cls, channels: int, hidden: int) -> Body:
        return cls(channels, 2 * hidden)


@functools.wraps(body)
def renamed(channels: int, hidden: int) -> nn.Module:
    return body(channels, hidden)


def local() -> Any:
    def inner(channels: int, hidden: int) -> nn.Module:
        return body(channels, hidden)

    return inner


@pytest.mark.parametrize("function", [body, Body, Body.wide, nn.Linear, functools.reduce])
def test_names_lead_back_to_the_function(function: Callable[..., Any]) -> None:
    name = factory_name(function)
    assert name is not None
    assert resolve_factory(name) == function
    assert require_name("it", function) == name


def of_main() -> Any:
    made: Any = functools.partial(body).func
    made = type(made)(made.__code__, made.__globals__, "body")
    made.__module__ = "__main__"
    return made


@pytest.mark.parametrize(
    ("function", "called"),
    [
        (lambda channels, hidden: nn.Linear(channels, hidden), "<lambda> of tests.test_factories"),
        (local(), "local.<locals>.inner of tests.test_factories"),
        (functools.partial(body, hidden=3), "partial"),
        (nn.Identity(), "Identity of torch.nn.modules.linear"),
        (renamed, "body of tests.test_factories"),
        (of_main(), "body of __main__"),
    ],
)
def test_functions_that_no_name_leads_to(function: Any, called: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "body", function, raising=False)
    assert factory_name(function) is None
    assert called in described(function)
    with pytest.raises(ConvswapError, match=r"the body of 'conv1' is .*, which cannot be written down, because it"):
        require_name("the body of 'conv1'", function)


@pytest.mark.parametrize("value", [None, 3, "word", [1, 2]])
def test_other_values_stay(value: object) -> None:
    assert require_name("it", value) is value


@pytest.mark.parametrize("name", ["", "torch.nn", "torch:", ":Linear", "torch nn:Linear", "a:b:c", "a..b:c", "a:b(1)"])
def test_names_of_another_form(name: str) -> None:
    with pytest.raises(ValueError, match=r'body must be a function, or its name as "package.module:function", got '):
        check_name(name, "body")
    with pytest.raises(ConvswapError, match=r"package\.module:function"):
        resolve_factory(name)


def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "fails_when_imported.py").write_text("raise KeyError('why')")
    (tmp_path / "exits_when_imported.py").write_text("raise SystemExit(3)")
    for name, message in (
        ("no_such_module:f", r"there is no module 'no_such_module' to take 'f' from"),
        ("fails_when_imported:f", r"'fails_when_imported' cannot be imported \(KeyError: 'why'\)"),
        ("exits_when_imported:f", r"cannot be imported \(SystemExit: 3\)"),
        ("torch.nn:Linaer", r"the module 'torch.nn' has no function 'Linaer'\. Did you mean 'Linear'"),
        ("torch:float32", r"torch:float32 is no function, but of type dtype"),
    ):
        with pytest.raises(ConvswapError, match=message):
            resolve_factory(name)


# In options ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """Two that name code, and two that do not."""

    first: Callable[[int, int], nn.Module] | str | None = None
    second: str | Callable[[int, int], nn.Module] = "a:b"
    function: Callable[[int, int], nn.Module] | None = None
    word: str = "c:d"


class Coded(Target):
    """A target that is never built."""

    name = "coded"
    summary = "nothing"
    options = Options

    def unsupported_reason(self, site: Any, options: Any) -> str | None:
        return None

    def fidelity(self, site: Any, options: Any) -> Fidelity:
        return "exact"

    def build(self, conv: Any, options: Any, generator: torch.Generator | None) -> nn.Module:
        raise NotImplementedError


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> Coded:
    monkeypatch.setattr(registry, "_targets", dict(registry._targets))
    target = Coded()
    register(target)
    return target


def test_functions_become_names_where_names_are_taken(coded: Coded) -> None:
    unnamed = local()
    written = options_to_dict(make_options(coded, {"first": body, "second": unnamed, "function": body}))
    assert written == {
        "first": "tests.test_factories:body",
        "second": unnamed,
        "function": body,
        "word": "c:d",
    }


def test_code_that_options_name(coded: Coded) -> None:
    assert code_named_by("coded", {"word": "x:y"}) is None
    assert code_named_by("coded", {"first": body, "function": body}) is None
    assert code_named_by("coded", {"first": "m:f"}) == "m:f"
    assert code_named_by("coded", {"first": "m:f", "second": "n:g", "word": "x:y"}) == "m:f, n:g"
    assert code_named_by("dcls", {"share_positions": "stage", "version": "v1"}) is None
    assert code_named_by("dynamic", {}) is None
