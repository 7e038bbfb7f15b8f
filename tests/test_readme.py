"""Every snippet of the README runs, in order, in an empty folder with the sample checkpoint, a photo and the rules."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from convswap.cli import main
from convswap.cli.main import COMMANDS
from convswap.targets import all_targets
from examples import samples

TEXT = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_python_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert len(snippets("python")) >= 5
    for snippet in snippets("python"):
        exec(compile(snippet, "README.md", "exec"), names)
    assert (tmp_path / "resnet18-dcls.safetensors").exists()


def test_command_snippets_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(samples.mobilenet_v2_checkpoint(), tmp_path / "mobilenet_v2.pth")
    shutil.copy(samples.photo("cat"), tmp_path / "cat.png")
    (rules,) = snippets("toml")
    (tmp_path / "rules.toml").write_text(rules, encoding="utf-8")
    lines = [line for snippet in snippets("sh") for line in snippet.splitlines() if line.startswith("convswap ")]
    assert {line.split()[1] for line in lines} == {command.__name__.rpartition(".")[2] for command in COMMANDS}
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, line
    assert capsys.readouterr().err == ""


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (Path(__file__).resolve().parents[1] / "Makefile").read_text(encoding="utf-8")
    commands = [line.split("#")[0].strip() for line in snippets("sh")[0].splitlines()]
    assert commands == ["make demo", "make test"]
    assert all(f"\n{command.removeprefix('make ')}:" in makefile for command in commands)


def test_the_table_of_targets_is_whole() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", TEXT, flags=re.MULTILINE)
    own = {name: t for name, t in all_targets().items() if type(t).__module__.startswith("convswap.")}
    assert {name for name, _ in rows} == set(own)
    for name, options in rows:
        assert set(re.findall(r"`(\w+)`", options)) == set(own[name].options.__dataclass_fields__)
