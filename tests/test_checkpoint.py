from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from convswap.checkpoint import load_into, match_precision, mismatches, read_state_dict, shorten_keys
from convswap.errors import CheckpointMismatchError, FileError

from .models import TwoConvs


def saved(folder: Path, held: Any, name: str = "net.pth") -> Path:
    torch.save(held, folder / name)
    return folder / name


def test_only_tensors_are_read(tmp_path: Path) -> None:
    state = read_state_dict(saved(tmp_path, {"weight": torch.ones(2), "epoch": 3, "name": "net"}))
    assert list(state) == ["weight"]


def test_order_of_what_state_dicts_are_under(tmp_path: Path) -> None:
    held = {name: {name: torch.ones(1)} for name in ("model", "state_dict", "model_ema", "state_dict_ema")}
    found = []
    while held:
        (name,) = read_state_dict(saved(tmp_path, held))
        found.append(name)
        del held[name]
    assert found == ["state_dict_ema", "model_ema", "state_dict", "model"]


def test_arguments_of_training_scripts_are_no_hindrance(tmp_path: Path) -> None:
    from argparse import Namespace

    held = {"state_dict": {"weight": torch.ones(1)}, "args": Namespace(lr=0.1)}
    assert list(read_state_dict(saved(tmp_path, held))) == ["weight"]


def test_parameters_are_tensors_too(tmp_path: Path) -> None:
    held = {"weight": nn.Parameter(torch.ones(1))}
    assert torch.equal(read_state_dict(saved(tmp_path, held))["weight"], torch.ones(1))


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth", "net"])
def test_safetensors_under_any_name(tmp_path: Path, name: str) -> None:
    safetensors.torch.save_file({"module.weight": torch.ones(1)}, tmp_path / name)
    assert list(read_state_dict(tmp_path / name)) == ["weight"]


class OfTheirs:
    """Something that is neither a tensor nor a module."""


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_of_others_are_named(tmp_path: Path, zipped: bool) -> None:
    torch.save({"a": OfTheirs()}, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(FileError, match=r"other than tensors \(tests.test_checkpoint.OfTheirs\)"):
        read_state_dict(tmp_path / "net.pth")


def test_whole_modules_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"holds a whole pickled model \(tests.models.TwoConvs\)"):
        read_state_dict(saved(tmp_path, {"epoch": 1, "net": TwoConvs()}))
    with pytest.raises(FileError, match=r"holds a whole pickled model \(torch.nn.modules.linear.Linear\)"):
        read_state_dict(saved(tmp_path, nn.Linear(2, 2)))


def test_loading_takes_over_the_precision(tmp_path: Path) -> None:
    state = TwoConvs().state_dict()
    state = {name: value.half() if name.startswith("conv") else value for name, value in state.items()}
    model = TwoConvs()
    load_into(model, state, tmp_path)
    assert model.conv1.weight.dtype == torch.float16
    assert model.norm.weight.dtype == torch.float32
    assert model.norm.num_batches_tracked.dtype == torch.int64
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_integers_give_no_precision() -> None:
    model = nn.Linear(2, 2)
    match_precision(model, {"weight": torch.ones(2, 2, dtype=torch.int8)})
    assert model.weight.dtype == torch.float32


def test_mismatches_of_all_kinds() -> None:
    model = TwoConvs(4)
    state = {**TwoConvs(4).state_dict(), "extra": torch.ones(1), "head.bias": torch.ones(9)}
    del state["conv2.weight"], state["norm.num_batches_tracked"]
    assert mismatches(model, state) == [
        "missing: conv2.weight",
        "left over: extra",
        "of another shape: head.bias (9,) instead of (5,)",
    ]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointMismatchError, match=r"net.pth does not fit TwoConvs:\n  missing: conv2.weight\n"):
        load_into(model, state, Path("net.pth"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("keys", "shown"),
    [(["a"], "a"), (list("abcd"), "a, b, c, d"), (list("abcde"), "a, b, c, d, … (5 in all)"), ([], "")],
)
def test_shortened_keys(keys: list[str], shown: str) -> None:
    assert shorten_keys(keys) == shown
