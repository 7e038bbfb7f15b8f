"""Whatever is wrong with the input: a message that says so, nothing written, nothing changed, and an exit code.

The code is 1, or 2 where the command line is wrong in itself.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ..models import TwoConvs
from .helpers import NET, Cli, contents, refused


def convert_arguments(checkpoint: Path, out: Path, *more: object) -> tuple[object, ...]:
    return ("convert", checkpoint, "--model", NET, "--to", "dynamic", "--out", out, "--no-verify", *more)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.safetensors"


# Files that are no checkpoints ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.pth", b"just some text", "notes.pth is no checkpoint that torch can read, or it is truncated"),
        ("noise.pt", bytes(100), "noise.pt is no checkpoint that torch can read, or it is truncated"),
        ("photo.pth", b"\x89PNG\r\n\x1a\n" + bytes(50), "photo.pth is no checkpoint that torch can read"),
        ("data.json", b'{"a": 1}', "data.json is no checkpoint that torch can read"),
        ("empty.pth", b"", "empty.pth is empty"),
        ("empty.safetensors", b"", "empty.safetensors cannot be read as safetensors"),
        ("text.safetensors", b"just some text", "text.safetensors cannot be read as safetensors"),
    ],
)
def test_file_that_is_no_checkpoint(
    cli: Cli, tmp_path: Path, out: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refused(cli, tmp_path, *convert_arguments(tmp_path / name, out))


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([torch.ones(2)], "holds no state dict"),
        (torch.ones(2), "holds no state dict"),
        ({0: torch.ones(2)}, "holds no state dict"),
        ({}, "holds no state dict: its entries are nothing"),
        ({"epoch": 3, "loss": 0.1}, "holds no state dict: its entries are 'epoch', 'loss'"),
        ({"state_dict": {"epoch": 3}}, "holds no state dict: its entries are 'epoch'"),
    ],
)
def test_checkpoint_without_a_state_dict(cli: Cli, tmp_path: Path, out: Path, held: Any, message: str) -> None:
    torch.save(held, tmp_path / "held.pt")
    assert message in refused(cli, tmp_path, *convert_arguments(tmp_path / "held.pt", out))


def test_missing_checkpoint_and_folder_as_checkpoint(cli: Cli, tmp_path: Path, out: Path) -> None:
    gone = refused(cli, tmp_path, *convert_arguments(tmp_path / "gone.pth", out))
    assert f"there is no file {tmp_path / 'gone.pth'}" in gone
    assert "is a folder, not a checkpoint" in refused(cli, tmp_path, *convert_arguments(tmp_path, out))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_truncated_pickle(cli: Cli, tmp_path: Path, out: Path, checkpoint: Path, part: float) -> None:
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(len(whole) * part)])
    assert "is no checkpoint that torch can read, or it is truncated" in refused(
        cli, tmp_path, *convert_arguments(checkpoint, out)
    )


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated_pickle_of_old_torch(cli: Cli, tmp_path: Path, out: Path, net: TwoConvs, part: float) -> None:
    path = tmp_path / "old.pth"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    assert "is no checkpoint that torch can read, or it is truncated" in refused(
        cli, tmp_path, *convert_arguments(path, out)
    )


@pytest.mark.parametrize("cut", [1, 1000])
@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
def test_truncated_safetensors(cli: Cli, tmp_path: Path, out: Path, net: TwoConvs, cut: int, name: str) -> None:
    path = tmp_path / name
    safetensors.torch.save_file(net.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert f"{name} cannot be read as safetensors" in refused(cli, tmp_path, *convert_arguments(path, out))


@pytest.mark.parametrize("size", [4, 20, -1])
def test_truncated_converted_file(cli: Cli, tmp_path: Path, out: Path, converted: Path, size: int) -> None:
    converted.write_bytes(converted.read_bytes()[:size])
    message = "converted.safetensors cannot be read as safetensors"
    assert message in refused(cli, tmp_path, *convert_arguments(converted, out))
    assert message in refused(cli, tmp_path, "report", converted)
    assert message in refused(cli, tmp_path, "diff", converted, NET)


# Checkpoints for something else -----------------------------------------------------------------------------------


def test_checkpoint_for_another_architecture(cli: Cli, tmp_path: Path, out: Path) -> None:
    state = OrderedDict((f"features.{i}.weight", torch.ones(2)) for i in range(60))
    torch.save(state, tmp_path / "other.pth")
    message = refused(cli, tmp_path, *convert_arguments(tmp_path / "other.pth", out))
    assert "other.pth does not fit TwoConvs:" in message
    assert "missing: conv1.weight, norm.weight, norm.bias, norm.running_mean, … (9 in all)" in message
    assert (
        "left over: features.0.weight, features.1.weight, features.2.weight, features.3.weight, … (60 in all)"
        in message
    )
    assert "features.4" not in message


def test_checkpoint_of_another_width(cli: Cli, tmp_path: Path, out: Path, checkpoint: Path) -> None:
    message = refused(cli, tmp_path, *convert_arguments(checkpoint, out, "--model-arg", "channels=4"))
    assert "of another shape: conv1.weight (8, 3, 3, 3) instead of (4, 3, 3, 3)" in message
    assert "(8 in all)" in message


def test_checkpoint_without_the_name_of_its_architecture(cli: Cli, tmp_path: Path, out: Path, checkpoint: Path) -> None:
    message = refused(cli, tmp_path, "convert", checkpoint, "--to", "dynamic", "--out", out, code=2)
    assert "does not say what architecture it is for: name it, e.g. --model torchvision:resnet50" in message


# Pickles that are more than numbers -------------------------------------------------------------------------------


class Malicious:
    """Unpickling it would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("form", ["zip", "old torch", "plain pickle", "named .safetensors"])
