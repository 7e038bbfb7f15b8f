"""The family of dynamic layers in whole networks: same classes in photos, with real weights, and same numbers."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
import torchvision
from torch import Tensor, nn

import convswap
from convswap.input_files import read_input
from convswap.layers import CondConv2d, DynamicConv2d, ODConv2d, PatchDynamicConv2d
from examples import samples
from examples.networks import efficientnet_lite0, mobilenet_v2

from .models import library_model

TARGETS = {"dynamic": DynamicConv2d, "condconv": CondConv2d, "odconv": ODConv2d, "hybrid": PatchDynamicConv2d}

NETWORKS = {"mobilenet_v2": mobilenet_v2, "efficientnet_lite0": efficientnet_lite0}

SEEN = {"coffee": "espresso", "camera": "tripod", "motorcycle": "moped"}
"""What both networks see in the photos."""

CONVOLUTIONS = {"mobilenet_v2": 52, "efficientnet_lite0": 49, "resnet18": 20}

every_target = pytest.mark.parametrize("to", TARGETS)


@cache
def network(name: str) -> nn.Module:
    if name == "resnet18":
        return library_model("torchvision:resnet18").eval()
    return NETWORKS[name]()


@cache
@torch.no_grad()
def photos_and_logits(name: str) -> tuple[Tensor, Tensor]:
    photos = torch.cat([read_input(network(name), samples.photo(photo)) for photo in SEEN])
    return photos, network(name)(photos)


@every_target
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_photos_are_classified_as_before(name: str, to: str) -> None:
    photos, expected = photos_and_logits(name)
    new = convswap.convert(network(name), to)
    left_alone = to in ("dynamic", "odconv")  # the first convolution
    assert sum(isinstance(m, TARGETS[to]) for m in new.modules()) == CONVOLUTIONS[name] - left_alone
    with torch.no_grad():
        actual = new(photos)
    categories = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    assert [categories[i] for i in actual.argmax(1)] == list(SEEN.values())
    assert torch.equal(actual.argmax(1), expected.argmax(1))
    assert (actual - expected).abs().max() <= 1e-4


@every_target
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_networks_are_kept_in_double_precision(name: str, to: str) -> None:
    model = copy.deepcopy(network(name)).double()
    options = {"hidden": 2} if to == "hybrid" else {"kernels": 2}  # the layers' own tests have the defaults
    new = convswap.convert(model, to, **options)
    verification = convswap.verify(model, new, torch.randn(2, 3, 64, 64, dtype=torch.float64))
    assert verification.passed
    assert {check.fidelity for check in verification.layers} == {"exact"}
    assert len(verification.layers) == len(convswap.report(new).swaps)
    assert verification.output_relative_error < 1e-10
