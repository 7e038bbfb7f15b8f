"""Reverting layers that the model's own code hands more than their input."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convswap
from convswap.errors import ConvswapError, NothingToSwapError
from convswap.generated_forward import guided_forward
from convswap.layers import GuidedChannelWiseConv2d, PartialConv2d
from convswap.recipe import Recipe, RecipeStep

from .guided import Net, awake, images, net

X = images()
ADVICE = "which a plain convolution does not take: let that code call it with its input alone first"


class Handing(nn.Module):
    """Calls its layer with what ``call`` hands it."""

    def __init__(self, call: Any, layer: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.layer = layer
        self.call = call
        self.double().eval()

    def forward(self, x: Tensor) -> Any:
        return self.call(self.layer, self.stem(x), x)


def guided_layer() -> nn.Module:
    return GuidedChannelWiseConv2d(4, kernel_size=3, padding=1).with_hypernet(guide_channels=3)


def mask(x: Tensor) -> Tensor:
    return x[:, :1] > 0


@pytest.mark.parametrize(
    ("call", "layer", "names"),
    [
        (lambda layer, y, x: layer(y, guide=x), guided_layer, "guide"),
        (lambda layer, y, x: layer(y, x), guided_layer, "guide"),
        (lambda layer, y, x: layer(y, mask=mask(x)), lambda: PartialConv2d(4, 4, 3), "mask"),
        (lambda layer, y, x: layer(y, mask(x), return_mask=True)[0], lambda: PartialConv2d(4, 4, 3), "mask and return"),
    ],
)
def test_what_is_handed_more_is_kept(call: Any, layer: Any, names: str) -> None:
    model = Handing(call, layer())
    model(X)
    with pytest.raises(NothingToSwapError, match=f"hands it {names}.* besides its input, {ADVICE}"):
        convswap.revert(model)
    made = convswap.revert(convswap.convert(model, "condconv", "stem"))
    (told,) = convswap.report(made).reversions
    assert [layer.name for layer in told.layers] == ["stem"]
    assert [layer.name for layer in told.kept] == ["layer"]
    made(X)
    with pytest.raises(ConvswapError, match=ADVICE):
        convswap.apply(Recipe((RecipeStep("layer", None, {}, reverted=True),)), model)


def untraceable(layer: nn.Module, y: Tensor, x: Tensor) -> Any:
    return layer(y) if x.sum() > 0 else layer(y, mask=mask(x))


@pytest.mark.parametrize(
    ("call", "fidelity"), [(lambda layer, y, x: layer(y), "exact"), (untraceable, "approximate")], ids=["seen", "not"]
)
def test_masks_that_nothing_is_known_of(call: Any, fidelity: str) -> None:
    model = Handing(call, PartialConv2d(4, 4, 3))  # which pads nothing
    (told,) = convswap.report(convswap.revert(model)).reverted().values()
    assert told.fidelity == fidelity
    assert told.lost == ("that it can be given a mask, and return that of its result",)


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.handed, self.last = nn.Conv2d(3, 4, 1), guided_layer(), nn.Conv2d(4, 2, 1)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.handed(self.first(x), guide=x))
        return y


def test_what_conversions_hand_does_not_count() -> None:
    model = awake(convswap.convert(Both(), "guided", "last", guide="first", example_inputs=X[:1]))
    made: Any = convswap.revert(model)
    (told,) = convswap.report(made).reversions
    assert ([layer.name for layer in told.layers], [layer.name for layer in told.kept]) == (["last"], ["handed"])
    assert type(made) is Both
    made(X)


# Files of parts that an architecture has routed guides to by itself ------------------------------------------------


class Whole(nn.Module):
    """Has a part whose layers are guided from within it, which nothing but its class says."""

    def __init__(self, as_graph: bool = False) -> None:
        super().__init__()
        where, inputs = ["second.conv2", "down"], images()[:1]
        part = convswap.convert(net(), "guided", where, guide="first", example_inputs=inputs, as_graph=as_graph)
        self.part: Any = awake(part)
        del self.part._convswap_report
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.part(x)
        return y


@pytest.mark.parametrize("as_graph", [False, True])
@pytest.mark.parametrize("where", ["part.down", "*"])
def test_files_of_parts_with_guides_of_their_own(tmp_path: Path, where: str, as_graph: bool) -> None:
    path = tmp_path / "net.safetensors"
    made = convswap.revert(Whole(as_graph), where)
    convswap.save(made, path)
    fresh = Whole(as_graph)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    loaded: Any = convswap.load(path, model=fresh).eval()
    assert type(loaded.part.down) is nn.Conv2d
    assert torch.equal(loaded(X), made(X))
    loaded.train()(X)
    if not as_graph:
        assert (type(loaded.part) is Net) == (where == "*")
        assert where == "*" or set(guided_forward(loaded.part).routes) == {"second.conv2"}  # type: ignore[union-attr]


@pytest.mark.parametrize("as_graph", [False, True])
def test_a_file_that_does_not_fit_leaves_such_parts_as_they_were(tmp_path: Path, as_graph: bool) -> None:
    path = tmp_path / "net.safetensors"
    made: Any = convswap.revert(Whole(as_graph), "part.down")
    made.part.head = nn.Conv2d(6, 3, 1).double()
    convswap.save(made, path)
    model = Whole(as_graph)
    held, before, expected = copy.copy(vars(model.part)), type(model.part), model(X)
    with pytest.raises(ConvswapError, match="does not fit"):
        convswap.load(path, model=model)
    assert type(model.part) is before
    assert set(vars(model.part)) == set(held)
    assert torch.equal(model(X), expected)
    assert torch.equal(model.train()(X)[0], Whole(as_graph).train()(X)[0])
