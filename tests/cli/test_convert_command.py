from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import convswap
from convswap.files import read_info
from convswap.layers import Dcls2d, DynamicConv2d

from ..models import TwoConvs, library_model, relative_error
from .helpers import NET, Cli, contents, load


def convert(cli: Cli, checkpoint: Path, out: Path, *more: object, to: str = "dynamic") -> Any:
    done = cli("convert", checkpoint, "--model", NET, "--to", to, "--out", out, *more)
    assert done.code == 0, done
    return done


@pytest.mark.parametrize("to", ["dynamic", "dcls"])
def test_converted_file_gives_the_same_outputs(
    cli: Cli, tmp_path: Path, net: TwoConvs, checkpoint: Path, to: str
) -> None:
    out = tmp_path / "out.safetensors"
    done = convert(cli, checkpoint, out, "--input-size", 3, 16, 16, to=to)
    assert done.err == ""
    assert "all keep what they promise" in done.out
    assert f"written to {out}" in done.out
    loaded = load(out)
    assert isinstance(loaded, TwoConvs)
    assert isinstance(loaded.conv2, {"dynamic": DynamicConv2d, "dcls": Dcls2d}[to])
    x = torch.randn(2, 3, 16, 16)
    assert relative_error(loaded(x), net(x)) < 1e-5