def test_code_in_a_pickle_does_not_run(cli: Cli, tmp_path: Path, out: Path, form: str) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / ("evil.safetensors" if form == "named .safetensors" else "evil.pth")
    held = {"conv1.weight": torch.ones(2), "payload": Malicious(marker)}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Malicious(marker)))
    else:
        torch.save(held, path, _use_new_zipfile_serialization=form != "old torch")
    message = refused(cli, tmp_path, *convert_arguments(path, out))
    assert not marker.exists()
    if form in ("zip", "old torch"):
        assert re.search(r"holds pickled objects other than tensors \(_?io\.open\)", message)
        assert "could run any code, so they are not loaded: save the state dict alone" in message
    refused(cli, tmp_path, "diff", path, NET)
    refused(cli, tmp_path, "report", path)
    assert not marker.exists()


def test_the_malicious_pickle_is_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "marker"))).close()
    assert (tmp_path / "marker").exists()


def test_pickled_module_is_refused_with_the_way_out(cli: Cli, tmp_path: Path, out: Path, net: TwoConvs) -> None:
    torch.save(net, tmp_path / "whole.pth")
    message = refused(cli, tmp_path, *convert_arguments(tmp_path / "whole.pth", out))
    assert "holds a whole pickled model (tests.models.TwoConvs)" in message
    assert "torch.save(torch.load(path, weights_only=False).state_dict(), new_path)" in message


# Names, options, patterns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("torchvision:resnet81", "torchvision has no model 'resnet81'. Did you mean 'resnet18'"),
        ("timm:convnext_tinny", "timm has no model 'convnext_tinny'. Did you mean 'convnext_tiny'"),
        ("timm:hf-hub:somebody/something", "timm has no model 'hf-hub:somebody/something'"),
        ("resnet50", "'resnet50' names no model: write torchvision:<name>, timm:<name> or module.path:factory"),
        ("torchvison:resnet18", "there is no module 'torchvison' to take 'resnet18' from"),
        ("tests.models:TwoConv", "the module 'tests.models' has no function 'TwoConv'. Did you mean 'TwoConvs'"),
        (".models:TwoConvs", "the module '.models' cannot be imported"),
        ("os:getcwd", "os:getcwd gives a str, not a torch.nn.Module"),
    ],
)
def test_unknown_model(cli: Cli, tmp_path: Path, out: Path, checkpoint: Path, model: str, message: str) -> None:
    arguments = ("convert", checkpoint, "--model", model, "--to", "dynamic", "--out", out)
    assert message in refused(cli, tmp_path, *arguments)
    assert message in refused(cli, tmp_path, "plan", model, "--to", "dynamic")


