"""``--rules``: several rules in a file, for ``plan`` and ``convert``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import convswap
from convswap.layers import Dcls2d

from ..models import TwoConvs, relative_error
from .helpers import NET, Cli, refused

RULES = '[[swap]]\nwhere = "conv1"\nto = "keep"\n\n[[swap]]\nwhere = "*"\nto = "dcls"\nkernel_count = 20\n'


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    return path


def test_plan_by_rules(cli: Cli, rules: Path) -> None:
    done = cli("plan", NET, "--rules", rules, "--json")
    assert done.code == 0, done
    keep, swap = json.loads(done.out)["steps"]
    assert (keep["action"], keep["reason"]) == ("keep", "kept by rule 1: 'conv1'")
    assert (swap["target"], swap["options"]["kernel_count"]) == ("dcls", 20)
    assert swap["reason"] == "chosen by rule 2: '*' to dcls"


def test_convert_by_rules(cli: Cli, tmp_path: Path, net: TwoConvs, checkpoint: Path, rules: Path) -> None:
    out = tmp_path / "out.safetensors"
    done = cli("convert", checkpoint, "--model", NET, "--rules", rules, "--out", out, "--input-size", 3, 16, 16)
    assert done.code == 0, done
    loaded = convswap.load(out, model=TwoConvs()).eval()
    assert isinstance(loaded.conv2, Dcls2d)
    assert type(loaded.conv1) is torch.nn.Conv2d
    x = torch.randn(2, 3, 16, 16)
    assert relative_error(loaded(x), net(x)) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "dcls"), "argument --to: not allowed with argument --rules"),
        (("--where", "conv1"), "--where goes with --to: in {rules} each [[swap]] table has its own"),
        (("--option", "kernels=3"), "--option goes with --to: in {rules} each [[swap]] table has its own"),
    ],
)
def test_rules_stand_alone(cli: Cli, checkpoint: Path, rules: Path, arguments: tuple[str, ...], message: str) -> None:
    ways = (("plan", NET), ("convert", checkpoint, "--model", NET, "--out", rules.parent / "out.safetensors"))
    for way in ways:
        done = cli(*way, "--rules", rules, *arguments)
        assert done.code == 2
        assert message.format(rules=rules) in done.err


def test_something_must_say_what_to_do(cli: Cli) -> None:
    done = cli("plan", NET, "--where", "conv1")
    assert done.code == 2
    assert "one of the arguments --to --rules is required" in done.err


@pytest.mark.parametrize("name", ["where", "to"])
def test_what_is_no_option(cli: Cli, tmp_path: Path, name: str) -> None:
    message = refused(cli, tmp_path, "plan", NET, "--to", "dcls", "--option", f"{name}=conv1", code=2)
    assert f"{name} is no option of a target: give --{name}" in message


@pytest.mark.parametrize("name", ["model", "self", "seed", "verify", "example_inputs"])
def test_arguments_of_the_functions_are_no_options(cli: Cli, tmp_path: Path, checkpoint: Path, name: str) -> None:
    option, message = ("--option", f"{name}=3"), f"target 'dcls' has no option '{name}'"
    assert message in refused(cli, tmp_path, "plan", NET, "--to", "dcls", *option)
    out = ("--out", tmp_path / "out.safetensors")
    assert message in refused(cli, tmp_path, "convert", checkpoint, "--model", NET, "--to", "dcls", *out, *option)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rules.toml holds no rules"),
        ("[[swap]", "rules.toml is no TOML"),
        (RULES.replace("kernel_count", "count"), "[[swap]] table 2 of 2: target 'dcls' has no option 'count'"),
        (RULES.replace("conv1", "conv9"), "rule 1, 'conv9' to keep: 'conv9' matches none of the 2 convolutions"),
        (RULES.replace("conv1", "*"), "rule 2, '*' to dcls, can never decide"),
    ],
)
def test_rules_that_are_wrong(cli: Cli, tmp_path: Path, checkpoint: Path, rules: Path, text: str, message: str) -> None:
    rules.write_text(text)
    assert message in refused(cli, tmp_path, "plan", NET, "--rules", rules)
    out = tmp_path / "out.safetensors"
    assert message in refused(cli, tmp_path, "convert", checkpoint, "--model", NET, "--rules", rules, "--out", out)


def test_code_that_a_file_of_rules_names_is_run_with_trust_only(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('[[swap]]\nwhere = "conv2"\nto = "guided"\nhypernet = "tests.test_guided_models:body"\n')
    message = refused(cli, tmp_path, "plan", NET, "--rules", path)
    assert "it names tests.test_guided_models:body, which would be imported and run" in message
    assert "--trust-source on the command line" in message
    done = cli("plan", NET, "--rules", path, "--trust-source", "--input-size", 3, 8, 8)
    assert done.code == 0, done
    assert "1 to guided" in done.out


def test_without_a_file_no_code_is_named(cli: Cli) -> None:
    done = cli("plan", NET, "--to", "dcls", "--trust-source")
    assert done.code == 2
    assert "--trust-source is for code that a file of rules names: it goes with --rules" in done.err
