from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convswap

from ..models import TwoConvs, relative_error
from .helpers import NET, Cli, contents, load, refused

X = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def dcls(tmp_path: Path, net: TwoConvs) -> Path:
    convswap.save(convswap.convert(net, "dcls"), tmp_path / "dcls.safetensors", NET)
    return tmp_path / "dcls.safetensors"


def test_exact(cli: Cli, tmp_path: Path, dcls: Path, net: TwoConvs) -> None:
    out = tmp_path / "frozen.safetensors"
    before = contents(tmp_path)
    done = cli("freeze", dcls, "--out", out, "--trust-source", "--report", tmp_path / "frozen.html")
    assert done.code == 0, done
    assert done.err == ""
    assert "frozen to plain convolutions (exact): conv1, conv2" in done.out
    assert f"written to {out}" in done.out
    frozen = load(out)
    assert type(frozen.conv1) is type(frozen.conv2) is nn.Conv2d
    assert relative_error(frozen(X), net(X)) < 1e-5
    assert {name: data for name, data in contents(tmp_path).items() if name in before} == before
    assert (tmp_path / "frozen.html").read_text(encoding="utf-8") == convswap.report(frozen).to_html()
    assert "exact" in cli("report", out).out


def test_mean_over_a_tensor_file(cli: Cli, tmp_path: Path, dynamic: Path) -> None:
    out = tmp_path / "frozen.safetensors"
    np.save(tmp_path / "x.npy", X.numpy())
    done = cli(
        *("freeze", dynamic, "--out", out, "--trust-source", "--mode", "mean", "--data", tmp_path / "x.npy", "--json")
    )
    assert done.code == 0, done
    (told,) = json.loads(done.out)["freezings"]
    expected = convswap.freeze(load(dynamic), X, mode="mean")
    assert told["samples"] == 40
    (layer,) = told["layers"]
    (wanted,) = convswap.report(expected).freezings
    assert (layer["name"], layer["fidelity"]) == ("conv2", "approximate")
    assert layer["error"]["mean"] == pytest.approx(wanted.layers[0].error.mean, rel=1e-4)  # type: ignore[union-attr]
    assert told["output_error"]["mean"] == pytest.approx(wanted.output_error.mean, rel=1e-4)  # type: ignore[union-attr]
    assert relative_error(load(out)(X), expected.eval()(X)) < 1e-5


def test_mean_over_photos(cli: Cli, tmp_path: Path) -> None:
    from ..models import library_model

    model = convswap.convert(library_model("timm:test_byobnet"), "condconv")
    convswap.save(model, tmp_path / "net.safetensors")
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, name in enumerate(("a.png", "b.JPG", "c.jpeg")):
        Image.new("RGB", (40 + index, 50), (90 * index, 20, 30)).save(folder / name, "png")
    torch.save(torch.randn(2, 3, 160, 160), folder / "d.pt")
    (folder / "notes.txt").write_text("no photo")
    done = cli(
        *("freeze", tmp_path / "net.safetensors", "--out", tmp_path / "out.safetensors", "--mode", "mean"),
        *("--data", folder, folder / "a.png", "--json"),
    )
    assert done.code == 0, done
    (told,) = json.loads(done.out)["freezings"]
    assert told["samples"] == 6
    assert all(layer["error"]["greatest"] < 1e-4 for layer in told["layers"])  # attention is uniform at the start


def test_some_layers(cli: Cli, tmp_path: Path, dcls: Path) -> None:
    out = tmp_path / "frozen.safetensors"
    assert cli("freeze", dcls, "--out", out, "--trust-source", "--where", "conv1").code == 0
    assert [type(load(out).get_submodule(name)).__name__ for name in ("conv1", "conv2")] == ["Conv2d", "Dcls2d"]
    assert cli("freeze", out, "--out", out, "--force", "--model", NET).code == 0
    assert type(load(out).conv2) is nn.Conv2d


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--mode", "mean"), 2, "--mode mean takes the mean attention over data: give --data"),
        ((), 1, "nothing to freeze: TwoConvs has no layer that can be"),
        ((), 1, "conv2: its kernel depends on its input: the mode 'mean' freezes it at its mean attention over data"),
        (("--mode", "mean", "--data", "gone.png"), 1, "there is no file gone.png"),
        (("--mode", "mean", "--data", "empty"), 1, "there is no photo and no tensor in the folder empty"),
        (("--mode", "mean", "--data", "bad.npy"), 1, "bad.npy is no .npy file of numbers"),
        (("--mode", "mean", "--data", "photo.png"), 1, "the input size of TwoConvs is unknown: give a tensor"),
        (("--mode", "mean", "--data", "x.npy", "--where", "conv7"), 1, "'conv7' matches none"),
        (("--mode", "mean", "--data", "flat.npy"), 1, "does not run on batch 0 of the data"),
        (("--mode", "mean", "--data", "scalar.npy"), 1, "scalar.npy holds a single number"),
        (("--report", "report.doc"), 2, "--report must end in"),
        (("--out", "dynamic.safetensors"), 1, "exists already"),
        (("--out", "frozen.pth"), 2, "--out must be a .safetensors file"),
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
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.npy").write_text("no numbers")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    np.save(tmp_path / "x.npy", X[:2].numpy())
    np.save(tmp_path / "flat.npy", X[:2, 0, 0].numpy())
    np.save(tmp_path / "scalar.npy", np.float32(3))
    out = () if "--out" in arguments else ("--out", "frozen.safetensors")
    assert message in refused(cli, tmp_path, "freeze", dynamic, "--trust-source", *out, *arguments, code=code)


def test_checkpoints_and_untrusted_code(cli: Cli, tmp_path: Path, checkpoint: Path, dcls: Path) -> None:
    out = ("--out", tmp_path / "frozen.safetensors")
    assert "cannot be read as safetensors" in refused(cli, tmp_path, "freeze", checkpoint, *out)
    assert "give --trust-source" in refused(cli, tmp_path, "freeze", dcls, *out)
    assert "there is no file" in refused(cli, tmp_path, "freeze", tmp_path / "gone.safetensors", *out)


def test_files_that_do_not_name_their_architecture(cli: Cli, tmp_path: Path, net: TwoConvs) -> None:
    path = tmp_path / "net.safetensors"
    convswap.save(convswap.convert(net, "dcls"), path)
    message = refused(cli, tmp_path, "freeze", path, "--out", tmp_path / "frozen.safetensors")
    assert "does not say what builds its architecture (TwoConvs)" in message
    assert "or --model on the command line" in message