def test_module_that_fails_at_import(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_models.py").write_text("raise KeyError('left out')")
    monkeypatch.syspath_prepend(tmp_path)
    message = refused(cli, tmp_path / "nothing", "plan", "broken_models:net", "--to", "dynamic")
    assert "the module 'broken_models' cannot be imported (KeyError: 'left out')" in message


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "import sys\ndef net(): sys.exit(3)"])
def test_source_that_exits(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    (tmp_path / "exiting_models.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    message = refused(cli, tmp_path / "nothing", "plan", "exiting_models:net", "--to", "dynamic")
    monkeypatch.delitem(sys.modules, "exiting_models", raising=False)
    assert "(SystemExit: 3)" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model-arg", "chanels=4"), "tests.models:TwoConvs does not take these arguments"),
        (("--model-arg", "channels=-1"), "tests.models:TwoConvs cannot be built"),
    ],
)
def test_wrong_model_argument(
    cli: Cli, tmp_path: Path, out: Path, checkpoint: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(cli, tmp_path, *convert_arguments(checkpoint, out, *arguments))


@pytest.mark.parametrize("argument", ["weights=DEFAULT", "progress=true"])
def test_models_are_not_downloaded(cli: Cli, tmp_path: Path, argument: str) -> None:
    message = refused(cli, tmp_path, "plan", "torchvision:resnet18", "--to", "dynamic", "--model-arg", argument)
    assert "is built without weights" in message


def test_unknown_target(cli: Cli, tmp_path: Path, out: Path, checkpoint: Path) -> None:
    message = refused(cli, tmp_path, "convert", checkpoint, "--model", NET, "--to", "dinamic", "--out", out)
    assert "there is no target 'dinamic'. Did you mean 'dynamic'?" in message
    assert "Targets:" in message


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("kernals=4", "target 'dynamic' has no option 'kernals'. Did you mean 'kernels'?"),
        ("reduction=many", "option 'reduction' of target 'dynamic' must be a whole number, got 'many'"),
        ("reduction=2.5", "option 'reduction' of target 'dynamic' must be a whole number, got 2.5"),
        ("reduction=true", "option 'reduction' of target 'dynamic' must be a whole number, got True"),
        ("reduction=2,3", "option 'reduction' of target 'dynamic' must be a whole number, got [2, 3]"),
        ("convert_first=1", "option 'convert_first' of target 'dynamic' must be true or false, got 1"),
        ("kernels=1", "target 'dynamic': kernels must be at least 2, got 1"),
        ("temperature=0", "target 'dynamic': temperature must be positive, got 0.0"),
        (f"kernels={10**17}", "conv2 cannot be converted to dynamic"),
    ],
)
def test_wrong_option(cli: Cli, tmp_path: Path, out: Path, checkpoint: Path, option: str, message: str) -> None:
    assert message in refused(cli, tmp_path, *convert_arguments(checkpoint, out, "--option", option))


@pytest.mark.parametrize("flag", ["--option", "--model-arg"])
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["channels"], "expected name=value, got 'channels'"),
        (["=4"], "expected name=value, got '=4'"),
        (["channels=4", "channels=8"], "channels is given twice"),
        (["some-channels=4", "some_channels=4"], "some_channels is given twice"),
    ],
)
def test_assignments_that_are_none(
    cli: Cli, tmp_path: Path, out: Path, flag: str, texts: list[str], message: str
) -> None:
    arguments = [word for text in texts for word in (flag, text)]
    assert message in refused(cli, tmp_path, "plan", NET, "--to", "dynamic", *arguments, code=2)
    gone = tmp_path / "gone.pth"  # not looked at before the command line is right
    assert message in refused(cli, tmp_path, *convert_arguments(gone, out, *arguments), code=2)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["conv3"], "'conv3' matches none of the 2 convolutions. Did you mean"),
        (["conv1", "stage*"], "'stage*' matches none of the 2 convolutions"),
        (["!nothing"], "'!nothing' matches none of the 2 convolutions"),
        (["re:con"], "'re:con' matches none of the 2 convolutions"),
        (["re:("], "'re:(' is no regular expression"),
    ],
)
def test_where_that_matches_nothing(
    cli: Cli, tmp_path: Path, out: Path, checkpoint: Path, patterns: list[str], message: str
) -> None:
    where = [word for pattern in patterns for word in ("--where", pattern)]
    assert message in refused(cli, tmp_path, *convert_arguments(checkpoint, out, *where))
    assert message in refused(cli, tmp_path, "plan", NET, "--to", "dynamic", *where)


