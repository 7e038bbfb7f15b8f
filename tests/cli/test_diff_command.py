from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import torch

from .helpers import NET, Cli


@pytest.mark.parametrize(("a", "b"), list(product(["name", "checkpoint", "converted"], repeat=2)))
def test_any_two_can_be_compared(cli: Cli, checkpoint: Path, converted: Path, a: str, b: str) -> None:
    sides = {"name": NET, "checkpoint": checkpoint, "converted": converted}
    done = cli("diff", sides[a], sides[b], "--json")
    assert done.code == 0
    assert done.err == ""
    data = json.loads(done.out)
    assert data["version"] == 1
    assert data["names"] == [NET if side == "name" else sides[side].name for side in (a, b)]
    assert data["weights_compared"] is ("name" not in (a, b))
    changed = {"conv2"} if (a == "converted") != (b == "converted") else set()
    assert {layer["name"].removesuffix(".attention") for layer in data["layers"]} & {"conv1", "conv2"} == changed
    assert (data["parameters"][0] == data["parameters"][1]) is not bool(changed)
    if data["weights_compared"]:
        assert data["distances"] == []
        assert changed or data["equal"] >= 10
        assert not changed or data["equal"] == 8  # all but the weight and the bias of conv2


def test_checkpoint_with_its_converted_file_for_people(cli: Cli, checkpoint: Path, converted: Path) -> None:
    done = cli("diff", checkpoint, converted)
    assert done.code == 0
    assert "net.pth: " in done.out
    assert "converted.safetensors: " in done.out
    assert "weight 8×8×3×3" in done.out
    assert "dynamic: " in done.out
    assert "tensors are equal bit for bit, 0 have other numbers" in done.out
    assert "head" not in done.out


def test_names_for_people(cli: Cli) -> None:
    done = cli("diff", NET, NET)
    assert "the same layers, with the same shapes" in done.out
    assert "weights are not compared: a bare architecture has random ones" in done.out


def test_distances_of_weights(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    state = torch.load(checkpoint)
    state["conv1.weight"] = state["conv1.weight"] * 1.5
    state["head.bias"] = state["head.bias"] + 1
    torch.save(state, tmp_path / "trained.pth")
    done = cli("diff", checkpoint, tmp_path / "trained.pth", "--json")
    distances = {distance["name"]: distance for distance in json.loads(done.out)["distances"]}
    assert set(distances) == {"conv1.weight", "head.bias"}
    assert distances["conv1.weight"]["relative"] == pytest.approx(0.5, rel=1e-6)
    assert distances["head.bias"]["greatest"] == pytest.approx(1, rel=1e-6)
    assert "head.bias" in cli("diff", checkpoint, tmp_path / "trained.pth").out


def test_json_has_no_infinite_numbers(cli: Cli, tmp_path: Path) -> None:
    torch.save({"norm.bias": torch.zeros(2)}, tmp_path / "a.pth")
    torch.save({"norm.bias": torch.ones(2)}, tmp_path / "b.pth")

    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    data = json.loads(cli("diff", tmp_path / "a.pth", tmp_path / "b.pth", "--json").out, parse_constant=no_constants)
    assert data["distances"] == [{"name": "norm.bias", "greatest": 1.0, "relative": None}]
