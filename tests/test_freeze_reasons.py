"""Layers that cannot be frozen, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

import convswap
from convswap.errors import ConvswapError, NothingToSwapError
from convswap.layers import (
    CondConv2d,
    Dcls2d,
    DynamicConv2d,
    ExplicitBoundaryConv2d,
    PaddedConv2d,
    PaddingFreeConv2d,
    PartialConv2d,
    RandomPadConv2d,
)
from convswap.recipe import Recipe, RecipeStep

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))


class Doubled(Dcls2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class DoubledFurther(Doubled):
    pass


class DoubledWhenFrozen(Doubled):
    def freeze(self) -> Any:
        conv = super().freeze()
        with torch.no_grad():
            for parameter in conv.parameters():
                parameter.mul_(2)
        return conv


class OnlyNamed(Dcls2d):
    pass


class DoubledDynamic(DynamicConv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


@pytest.mark.parametrize("kind", [Doubled, DoubledFurther, DoubledDynamic])
def test_subclasses_that_compute_something_else_are_kept(kind: Any) -> None:
    net = nn.Sequential(kind(3, 3, 3))
    with pytest.raises(
        NothingToSwapError, match=r"\n  0: Doubled(Dynamic)? has a forward of its own: give it a freeze"
    ):
        convswap.freeze(net, X, mode="mean")
    with pytest.raises(ConvswapError, match=r"the recipe freezes '0', which is a \w+: Doubled(Dynamic)? has a"):
        convswap.apply(Recipe((RecipeStep("0", None, frozen=True),)), net)


@pytest.mark.parametrize("kind", [DoubledWhenFrozen, OnlyNamed])
def test_subclasses_that_freeze_to_what_they_compute(kind: Any) -> None:
    net = nn.Sequential(kind(3, 3, 3))
    frozen: Any = convswap.freeze(net)
    assert type(frozen[0]) is nn.Conv2d
    assert torch.allclose(frozen(X), net(X), atol=1e-5)


@pytest.mark.parametrize(
    ("attach", "message"),
    [
        (lambda layer: parametrizations.weight_norm(layer), "its weight is computed by a parametrisation"),
        (lambda layer: weight_norm(layer), "it has a weight_norm: remove it first"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "its weight is pruned: make that permanent first"),
        (lambda layer: layer.register_forward_hook(lambda *_: None), r"it has hooks .* \(forward hook\): remove them"),
    ],
    ids=["parametrised", "weight_norm", "pruned", "hook"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_is_attached(attach: Any, message: str) -> None:
    layer = Dcls2d(3, 3, 3)
    attach(layer)
    with pytest.raises(NothingToSwapError, match=message):
        convswap.freeze(nn.Sequential(layer))


def test_what_is_attached_can_be_removed() -> None:
    net = nn.Sequential(DynamicConv2d(3, 3, 3), CondConv2d(3, 3, 3))
    for layer in net:
        parametrizations.weight_norm(layer)
    net(X).sum().backward()
    for layer in net:
        nn.utils.parametrize.remove_parametrizations(layer, "weight")
    frozen: Any = convswap.freeze(net, X, mode="mean")
    assert type(frozen[0]) is type(frozen[1]) is nn.Conv2d


class DoubledPaddingFree(PaddingFreeConv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        (PaddingFreeConv2d, {"train_edge_kernel": True}, "it has a second kernel for the outputs at the border, and a"),
        (DoubledPaddingFree, {}, "DoubledPaddingFree has a forward of its own: give it a freeze that matches"),
        (RandomPadConv2d, {}, "its padding is drawn anew in each call"),
        (PartialConv2d, {}, "how it scales an output depends on where that is"),
        (
            ExplicitBoundaryConv2d,
            {},
            "it has a kernel for each distance to the border, and a plain convo",
        ),
    ],
)
def test_layers_with_a_border_of_their_own(kind: Any, options: dict[str, Any], reason: str) -> None:
    net = nn.Sequential(kind(3, 3, 3, padding=1, **options), PaddingFreeConv2d(3, 3, 3, padding=1))
    for mode in ("exact", "mean"):
        frozen: Any = convswap.freeze(net, X, mode=mode)
        assert type(frozen[0]) is kind
        assert type(frozen[1]) is PaddedConv2d
        (told,) = convswap.report(frozen).freezings
        assert [(layer.name, layer.reason.startswith(reason)) for layer in told.kept] == [("0", True)]
    with pytest.raises(ConvswapError, match=f"the recipe freezes '0', which is a {kind.__name__}: {reason}"):
        convswap.apply(Recipe((RecipeStep("0", None, frozen=True),)), net)


@pytest.mark.parametrize("options", [{"train_edge_kernel": True}, {}])
def test_files_that_say_that_such_a_layer_was_frozen(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
    convswap.save(convswap.convert(net, "padding_free" if options else "partial", **options), path)
    with safetensors.safe_open(path, framework="pt") as file:
        info = json.loads(file.metadata()["convswap"])
    info["report"]["recipe"]["steps"][0]["frozen"] = True
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"format": "pt", "convswap": json.dumps(info)})
    words = "padding_free' cannot be: it has a second kernel" if options else "partial' cannot be: how it scales"
    with pytest.raises(ConvswapError, match=f"0 is said to be frozen, which a layer of the target '{words}"):
        convswap.load(path, model=net)


def test_functions_that_ask_for_a_plain_convolution() -> None:
    with pytest.raises(ConvswapError, match="a Dcls2d amounts to no plain convolution"):
        convswap.freeze(nn.Sequential(Dcls2d(3, 3, 3)), where=lambda site: bool(site.plain.kernel_size))
