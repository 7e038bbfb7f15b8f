from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from convswap.errors import ConvswapError, ModelError, OptionError, UnknownNameError
from convswap.sources import Source, build_model, infer_source, parse_source

from .models import TwoConvs

timm = importlib.import_module("timm")


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("torchvision:resnet50", Source("torchvision", "resnet50")),
        ("timm:resnet50.a1_in1k", Source("timm", "resnet50.a1_in1k")),
        ("my.own.models:net", Source("my.own.models", "net")),
    ],
)
def test_names(text: str, source: Source) -> None:
    assert parse_source(text) == source
    assert str(source) == text
    assert source.is_code is (source.library == "my.own.models")


@pytest.mark.parametrize("text", ["resnet50", "", ":", "timm:", ":resnet50"])
def test_names_of_no_form(text: str) -> None:
    with pytest.raises(UnknownNameError, match=r"write torchvision:<name>, timm:<name> or module.path:factory"):
        parse_source(text)


@pytest.mark.parametrize("given", [5, None, b"timm:resnet18", ["timm:resnet18"], nn.Identity()])
def test_names_that_are_no_text(given: Any) -> None:
    for take in (parse_source, build_model):
        with pytest.raises(UnknownNameError, match=r"names no model: write torchvision:<name>"):
            take(given)


def test_arguments_that_are_no_dict() -> None:
    with pytest.raises(OptionError, match=r"the arguments of timm:resnet18 must be a dict, got \[3\]"):
        parse_source("timm:resnet18", [3])  # type: ignore[arg-type]


def test_there_and_back() -> None:
    source = Source("timm", "resnet18", {"num_classes": 3})
    assert Source.from_dict(source.to_dict()) == source


@pytest.mark.parametrize("data", [None, [], "timm:resnet18", {}, {"library": "timm", "name": 3, "args": {}}])
def test_data_that_is_no_source(data: Any) -> None:
    with pytest.raises(ConvswapError, match="names no source of a model"):
        Source.from_dict(data)


def build(text: str, **args: Any) -> nn.Module:
    return build_model(parse_source(text, args))


def test_models_of_all_libraries() -> None:
    assert isinstance(build("torchvision:squeezenet1_1", num_classes=3), torchvision.models.SqueezeNet)
    assert build("timm:test_resnet", num_classes=3).get_classifier().out_features == 3  # type: ignore[operator]
    assert isinstance(build("tests.models:TwoConvs", channels=2), TwoConvs)


def test_backbones_have_no_weights_either(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    assert isinstance(build("torchvision:ssdlite320_mobilenet_v3_large"), nn.Module)


def test_randomness_is_left_alone() -> None:
    state, own = torch.get_rng_state(), random.getstate()
    build("timm:test_resnet")
    build("tests.models:TwoConvs")
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == own


@pytest.mark.parametrize("argument", ["pretrained", "checkpoint_path", "pretrained_cfg", "weights"])
@pytest.mark.parametrize("model", ["timm:test_resnet", "torchvision:resnet18"])
def test_weights_are_not_for_here(model: str, argument: str) -> None:
    with pytest.raises(OptionError, match=f"is built without weights: the argument {argument!r} is not for here"):
        build(model, **{argument: "x"})


def test_own_factories_may_have_arguments_of_any_name() -> None:
    with pytest.raises(OptionError, match=r"does not take these arguments: .*weights"):
        build("tests.models:TwoConvs", weights=1)


@pytest.mark.parametrize(
    ("model", "args", "error", "message"),
    [
        ("torchvision:resnet18", {"depth": 3}, OptionError, "torchvision:resnet18 does not take these arguments"),
        ("timm:test_resnet", {"deepness": 3}, OptionError, "timm:test_resnet does not take these arguments"),
        ("timm:test_resnet.nonsense", {}, ModelError, "cannot be built"),
        ("tests.models:as_if_trained", {"model": 3}, ModelError, "cannot be built"),
        ("builtins:dict", {}, ModelError, "builtins:dict gives a dict, not a torch.nn.Module"),
        ("tests.models:__name__", {}, UnknownNameError, "tests.models:__name__ is a str, not a function that gives"),
        ("math:pi", {}, UnknownNameError, "math:pi is a float, not a function"),
        ("sys:maxsize", {}, UnknownNameError, "sys:maxsize is an int, not a function"),
        ("tests:models", {}, UnknownNameError, "tests:models is a module, not a function"),
    ],
)
def test_models_that_cannot_be_built(model: str, args: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(model, **args)


def in_a_module(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> str:
    """The name of a new module that has this code."""
    name = f"module_{abs(hash(code))}"
    (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    return name


@pytest.mark.parametrize("left", ["sys.exit(3)", "sys.exit('no data')", "raise SystemExit"])
def test_modules_and_factories_that_exit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    name = in_a_module(monkeypatch, tmp_path, f"import sys\n{left}")
    with pytest.raises(ModelError, match=rf"the module '{name}' cannot be imported \(SystemExit: "):
        build(f"{name}:net")
    name = in_a_module(monkeypatch, tmp_path, f"import sys\ndef net():\n    {left}")
    with pytest.raises(ModelError, match=rf"{name}:net cannot be built \(SystemExit: "):
        build(f"{name}:net")


def test_model_instead_of_its_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = in_a_module(monkeypatch, tmp_path, "from torch import nn\nnet = nn.Identity()\nnothing = None")
    with pytest.raises(UnknownNameError, match=f"{name}:net is an Identity, not a function"):
        build(f"{name}:net")
    with pytest.raises(UnknownNameError, match=f"{name}:nothing is a NoneType, not a function"):
        build(f"{name}:nothing")


def test_only_functions_are_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = in_a_module(monkeypatch, tmp_path, "def network(): ...\nnetworks = []")
    with pytest.raises(UnknownNameError) as told:
        build(f"{name}:networkz")
    assert str(told.value) == f"the module '{name}' has no function 'networkz'. Did you mean 'network'?"


def test_inference() -> None:
    assert infer_source(timm.create_model("test_resnet", num_classes=2)) == Source(
        "timm", "test_resnet", {"num_classes": 2}
    )
    assert infer_source(timm.create_model("test_resnet")) == Source("timm", "test_resnet")
    assert infer_source(TwoConvs()) is None
    assert infer_source(torchvision.models.squeezenet1_1()) is None
