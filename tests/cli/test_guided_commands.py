"""Guided layers on the command line: functions that make hypernets, and files that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convswap
from convswap import Swap
from convswap.files import read_info

from ..models import TwoConvs, relative_error
from .helpers import NET, Cli, refused


def body(channels: int, hidden: int) -> nn.Module:
    return nn.Conv2d(channels, hidden, 1)


def other_body(channels: int, hidden: int) -> nn.Module:
    return nn.Conv2d(channels, hidden, 3, padding=1)


def failing_body(channels: int, hidden: int) -> nn.Module:
    return nn.Conv2d(channels, hidden // 0, 1)


def wide_body(channels: int, hidden: int) -> nn.Module:
    return nn.Conv2d(channels, hidden + 1, 1)


class Branching(nn.Conv2d):
    """Needs numbers to decide what to do."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__(channels, hidden, 1)

    def forward(self, input: Tensor) -> Tensor:
        made = super().forward(input)
        return made if made.sum() > 0 else -made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.safetensors"


@pytest.fixture
def guided(tmp_path: Path, net: TwoConvs) -> Path:
    """A converted file that names its model and two functions."""
    path = tmp_path / "guided.safetensors"
    swaps = [Swap("conv1", "guided", hypernet=body), Swap("conv2", "guided", hypernet=other_body)]
    convswap.save(convswap.convert(net, swaps), path, NET)
    return path


FUNCTIONS = [f"{__name__}:body", f"{__name__}:other_body"]


@pytest.mark.parametrize("model", [(), ("--model", NET)])
def test_code_that_a_file_names_is_not_run_unasked(
    cli: Cli, tmp_path: Path, out: Path, guided: Path, model: tuple[str, ...]
) -> None:
    message = refused(cli, tmp_path, "convert", guided, *model, "--to", "dcls", "--where", "head", "--out", out)
    named = ", ".join(FUNCTIONS if model else [NET, *FUNCTIONS])
    assert f"guided.safetensors names {named}, which would be imported and run: if you trust it, give --tr" in message
    assert ("--model may name an architecture" in message) is not bool(model)
    assert "trust_source" not in message


@pytest.mark.parametrize("model", [(), ("--model", NET)])
def test_code_that_is_trusted_is_run(
    cli: Cli, tmp_path: Path, out: Path, net: TwoConvs, model: tuple[str, ...]
) -> None:
    path = tmp_path / "guided.safetensors"
    convswap.save(convswap.convert(net, "guided", "conv2", hypernet=body), path, NET)
    done = cli("convert", path, *model, "--to", "dcls", "--where", "conv1", "--out", out, "--trust-source")
    assert done.code == 0, done
    assert [step.target for step in read_info(out).report.recipe.steps] == ["guided", "dcls"]
    x = torch.randn(2, 3, 16, 16)
    assert relative_error(convswap.load(out, trust_source=True).eval()(x), net(x)) < 1e-5


def test_files_without_code_need_no_trust(cli: Cli, tmp_path: Path, out: Path, net: TwoConvs) -> None:
    path = tmp_path / "guided.safetensors"
    convswap.save(convswap.convert(net, "guided", "conv2"), path)
    done = cli("convert", path, "--model", NET, "--to", "dcls", "--where", "conv1", "--out", out)
    assert done.code == 0, done


def test_help_warns_of_what_trust_means(cli: Cli) -> None:
    text = " ".join(cli("convert", "--help").out.split())
    assert "import and run the code that a file names; it can do whatever you can" in text


def test_costs_that_only_numbers_tell_are_unknown(cli: Cli, out: Path, checkpoint: Path) -> None:
    options: Any = ("--to", "guided", "--where", "conv2", "--option", f"hypernet={__name__}:Branching")
    planned = cli("plan", NET, *options, "--input-size", 3, 16, 16, "--json")
    made = cli("convert", checkpoint, "--model", NET, *options, "--out", out, "--input-size", 3, 16, 16, "--json")
    for done in (planned, made):
        assert done.code == 0, done
        after = json.loads(done.out)["steps"][1]["after"]
        assert (after["multiply_adds"], after["activation_bytes"]) == (None, None)
        assert after["parameters"] == 8 * 8 + 8 + 8 * 576 + 576 + 8
    assert "?" in cli("report", out).out


@pytest.mark.parametrize("name", ["plan", "convert"])
def test_hypernets_that_fail(cli: Cli, tmp_path: Path, out: Path, checkpoint: Path, name: str) -> None:
    arguments = (NET,) if name == "plan" else (checkpoint, "--model", NET, "--out", out)
    for body, words in (
        ("failing_body", "failed with guide_channels=3 and hidden=8 (ZeroDivisionError: "),
        ("wide_body", "makes (2, 9, 16, 16) of a guide (2, 3, 16, 16), and must make features of shape (B, 8) or"),
    ):
        option = f"hypernet={__name__}:{body}"
        message = refused(cli, tmp_path, name, *arguments, "--to", "guided", "--where", "conv1", "--option", option)
        assert f"conv1 cannot be converted to guided: its hypernet, {__name__}:{body}, {words}" in message


def test_kernels_that_are_a_little_too_large(cli: Cli, tmp_path: Path) -> None:
    options = "--to", "guided", "--where", "conv2", "--option", f"max_kernel_bytes={8 * 8 * 9 * 4 - 1}"
    message = refused(cli, tmp_path, "plan", NET, *options)
    assert "its kernels would take 2304 B for each sample (576 numbers), and max_kernel_bytes is 2303 B:" in message
