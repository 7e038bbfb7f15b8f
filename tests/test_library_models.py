"""The promise on real architectures: same class, same function in both modes, everything new learns, files keep it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convswap

from .models import library_model, relative_error, without_randomness

MODELS = (
    *(f"torchvision:{name}" for name in ("resnet18", "resnet50", "mobilenet_v3_large", "densenet121", "convnext_tiny")),
    *(
        f"timm:{name}"
        for name in ("resnet50", "efficientnet_b0", "convnext_tiny", "regnety_004", "mobilenetv3_small_100")
    ),
)

CONVERSIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamic": ("dynamic", {}),
    "dcls": ("dcls", {}),
    "gauss": ("dcls", {"version": "gauss"}),
}

LARGE = {
    "torchvision:resnet50": "dynamic",
    "timm:resnet50": "dcls",
    "torchvision:convnext_tiny": "dcls",
    "timm:convnext_tiny": "dynamic",
}
"""Those that take the longest, each by one target: the two libraries' own do what the other one's does."""

OPTIONS_ON = ("torchvision:resnet18", "timm:mobilenetv3_small_100")
"""What an option of a target does depends on the convolution alone: these have 7×7, and 5×5 depthwise ones."""

KEPT = [
    (name, kind)
    for name in MODELS
    for kind in CONVERSIONS
    if (name in OPTIONS_ON if kind == "gauss" else LARGE.get(name, kind) == kind)
]
FILES = [(name, ("dynamic", "dcls")[n % 2]) for n, name in enumerate(MODELS)] + [("torchvision:resnet18", "gauss")]

SIZE = 64


@lru_cache(maxsize=1)
def ten_class_model(name: str) -> nn.Module:
    return without_randomness(library_model(name, num_classes=10)).double()


@pytest.mark.parametrize(("name", "kind"), KEPT)
def test_function_is_kept_and_everything_new_learns(name: str, kind: str) -> None:
    model, (to, options) = ten_class_model(name), CONVERSIONS[kind]
    new = convswap.convert(model, to=to, **options)
    assert type(new) is type(model)
    _check_evaluation(model, new, kind)
    _check_training(model, new, kind)


def _check_evaluation(model: nn.Module, new: nn.Module, kind: str) -> None:
    x = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    verification = convswap.verify(model, new, x)
    assert len(verification.layers) == len(convswap.report(new).swaps)
    assert verification.passed
    if kind == "gauss":
        assert {check.fidelity for check in verification.layers} == {"approximate"}
        assert 0 < max(check.relative_error for check in verification.layers) < 5e-3
    else:
        assert verification.output_relative_error < 1e-10


def _check_training(model: nn.Module, new: nn.Module, kind: str) -> None:
    """The first step's output is the original's; after the second, if not before, every new parameter has moved."""
    fresh = convswap.new_parameters(new)
    before = {name: parameter.detach().clone() for name, parameter in fresh.items()}
    optimiser = torch.optim.SGD(new.parameters(), lr=0.01)
    for step in range(2):
        x = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
        output = new.train()(x)
        if step == 0 and kind != "gauss":
            assert relative_error(output, _training_output(model, x)) < 1e-10
        F.cross_entropy(output, torch.arange(2)).backward()
        optimiser.step()
        optimiser.zero_grad()
        still = [name for name, parameter in fresh.items() if torch.equal(parameter, before[name])]
        if not still:
            return
    assert still == []


@torch.no_grad()
def _training_output(model: nn.Module, x: Tensor) -> Tensor:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    output: Tensor = model.train()(x)
    model.load_state_dict(state)  # running statistics
    return output


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_files_keep_every_bit(name: str, kind: str, tmp_path: Path) -> None:
    to, options = CONVERSIONS[kind]
    new = convswap.convert(library_model(name), to=to, **options)
    source = None if name.startswith("timm:") else name
    convswap.save(new, tmp_path / "new.safetensors", source)
    state, loaded = new.state_dict(), convswap.load(tmp_path / "new.safetensors")
    assert type(loaded) is type(new)
    again = loaded.state_dict()
    assert list(again) == list(state)
    assert all(torch.equal(again[key], value) and again[key].dtype == value.dtype for key, value in state.items())
