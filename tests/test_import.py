from __future__ import annotations

import ast
import sys
from pathlib import Path
from unittest import mock

import pytest

import convswap

from . import fresh_process


def run(code: str) -> str:
    done = fresh_process.run(code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_brings_in_the_layers_alone() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import convswap
new = set(sys.modules) - before
print(*(name for name in new if name.partition(".")[0] not in ("convswap", *sys.stdlib_module_names)))
print(*(name for name in new if name.startswith("convswap.") and not name.startswith("convswap.layers")))
print("torch.utils.flop_counter" in sys.modules, "torch._dynamo" in new, len(new))
"""
    foreign, ours, rest = run(code).split("\n")[:3]
    assert foreign.split() == []
    assert ours.split() == []
    flops, dynamo, number = rest.split()
    assert (flops, dynamo) == ("False", "False")
    assert int(number) > 50  # the layers, which the check has looked at


def test_converting_needs_no_library_of_models_and_no_renderer() -> None:
    heavy = {"torchvision", "timm", "rich", "jinja2", "safetensors"}
    code = f"""
import sys, torch, convswap
convswap.convert(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1)), "partial", example_inputs=(3, 8, 8))
print(*({heavy} & set(sys.modules)))
"""
    assert run(code).split() == []


def test_functions_hide_the_modules_of_their_names_in_any_order() -> None:
    code = """
import sys, types
from convswap.report import Report
import convswap.plan, convswap.cli.main
import convswap
for name in sorted(convswap.__all__):
    assert not isinstance(getattr(convswap, name), types.ModuleType), name
assert convswap.plan is sys.modules["convswap.plan"].plan
assert convswap.report is sys.modules["convswap.report"].report
assert convswap.costs is sys.modules["convswap.costs"]  # a module that hides nothing
assert {"plan", "revert"} <= set(dir(convswap))
from convswap import *
print(plan is convswap.plan)
"""
    assert run(code).split() == ["True"]


def test_ops_are_there_without_asking_for_a_layer() -> None:
    assert run("import torch, convswap; print(torch.ops.convswap.dcls_scatter.default.name())").startswith("convswap::")


@pytest.mark.parametrize("home", sorted(set(convswap._HOMES.values())))
def test_names_are_where_they_are_said_to_be(home: str) -> None:
    """What type checkers are told agrees with what happens."""
    tree = ast.parse(Path(convswap.__file__).read_text(encoding="utf-8"))
    told = {
        alias.name: node.module
        for part in tree.body
        if isinstance(part, ast.If)
        for node in part.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == convswap._HOMES
    assert sorted(told) == convswap.__all__
    for name in (name for name, place in told.items() if place == home):
        assert getattr(convswap, name) is getattr(sys.modules[f"convswap.{home}"], name)


def test_what_does_not_exist_is_told_as_usual() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = convswap.nonsense
    assert not hasattr(convswap, "__wrapped__")


def test_layers_need_nothing_of_the_rest() -> None:
    code = """
import sys
from importlib.util import find_spec
from pathlib import Path
sys.path.insert(0, str(Path(find_spec("convswap").origin).resolve().parents[1]))
import layers
print(*(name for name in sys.modules if name.startswith("convswap")))
"""
    assert run(code).split() == []


def test_names_that_can_be_none() -> None:
    assert not any(hasattr(convswap, name) for name in ("a.b", "", "plan.plan", "1", "sys", "find_spec"))


def test_what_stands_in_for_a_function_does_not_stay() -> None:
    real = convswap.trace
    with mock.patch.object(sys.modules["convswap.trace"], "trace"):
        assert convswap.trace is not real
    assert convswap.trace is real
    with mock.patch("convswap.trace"):
        assert convswap.trace is not real
    assert convswap.trace is real
