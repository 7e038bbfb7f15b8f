"""What argparse and ``main`` themselves do: usage errors, help, unforeseen errors, and the command as a process."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import convswap
from convswap.cli.main import COMMANDS, make_parser
from convswap.cli.output import print_json

from .helpers import NET, Cli

ROOT = Path(__file__).parents[2]
NAMES = [command.__name__.rpartition(".")[2] for command in COMMANDS]

plan_command = importlib.import_module("convswap.cli.plan")


def as_process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "convswap", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "arguments are required: command"),
        (("convrt",), "invalid choice: 'convrt'"),
        (("plan", NET), "one of the arguments --to --rules is required"),
        (("plan", "--to", "dynamic"), "required: model"),
        (("convert", "net.pth", "--to", "dynamic"), "required: --out"),
        (("plan", NET, "--to", "dynamic", "--input-size", "big"), "invalid int value: 'big'"),
        (("convert", "a", "--to", "dynamic", "--out", "b.safetensors", "--seed", "x"), "invalid int value: 'x'"),
        (("diff", NET), "required: b"),
        (("doctor", "--verbose"), "unrecognized arguments: --verbose"),
        (("plan", "net.pth", "--to", "dynamic", "--model", NET), f"unrecognized arguments: --model {NET}"),
        (("--vers", "doctor"), "unrecognized arguments: --vers"),
    ],
)
def test_usage_errors(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    done = cli(*arguments)
    assert done.code == 2
    assert message in done.err
    assert done.err.startswith("usage: convswap")
    assert done.out == ""


def test_unknown_command_names_those_there_are(cli: Cli) -> None:
    message = cli("convrt").err
    assert all(name in message for name in NAMES)


def test_the_commands() -> None:
    assert {"plan", "convert", "diff", "report", "targets", "doctor"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_has_an_example_that_parses(cli: Cli, name: str) -> None:
    done = cli(name, "--help")
    assert done.code == 0
    found = re.search(r"^example:\n  (.+)\Z", done.out.rstrip(), re.MULTILINE | re.DOTALL)
    assert found is not None
    program, *words = shlex.split(found[1])
    assert program == "convswap"
    assert words[0] == name
    parsed = make_parser().parse_args(words)
    assert parsed.run.__module__ == f"convswap.cli.{name}"


def test_help_and_version(cli: Cli) -> None:
    done = cli("--help")
    assert done.code == 0
    assert all(name in done.out for name in NAMES)
    done = cli("--version")
    assert (done.code, done.out) == (0, f"convswap {convswap.__version__}\n")


def test_unforeseen_errors_are_messages_too(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nobody thought of [this]")

    monkeypatch.setattr(plan_command, "build_model", fail)
    done = cli("plan", NET, "--to", "dynamic")
    assert done.code == 1
    assert done.err.startswith("convswap: unexpected ZeroDivisionError: nobody thought of [this]\n")
    assert "CONVSWAP_TRACEBACK=1" in done.err
    monkeypatch.setenv("CONVSWAP_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        cli("plan", NET, "--to", "dynamic")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(KeyboardInterrupt(), 130, "interrupted"), (MemoryError(), 1, "there is not enough memory for this")],
)
def test_interruptions(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(plan_command, "build_model", fail)
    done = cli("plan", NET, "--to", "dynamic")
    assert (done.code, done.err) == (code, f"convswap: {message}\n")


def test_messages_keep_their_brackets(cli: Cli) -> None:
    assert "'net[1]' names no model" in cli("plan", "net[1]", "--to", "dynamic").err


# As a process -----------------------------------------------------------------------------------------------------


def test_process_that_does_its_job() -> None:
    done = as_process("plan", NET, "--to", "dynamic")
    assert done.returncode == 0, done
    assert "TwoConvs: 1 of 2 convolutions converted" in done.stdout
    assert done.stderr == ""


def test_process_that_cannot_do_its_job(tmp_path: Path) -> None:
    done = as_process("report", tmp_path / "gone.safetensors")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"convswap: there is no file {tmp_path / 'gone.safetensors'}\n"


def test_process_with_a_wrong_command_line() -> None:
    done = as_process("plan", NET)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="pipes are closed in another way")
def test_reader_that_has_read_enough(converted: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "convswap", "report", str(converted), "--json"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=ROOT,
        )
    finally:
        os.close(writing)
    assert done.stderr == ""


def through_a_shell(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = shlex.join([sys.executable, "-m", "convswap", *arguments])
    return subprocess.run(
        ["sh", "-c", f"{command} {redirection}"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""},
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("arguments", [("targets",), ("targets", "--json"), ("--help",)])
def test_output_that_cannot_be_written(arguments: tuple[str, ...]) -> None:
    done = through_a_shell("> /dev/full", *arguments)
    assert done.returncode == 1
    assert done.stderr == "convswap: the output could not be written: No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="streams are closed in another way")
def test_closed_output() -> None:
    done = through_a_shell(">&-", "targets")
    assert done.returncode == 1
    assert done.stderr == "convswap: the output could not be written: standard output is closed\n"


@pytest.mark.skipif(os.name != "posix", reason="streams are closed in another way")
@pytest.mark.parametrize(("target", "code"), [("dynamic", 0), ("dinamic", 1)])
def test_closed_error_stream(target: str, code: int) -> None:
    assert through_a_shell("2>&-", "plan", NET, "--to", target).returncode == code


def test_json_has_no_numbers_that_json_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [1.5, (float("inf"), 2)], "c": {"d": float("-inf"), "e": True, "f": "NaN"}})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, [None, 2]],
        "c": {"d": None, "e": True, "f": "NaN"},
    }