def test_plan_that_swaps_nothing_lists_the_reasons(cli: Cli, tmp_path: Path, out: Path, checkpoint: Path) -> None:
    message = refused(cli, tmp_path, *convert_arguments(checkpoint, out, "--where", "conv1"))
    assert "nothing to swap: all 2 convolutions of TwoConvs are kept" in message
    assert "1 x the network's first convolution is left alone, as in the paper" in message
    assert "1 x not chosen by where" in message


def test_model_without_convolutions(cli: Cli, tmp_path: Path) -> None:
    assert "Linear has no convolution to convert" in refused(
        cli,
        tmp_path,
        *(
            "plan",
            "torch.nn:Linear",
            "--to",
            "dynamic",
            "--model-arg",
            "in_features=2",
            "--model-arg",
            "out_features=2",
        ),
    )


# Inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [("0", "8", "8"), ("-3", "8", "8")])
def test_input_size_that_is_not_positive(
    cli: Cli, tmp_path: Path, out: Path, checkpoint: Path, size: tuple[str, ...]
) -> None:
    arguments = ("convert", checkpoint, "--model", NET, "--to", "dynamic", "--out", out, "--input-size", *size)
    assert "--input-size must be positive numbers" in refused(cli, tmp_path, *arguments, code=2)
    arguments = ("plan", NET, "--to", "dynamic", "--input-size", *size)
    assert "--input-size must be positive numbers" in refused(cli, tmp_path, *arguments, code=2)


