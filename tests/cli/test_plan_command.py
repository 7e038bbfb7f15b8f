from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from .helpers import NET, Cli


def swapped(out: str) -> dict[str, str]:
    """Names of the convolutions that a plan in JSON swaps, and their targets."""
    return {step["name"]: step["target"] for step in json.loads(out)["steps"] if step["action"] == "swap"}


def test_plan_for_people(cli: Cli) -> None:
    done = cli("plan", NET, "--to", "dynamic", "--input-size", 3, 16, 16)
    assert done.code == 0
    assert done.err == ""
    assert "TwoConvs: 1 of 2 convolutions converted (1 to dynamic)" in done.out
    assert "conv2" in done.out
    assert "8→8 3×3 stride 2" in done.out
    assert "kept conv1: the network's first convolution is left alone" in done.out
    assert "per sample of 3×16×16" in done.out


def test_plan_for_machines(cli: Cli) -> None:
    done = cli("plan", NET, "--to", "dynamic", "--input-size", 3, 16, 16, "--json")
    assert done.code == 0
    assert done.err == ""
    data = json.loads(done.out)
    assert data["version"] == 1
    assert data["model"] == "TwoConvs"
    assert data["input_shape"] == [1, 3, 16, 16]
    assert data["verification"] is None
    assert data["recipe"] == {"version": 1, "steps": []}
    keep, swap = data["steps"]
    assert (keep["name"], keep["action"], keep["target"], keep["options"]) == ("conv1", "keep", None, None)
    assert keep["before"] == keep["after"]
    assert (swap["name"], swap["action"], swap["target"], swap["fidelity"]) == ("conv2", "swap", "dynamic", "exact")
    assert swap["reason"] == "chosen by where"
    assert swap["options"]["kernels"] == 4
    assert swap["before"]["parameters"] == 8 * 8 * 9 + 8
    assert swap["before"]["multiply_adds"] == 8 * 8 * 9 * 8 * 8
    assert swap["after"]["parameters"] > 4 * swap["before"]["parameters"]


def test_plan_without_an_input_size_says_what_is_unknown(cli: Cli) -> None:
    done = cli("plan", NET, "--to", "dynamic", "--json")
    data = json.loads(done.out)
    assert data["input_shape"] is None
    assert data["unknown_shapes"].startswith("no example_inputs were given")
    assert data["steps"][1]["after"]["multiply_adds"] is None


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ([], {"conv1", "conv2"}),
        (["conv1"], {"conv1"}),
        (["conv1", "conv2"], {"conv1", "conv2"}),
        (["*", "!conv1"], {"conv2"}),
        (["!conv2"], {"conv1"}),
        (["re:conv[12]", "!re:.*1"], {"conv2"}),
    ],
)
def test_where_may_be_repeated(cli: Cli, patterns: list[str], names: set[str]) -> None:
    where = [word for pattern in patterns for word in ("--where", pattern)]
    done = cli("plan", NET, "--to", "dcls", *where, "--json")
    assert set(swapped(done.out)) == names


@pytest.mark.parametrize(
    ("to", "option", "name", "value"),
    [
        ("dynamic", "kernels=2", "kernels", 2),
        ("dynamic", "temperature=30", "temperature", 30.0),
        ("dynamic", "noise=1e-2", "noise", 0.01),
        ("dynamic", "convert_first=true", "convert_first", True),
        ("dynamic", "convert-first=True", "convert_first", True),
        ("dynamic", "convert_first=false", "convert_first", False),
        ("dcls", "dilated_kernel_size=7,15", "dilated_kernel_size", [7, 15]),
        ("dcls", "dilated_kernel_size=[7,15]", "dilated_kernel_size", [7, 15]),
        ("dcls", "dilated_kernel_size=9", "dilated_kernel_size", [9, 9]),
        ("dcls", "kernel_count=none", "kernel_count", 9),
        ("dcls", "version=gauss", "version", "gauss"),
        ("dcls", "share_positions=group", "share_positions", "group"),
        ("dcls", "share-positions=none", "share_positions", "none"),
        ("dcls", "max_kernel_bytes=1000000", "max_kernel_bytes", 1000000),
        ("dcls", "max_kernel_bytes=none", "max_kernel_bytes", None),
        ("dcls", 'version="gauss"', "version", "gauss"),
    ],
)
def test_values_of_options(cli: Cli, to: str, option: str, name: str, value: object) -> None:
    done = cli("plan", NET, "--to", to, "--option", option, "--json")
    assert done.code == 0, done
    given = json.loads(done.out)["steps"][1]["options"][name]
    assert given == value
    assert type(given) is type(value)


def test_model_arguments(cli: Cli) -> None:
    done = cli("plan", NET, "--to", "dynamic", "--model-arg", "channels=16", "--json")
    assert json.loads(done.out)["steps"][1]["geometry"] == "16→16 3×3 stride 2"


def test_factories_of_the_current_folder(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed command does not have it on the path by itself."""
    (tmp_path / "models_here.py").write_text("from tests.models import TwoConvs as net")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    done = cli("plan", "models_here:net", "--to", "dynamic")
    monkeypatch.delitem(sys.modules, "models_here", raising=False)
    assert done.code == 0, done


@pytest.mark.parametrize("model", ["torchvision:resnet18", "timm:resnet18"])
def test_library_models_know_their_input_size(cli: Cli, model: str) -> None:
    done = cli("plan", model, "--to", "dynamic", "--where", "layer1.*", "--json")
    data = json.loads(done.out)
    assert data["input_shape"] == [1, 3, 224, 224]
    assert swapped(done.out) == {f"layer1.{i}.conv{j}": "dynamic" for i in (0, 1) for j in (1, 2)}


def test_positions_shared_by_stage(cli: Cli) -> None:
    given = ("--where", "layer1.*", "--option", "share_positions=stage", "--option", "kernel_count=4")
    done = cli("plan", "torchvision:resnet18", "--to", "dcls", *given, "--json")
    assert done.code == 0, done
    groups = {step["name"]: step["group"] for step in json.loads(done.out)["steps"] if step["action"] == "swap"}
    assert groups == {f"layer1.{i}.conv{j}": "layer1.0.conv1" for i in (0, 1) for j in (1, 2)}
    text = cli("plan", "torchvision:resnet18", "--to", "dcls", *given).out
    assert "note: the group of layer1.0.conv1 shares its new parameters: layer1.0.conv1, layer1.0.conv2" in text


def test_stages_need_an_input_size(cli: Cli) -> None:
    done = cli("plan", NET, "--to", "dcls", "--option", "share_positions=stage")
    assert done.code == 1
    assert "unknown: give example_inputs" in " ".join(done.err.split())