def test_nothing_else_is_left_behind(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    before = contents(tmp_path)
    convert(cli, checkpoint, tmp_path / "out.safetensors", "--report", tmp_path / "out.md", "--no-verify")
    after = contents(tmp_path)
    assert set(after) - set(before) == {"out.safetensors", "out.md"}
    assert all(after[name] == before[name] for name in before)


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_permissions_follow_the_umask(cli: Cli, tmp_path: Path, checkpoint: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        convert(cli, checkpoint, tmp_path / "out.safetensors", "--report", tmp_path / "out.html", "--no-verify")
    finally:
        os.umask(before)
    for name in ("out.safetensors", "out.html"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def test_json_is_the_report_alone(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    done = convert(cli, checkpoint, tmp_path / "out.safetensors", "--input-size", 3, 16, 16, "--json")
    data = json.loads(done.out)
    assert data["recipe"]["steps"][0]["name"] == "conv2"
    assert [check["name"] for check in data["verification"]["layers"]] == ["conv2"]
    assert data["verification"]["layers"][0]["passed"] is True


@pytest.mark.parametrize(
    ("name", "start"),
    [("r.html", "<!doctype html>"), ("r.md", "# TwoConvs: 1 of 2"), ("r.json", "{"), ("r.txt", "TwoConvs: 1 of 2")],
)
def test_report_file(cli: Cli, tmp_path: Path, checkpoint: Path, name: str, start: str) -> None:
    out = tmp_path / "out.safetensors"
    convert(cli, checkpoint, out, "--report", tmp_path / name, "--no-verify")
    written = (tmp_path / name).read_text(encoding="utf-8")
    assert written.startswith(start)
    made = read_info(out).report
    if name.endswith("json"):
        assert convswap.report(load(out)) == type(made).from_dict(json.loads(written))


# What checkpoints look like ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "args": {"lr": 0.1}},
        lambda state: {"state_dict_ema": state, "state_dict": {}},
        lambda state: {"model_ema": state, "model": {}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}},
        lambda state: {"state_dict": {f"_orig_mod.module.{name}": value for name, value in state.items()}},
        lambda state: {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")},
    ],
    ids=[
        "state_dict",
        "model",
        "ema",
        "model_ema",
        "module.",
        "_orig_mod.",
        "DDP first",
        "compile first",
        "no counter",
    ],
)
def test_forms_of_checkpoints(cli: Cli, tmp_path: Path, net: TwoConvs, wrap: Any) -> None:
    out = tmp_path / "out.safetensors"
    torch.save(wrap(net.state_dict()), tmp_path / "wrapped.pt")
    convert(cli, tmp_path / "wrapped.pt", out, "--no-verify")
    x = torch.randn(2, 3, 16, 16)
    assert relative_error(load(out)(x), net(x)) < 1e-5


@pytest.mark.parametrize("name", ["net.safetensors", "net.bin"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_checkpoints(cli: Cli, tmp_path: Path, net: TwoConvs, name: str, prefix: str) -> None:
    out = tmp_path / "out.safetensors"
    safetensors.torch.save_file({f"{prefix}{k}": v for k, v in net.state_dict().items()}, tmp_path / name)
    convert(cli, tmp_path / name, out, "--no-verify")
    x = torch.randn(2, 3, 16, 16)
    assert relative_error(load(out)(x), net(x)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_checkpoints_keep_their_precision(cli: Cli, tmp_path: Path, net: TwoConvs, dtype: torch.dtype) -> None:
    out = tmp_path / "out.safetensors"
    torch.save(net.to(dtype).state_dict(), tmp_path / "net.pth")
    convert(cli, tmp_path / "net.pth", out, "--input-size", 3, 16, 16)
    state = safetensors.torch.load_file(out)
    of_parameters = {name: tensor.dtype for name, tensor in state.items() if tensor.is_floating_point()}
    assert of_parameters["conv1.weight"] == of_parameters["conv2.weight"] == of_parameters["head.bias"] == dtype
    loaded = load(out)
    assert {tensor.dtype for tensor in loaded.parameters()} == {dtype}
    assert torch.equal(loaded.conv1.weight, net.conv1.weight)


def test_model_argument_is_kept_in_the_file(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    torch.save(TwoConvs(6).state_dict(), tmp_path / "narrow.pth")
    convert(cli, tmp_path / "narrow.pth", out, "--model-arg", "channels=6", "--no-verify")
    assert load(out).conv1.out_channels == 6


def test_timm_names_of_older_releases(cli: Cli, tmp_path: Path) -> None:
    """timm translates the names that a model's original code used."""
    model = library_model("timm:convnext_atto", num_classes=3, depths=(1, 1, 1, 1), dims=(4, 4, 4, 4))
    original = {
        name.replace("stem.", "downsample_layers.0.").replace("head.norm.", "norm.").replace("head.fc.", "head."): value
        for name, value in model.state_dict().items()
    }
    torch.save({"model": original}, tmp_path / "old.pth")
    out = tmp_path / "out.safetensors"
    arguments = ("--model-arg", "depths=1,1,1,1", "--model-arg", "dims=4,4,4,4", "--model-arg", "num_classes=3")
    done = cli(
        *("convert", tmp_path / "old.pth", "--model", "timm:convnext_atto", *arguments, "--to", "dcls"),
        *("--where", "stages.2.*conv_dw", "--out", out, "--no-verify"),
    )
    assert done.code == 0, done
    x = torch.randn(1, 3, 64, 64)
    assert relative_error(convswap.load(out).eval()(x), model.eval()(x)) < 1e-5


# Converting what is converted -------------------------------------------------------------------------------------


def test_converted_file_is_converted_again(cli: Cli, tmp_path: Path, net: TwoConvs, converted: Path) -> None:
    out = tmp_path / "twice.safetensors"
    convert(cli, converted, out, "--where", "conv1", "--no-verify", to="dcls")
    loaded = load(out)
    assert isinstance(loaded.conv1, Dcls2d)
    assert isinstance(loaded.conv2, DynamicConv2d)
    assert [step.target for step in read_info(out).report.recipe.steps] == ["dynamic", "dcls"]
    x = torch.randn(2, 3, 16, 16)
    assert relative_error(loaded(x), net(x)) < 1e-5


def test_converted_file_is_replaced_by_its_own_conversion(cli: Cli, net: TwoConvs, converted: Path) -> None:
    convert(cli, converted, converted, "--where", "conv1", "--no-verify", "--force", to="dcls")
    x = torch.randn(2, 3, 16, 16)
    assert relative_error(load(converted)(x), net(x)) < 1e-5


# Verification -----------------------------------------------------------------------------------------------------


def test_unknown_input_size_is_said(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    done = convert(cli, checkpoint, tmp_path / "out.safetensors")
    assert "not compared with the original: the input size is unknown (--input-size, or --verify FILE)" in done.err
    assert read_info(tmp_path / "out.safetensors").report.verification is None


def test_no_verify(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    done = convert(cli, checkpoint, tmp_path / "out.safetensors", "--no-verify", "--input-size", 3, 16, 16)
    assert done.err == ""
    assert read_info(tmp_path / "out.safetensors").report.verification is None


@pytest.mark.parametrize("name", ["x.npy", "x.pt", "x.pth", "x.safetensors"])
def test_verify_on_a_tensor(cli: Cli, tmp_path: Path, checkpoint: Path, name: str) -> None:
    path, x = tmp_path / name, torch.randn(3, 3, 12, 12)
    if name.endswith(".npy"):
        np.save(path, x.numpy())
    elif name.endswith(".safetensors"):
        safetensors.torch.save_file({"x": x}, path)
    else:
        torch.save(x, path)
    out = tmp_path / "out.safetensors"
    convert(cli, checkpoint, out, "--verify", path)
    verification = read_info(out).report.verification
    assert verification is not None
    assert verification.passed
    assert verification.inputs == name
    assert [check.name for check in verification.layers] == ["conv2"]


def test_verify_on_an_image(cli: Cli, tmp_path: Path) -> None:
    torch.save(library_model("torchvision:squeezenet1_1").state_dict(), tmp_path / "net.pth")
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    out = tmp_path / "out.safetensors"
    done = cli(
        *("convert", tmp_path / "net.pth", "--model", "torchvision:squeezenet1_1", "--to", "dynamic", "--out", out),
        *("--where", "features.3.*", "--verify", tmp_path / "photo.png"),
    )
    assert done.code == 0, done
    verification = read_info(out).report.verification
    assert verification is not None
    assert verification.inputs == "photo.png"
    assert verification.passed
    assert len(verification.layers) == 3
    assert isinstance(convswap.load(out).features[3].expand3x3, DynamicConv2d)


def test_library_models_are_verified_unasked(cli: Cli, tmp_path: Path) -> None:
    model = library_model("timm:test_resnet")
    torch.save(model.state_dict(), tmp_path / "net.pth")
    out = tmp_path / "out.safetensors"
    done = cli("convert", tmp_path / "net.pth", "--model", "timm:test_resnet", "--to", "dynamic", "--out", out)
    assert done.code == 0, done
    verification = read_info(out).report.verification
    assert verification is not None
    assert verification.inputs.startswith("random, seed 0, 2×(3, ")


def test_seed_decides_random_starts(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    states = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"{number}.safetensors"
        convert(cli, checkpoint, out, "--no-verify", "--seed", seed)
        states.append(safetensors.torch.load_file(out))
    same = [all(torch.equal(states[0][name], other[name]) for name in other) for other in states]
    assert same == [True, True, False]
