from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import torch

import convswap

from ..models import TwoConvs
from .helpers import NET, Cli


def test_text(cli: Cli, converted: Path) -> None:
    done = cli("report", converted)
    assert done.code == 0
    assert done.err == ""
    assert done.out.startswith(f"architecture {NET}\nTwoConvs: 1 of 2 convolutions converted (1 to dynamic)\n")
    assert "all keep what they promise" in done.out


def test_json(cli: Cli, converted: Path) -> None:
    done = cli("report", converted, "--json")
    made = convswap.report(convswap.load(converted, trust_source=True))
    assert json.loads(done.out) == json.loads(made.to_json())


def test_markdown(cli: Cli, converted: Path) -> None:
    done = cli("report", converted, "--markdown")
    assert done.out == convswap.report(convswap.load(converted, trust_source=True)).to_markdown()
    assert done.out.startswith("# TwoConvs: 1 of 2 convolutions converted")


def test_html(cli: Cli, converted: Path) -> None:
    done = cli("report", converted, "--html")
    assert done.out == convswap.report(convswap.load(converted, trust_source=True)).to_html()
    assert done.out.startswith("<!doctype html>")
    HTMLParser().feed(done.out)


def test_file_without_architecture(cli: Cli, tmp_path: Path, net: TwoConvs) -> None:
    path = tmp_path / "nameless.safetensors"
    convswap.save(convswap.convert(net, "dcls"), path)
    assert cli("report", path).out.startswith("architecture not named\n")


def test_one_form_only(cli: Cli, converted: Path) -> None:
    done = cli("report", converted, "--json", "--html")
    assert done.code == 2
    assert "not allowed with" in done.err


def test_pictures_of_a_trained_file(cli: Cli, tmp_path: Path, net: TwoConvs) -> None:
    new = convswap.convert(net, "dcls", kernel_count=12)
    convswap.save(new, tmp_path / "fresh.safetensors")
    with torch.no_grad():
        for parameter in convswap.new_parameters(new).values():
            parameter += 0.5
    convswap.save(new, tmp_path / "trained.safetensors")
    for name, times, moved in (("fresh", 1, False), ("trained", 2, True)):
        page = cli("report", tmp_path / f"{name}.safetensors", "--html").out
        assert page.count("<svg") == 2 * 3 * times
        for form in ((), ("--markdown",), ("--html",)):
            out = cli("report", tmp_path / f"{name}.safetensors", *form).out
            assert ("elements have moved by 0.707 pixels on average" in " ".join(out.split())) is moved