def test_input_that_does_not_fit_the_model(cli: Cli, tmp_path: Path, out: Path, checkpoint: Path) -> None:
    arguments = ("convert", checkpoint, "--model", NET, "--to", "dynamic", "--out", out, "--input-size", 1, 8, 8)
    message = refused(cli, tmp_path, *arguments)
    assert "TwoConvs does not run on this input" in message
    assert "1 channels" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.npy", None, "there is no file"),
        ("empty.npy", b"", "is no .npy file of numbers"),
        ("text.npy", b"some text", "is no .npy file of numbers"),
        ("text.pt", b"some text", "cannot be read as a saved tensor"),
        ("empty.pt", b"", "cannot be read as a saved tensor"),
        ("text.safetensors", b"some text", "cannot be read as safetensors"),
        ("text.jpg", b"some text", "is neither an image nor a tensor (.pt, .pth, .npy, .safetensors)"),
    ],
)
def test_unreadable_input_to_verify_on(
    cli: Cli, tmp_path: Path, out: Path, checkpoint: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    arguments = ("convert", checkpoint, "--model", NET, "--to", "dynamic", "--out", out)
    said = refused(cli, tmp_path, *arguments, "--verify", tmp_path / name)
    assert message in said
    assert name in said


def test_verify_and_no_verify(cli: Cli, tmp_path: Path, out: Path, checkpoint: Path) -> None:
    arguments = convert_arguments(checkpoint, out, "--verify", "photo.jpg")
    assert "--verify and --no-verify exclude each other" in refused(cli, tmp_path, *arguments, code=2)


# Outputs ----------------------------------------------------------------------------------------------------------


def test_output_that_exists(cli: Cli, tmp_path: Path, out: Path, checkpoint: Path) -> None:
    out.write_bytes(b"precious")
    message = refused(cli, tmp_path, *convert_arguments(checkpoint, out))
    assert f"{out} exists already" in message
    assert "(--force)" in message
    assert out.read_bytes() == b"precious"


def test_report_that_exists(cli: Cli, tmp_path: Path, out: Path, checkpoint: Path) -> None:
    (tmp_path / "out.html").write_text("precious")
    message = refused(cli, tmp_path, *convert_arguments(checkpoint, out, "--report", tmp_path / "out.html"))
    assert "out.html exists already" in message


def test_force_overwrites_both(cli: Cli, tmp_path: Path, out: Path, checkpoint: Path) -> None:
    page = tmp_path / "out.html"
    out.write_bytes(b"old")
    page.write_text("old")
    assert cli(*convert_arguments(checkpoint, out, "--report", page, "--force")).code == 0
    assert out.stat().st_size > 1000
    assert "TwoConvs" in page.read_text(encoding="utf-8")


def test_folder_that_does_not_exist(cli: Cli, tmp_path: Path, out: Path, checkpoint: Path) -> None:
    nowhere = tmp_path / "nowhere"
    message = f"the folder {nowhere} does not exist: make it first"
    assert message in refused(cli, tmp_path, *convert_arguments(checkpoint, nowhere / "out.safetensors"))
    assert message in refused(cli, tmp_path, *convert_arguments(checkpoint, out, "--report", nowhere / "out.html"))
    assert not nowhere.exists()


def test_output_that_is_a_folder(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    message = refused(cli, tmp_path, *convert_arguments(checkpoint, tmp_path / "folder.safetensors"))
    assert "is a folder: name a file" in message


@pytest.mark.parametrize("name", ["out.pth", "out", "out.safetensors.gz"])
def test_output_that_is_no_safetensors_file(cli: Cli, tmp_path: Path, checkpoint: Path, name: str) -> None:
    message = refused(cli, tmp_path, *convert_arguments(checkpoint, tmp_path / name), code=2)
    assert "--out must be a .safetensors file, got" in message


@pytest.mark.parametrize("name", ["report.pdf", "report"])
def test_report_of_unknown_form(cli: Cli, tmp_path: Path, out: Path, checkpoint: Path, name: str) -> None:
    message = refused(cli, tmp_path, *convert_arguments(checkpoint, out, "--report", tmp_path / name), code=2)
    assert "--report must end in .html, .md, .json, .txt, got" in message


def test_file_name_that_is_too_long(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    message = refused(cli, tmp_path, *convert_arguments(checkpoint, tmp_path / f"{'a' * 300}.safetensors"))
    assert "cannot be written: File name too long" in message


CONVERT_WITH_FILES_LIMITED = """
import resource, sys
from convswap.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limits of file sizes")
@pytest.mark.parametrize("limit", [100, 3000])
def test_disk_error_while_writing_leaves_the_old_file_whole(
    cli: Cli, tmp_path: Path, converted: Path, checkpoint: Path, limit: int
) -> None:
    assert converted.stat().st_size > 2 * limit
    before = contents(tmp_path)
    arguments = [str(word) for word in convert_arguments(checkpoint, converted, "--force")]
    done = subprocess.run(
        [sys.executable, "-c", CONVERT_WITH_FILES_LIMITED, str(limit), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1, done
    assert f"{converted} could not be written: " in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(tmp_path) == before
    assert cli("report", converted).code == 0


# Files that say they are converted --------------------------------------------------------------------------------


def test_report_of_a_file_that_is_not_converted(cli: Cli, tmp_path: Path, net: TwoConvs) -> None:
    path = tmp_path / "plain.safetensors"
    safetensors.torch.save_file(net.state_dict(), path)
    assert "is no converted model: it has no convswap metadata" in refused(cli, tmp_path, "report", path)
    assert "there is no file" in refused(cli, tmp_path, "report", tmp_path / "gone.safetensors")


def test_damaged_metadata(cli: Cli, tmp_path: Path, out: Path) -> None:
    path = tmp_path / "damaged.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, path, {"convswap": json.dumps({"version": 1})})
    assert "damaged.safetensors has damaged metadata" in refused(cli, tmp_path, "report", path)
    assert "damaged.safetensors has damaged metadata" in refused(cli, tmp_path, *convert_arguments(path, out))


def test_converted_file_whose_factory_is_not_trusted(cli: Cli, tmp_path: Path, out: Path, converted: Path) -> None:
    message = refused(cli, tmp_path, "convert", converted, "--to", "dcls", "--where", "conv1", "--out", out)
    assert (
        "converted.safetensors names tests.models:TwoConvs, which would be imported and run: if you trust it, give "
        "--trust-source; instead of tests.models:TwoConvs, --model may name an architecture" in message
    )


# diff -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("gone.pth", "gone.pth is neither a file nor a model's name"),
        ("torchvision:resnet81", "torchvision has no model 'resnet81'. Did you mean"),
        (".", "is a folder, not a checkpoint"),
    ],
)
def test_diff_with_what_cannot_be_read(cli: Cli, tmp_path: Path, checkpoint: Path, other: str, message: str) -> None:
    assert message in refused(cli, tmp_path, "diff", checkpoint, other)
    assert message in refused(cli, tmp_path, "diff", other, checkpoint)
