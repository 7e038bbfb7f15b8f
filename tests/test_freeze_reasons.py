"""Layers that cannot be frozen, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

import convswap
from convswap.errors import ConvswapError, NothingToSwapError
from convswap.layers import CondConv2d, Dcls2d, DynamicConv2d
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
    with pytest.raises(ConvswapError, match=r"the recipe freezes '0': Doubled(Dynamic)? has a forward of its own"):
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


def test_functions_that_ask_for_a_plain_convolution() -> None:
    with pytest.raises(ConvswapError, match="a Dcls2d amounts to no plain convolution"):
        convswap.freeze(nn.Sequential(Dcls2d(3, 3, 3)), where=lambda site: bool(site.plain.kernel_size))
