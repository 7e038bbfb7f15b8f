from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import convswap

from ..models import TwoConvs, relative_error
from .helpers import NET, Cli, contents, load, refused

X = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def test_reverts_and_measures(cli: Cli, tmp_path: Path, dynamic: Path) -> None:
    out = tmp_path / "plain.safetensors"
    np.save(tmp_path / "x.npy", X.numpy())
    before = contents(tmp_path)
    arguments = ("revert", dynamic, "--out", out, "--trust-source", "--data", tmp_path / "x.npy")
    done = cli(*arguments, "--report", tmp_path / "plain.html")
    assert done.code == 0, done
    assert done.err == ""
    assert "lost in reverting conv2: its attention to the input, and the differences of its 4 kernels" in done.out
    assert f"written to {out}" in done.out
    made = load(out)
    assert type(made.conv2) is nn.Conv2d
    assert torch.equal(made.conv2.weight, load(dynamic).conv2.revert().weight)
    assert {name: data for name, data in contents(tmp_path).items() if name in before} == before
    assert (tmp_path / "plain.html").read_text(encoding="utf-8") == convswap.report(made).to_html()
    (layer,) = json.loads(cli("report", out, "--json").out)["reversions"][0]["layers"]
    with torch.no_grad():
        difference = relative_error(made(X), load(dynamic)(X))
    assert layer["error"]["mean"] > 1e-6
    told = json.loads(cli(*arguments, "--force", "--json").out)["reversions"][0]
    assert told["samples"] == 6
    assert told["output_error"]["greatest"] == pytest.approx(difference, rel=1e-3)


def test_some_layers_and_another_model(cli: Cli, tmp_path: Path, net: TwoConvs) -> None:
    source, out = tmp_path / "dcls.safetensors", tmp_path / "plain.safetensors"
    convswap.save(convswap.convert(net, "dcls"), source)
    assert cli("revert", source, "--out", out, "--model", NET, "--where", "conv1").code == 0
    assert [type(load(out).get_submodule(name)).__name__ for name in ("conv1", "conv2")] == ["Conv2d", "Dcls2d"]
    assert cli("revert", out, "--out", out, "--trust-source", "--force").code == 0
    assert relative_error(load(out)(X), net(X)) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--where", "conv7"), 1, "'conv7' matches none of the 1 layers"),
        (("--data", "gone.png"), 1, "there is no file gone.png"),
        (("--report", "report.doc"), 2, "--report must end in"),
        (("--out", "dynamic.safetensors"), 1, "exists already"),
        (("--out", "plain.pth"), 2, "--out must be a .safetensors file"),
    ],
)
def test_refused(
    cli: Cli,
    tmp_path: Path,
    dynamic: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = () if "--out" in arguments else ("--out", "plain.safetensors")
    assert message in refused(cli, tmp_path, "revert", dynamic, "--trust-source", *out, *arguments, code=code)


def test_files_with_nothing_to_revert(cli: Cli, tmp_path: Path, checkpoint: Path, dynamic: Path) -> None:
    out = ("--out", tmp_path / "plain.safetensors")
    assert "cannot be read as safetensors" in refused(cli, tmp_path, "revert", checkpoint, *out)
    assert "give --trust-source" in refused(cli, tmp_path, "revert", dynamic, *out)
    assert "there is no file" in refused(cli, tmp_path, "revert", tmp_path / "gone.safetensors", *out)
    moved = convswap.convert(load(dynamic), "dcls", "conv1")
    with torch.no_grad():
        moved.conv1.P.add_(0.3)  # type: ignore[union-attr,operator]
    path = tmp_path / "moved.safetensors"
    convswap.save(moved, path, NET)
    message = refused(cli, tmp_path, "revert", path, "--trust-source", "--where", "conv1", *out)
    assert "nothing to revert: TwoConvs has no layer that can be conv1: its positions have moved" in message
