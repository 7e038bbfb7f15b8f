from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import convswap
from convswap.errors import ConvswapError, OptionError, UnknownNameError
from convswap.recipe import Recipe, RecipeStep

from .models import TwoConvs, as_if_trained, relative_error


def recipe_of(model: nn.Module) -> Recipe:
    return convswap.report(model).recipe


def test_recipe_of_a_conversion() -> None:
    new = convswap.convert(TwoConvs(), "dcls", "conv2", seed=3, kernel_count=4, dilated_kernel_size=9)
    options = {
        "kernel_count": 4,
        "dilated_kernel_size": [9, 9],
        "version": "v1",
        "share_positions": "none",
        "max_kernel_bytes": 2**28,
    }
    assert recipe_of(new) == Recipe((RecipeStep("conv2", "dcls", options, 3),))


def test_json_there_and_back() -> None:
    recipe = recipe_of(convswap.convert(TwoConvs(), "dynamic", convert_first=True))
    assert len(recipe.steps) == 2
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("as_json", [False, True])
def test_recipe_does_the_same_again(as_json: bool) -> None:
    model = as_if_trained(TwoConvs()).eval()
    once = convswap.convert(model, "dynamic", seed=5, kernels=3)
    twice = convswap.convert(once, "dcls", "conv1", seed=6)
    recipe = recipe_of(twice)
    again = convswap.apply(json.loads(json.dumps(recipe.to_dict())) if as_json else recipe, model)
    assert recipe_of(again).to_dict() == recipe.to_dict()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in twice.state_dict().items())
    x = torch.randn(1, 3, 8, 8)
    assert relative_error(again(x), model(x)) < 1e-5


STEP = {"name": "conv2", "target": "dynamic", "options": {}, "seed": 0}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "this is no recipe: it has no list of steps"),
        ([], "this is no recipe"),
        ({"version": 1}, "this is no recipe"),
        ({"version": 1, "steps": {}}, "this is no recipe"),
        ({"steps": []}, "the recipe is of version None, and this convswap reads version 1"),
        ({"version": 2, "steps": []}, "the recipe is of version 2, and this convswap reads version 1"),
        ({"version": 1, "steps": [3]}, "a step of the recipe must have a name, a target, options and a seed, got '3'"),
        ({"version": 1, "steps": [{**STEP, "name": None}]}, "a step of the recipe must have"),
        ({"version": 1, "steps": [{**STEP, "target": 3}]}, "a step of the recipe must have"),
        ({"version": 1, "steps": [{**STEP, "options": []}]}, "a step of the recipe must have"),
        ({"version": 1, "steps": [{**STEP, "seed": 1.5}]}, "a step of the recipe must have"),
        ({"version": 1, "steps": [{**STEP, "seed": True}]}, "a step of the recipe must have"),
    ],
)
def test_data_that_is_no_recipe(data: Any, message: str) -> None:
    with pytest.raises(ConvswapError) as told:
        Recipe.from_dict(data)
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": "conv3"}, ConvswapError, "the recipe converts 'conv3', and TwoConvs has no convolution of that name"),
        ({"target": "dinamic"}, UnknownNameError, "there is no target 'dinamic'. Did you mean 'dynamic'"),
        ({"options": {"kernals": 3}}, UnknownNameError, "has no option 'kernals'"),
        ({"options": {"reduction": "3"}}, OptionError, "must be a whole number, got '3'"),
    ],
)
def test_recipes_that_do_not_fit(change: dict[str, Any], error: type[Exception], message: str) -> None:
    model = TwoConvs()
    with pytest.raises(error, match=message):
        convswap.apply({"version": 1, "steps": [{**STEP, **change}]}, model)
    assert type(model.conv2) is nn.Conv2d


def test_recipe_for_what_must_be_kept() -> None:
    model = TwoConvs()
    model.conv2.register_forward_hook(lambda *_: None)
    with pytest.raises(ConvswapError, match=r"the recipe converts 'conv2', which must be kept: it has hooks"):
        convswap.apply({"version": 1, "steps": [STEP]}, model)
