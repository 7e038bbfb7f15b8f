from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import convswap
from convswap.diff import LayerDiff
from convswap.errors import UnknownNameError

from .models import TwoConvs


def test_model_with_its_conversion() -> None:
    model = TwoConvs()
    new = convswap.convert(model, "dcls", "conv2", kernel_count=3)
    found = convswap.diff(model, new)
    assert found.names == ("TwoConvs", "TwoConvs")
    (layer,) = found.layers
    assert layer.name == "conv2"
    assert layer.kinds == ("Conv2d", "dcls")
    assert layer.shapes[0] == {"weight": (8, 8, 3, 3), "bias": (8,)}
    assert layer.parameters[0] == 8 * 8 * 9 + 8
    assert found.parameters[1] - found.parameters[0] == (layer.parameters[1] or 0) - (layer.parameters[0] or 0)
    assert found.equal == len(model.state_dict()) - 1
    assert found.weights_compared
    assert "dcls: " in str(found)


def test_model_with_itself() -> None:
    model = TwoConvs()
    found = convswap.diff(model, model)
    assert (found.layers, found.distances, found.equal) == ((), (), len(model.state_dict()))
    assert "the same layers, with the same shapes" in str(found)


def test_layers_in_one_side_only() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    found = convswap.diff(model, model[:1])
    assert found.layers == (LayerDiff("1", ("Linear", None), ({"weight": (4, 3), "bias": (4,)}, None), (16, None)),)
    assert convswap.diff(model[:1], model).layers[0].shapes == (None, {"weight": (4, 3), "bias": (4,)})


def test_layers_of_another_kind_with_the_same_shapes() -> None:
    found = convswap.diff(nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(nn.BatchNorm2d(3)))
    assert [layer.kinds for layer in found.layers] == [("BatchNorm1d", "BatchNorm2d")]


def test_distances_are_sorted() -> None:
    one = {"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(2), "c": torch.ones(2), "d": torch.ones(2)}
    other = {"a": torch.tensor([3.0, 5.0]), "b": torch.tensor([0.0, 2.0]), "c": torch.ones(2), "d": torch.zeros(2)}
    found = convswap.diff(one, other)
    assert [(d.name, d.greatest, d.relative) for d in found.distances] == [
        ("b", 2.0, float("inf")),
        ("d", 1.0, 1.0),
        ("a", 1.0, 0.2),
    ]
    assert found.equal == 1
    assert json.loads(found.to_json())["distances"][0] == {"name": "b", "greatest": 2.0, "relative": None}
    assert "inf" in str(found)


def test_other_precision_is_no_distance_where_the_numbers_are_the_same() -> None:
    found = convswap.diff({"a": torch.tensor([0.5])}, {"a": torch.tensor([0.5], dtype=torch.float16)})
    assert (found.equal, found.distances) == (1, ())


def test_many_distances_are_shortened() -> None:
    one = {f"t{i:02}": torch.ones(1) for i in range(30)}
    told = str(convswap.diff(one, {name: value * (2 + i) for i, (name, value) in enumerate(one.items())}))
    assert "t29" in told
    assert "t09" not in told
    assert "… and 10 more" in told
    assert "0 tensors are equal bit for bit, 30 have other numbers" in told


def test_children_called_module_keep_their_name_in_converted_files(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.module = TwoConvs()
    new = convswap.convert(model, "dcls")
    convswap.save(new, tmp_path / "net.safetensors")
    found = convswap.diff(tmp_path / "net.safetensors", new)
    assert (found.layers, found.distances) == ((), ())


def test_neither_file_nor_name() -> None:
    with pytest.raises(UnknownNameError, match=r"gone.pth is neither a file nor a model's name"):
        convswap.diff("gone.pth", {})
