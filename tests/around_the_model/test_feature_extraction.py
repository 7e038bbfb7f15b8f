"""torchvision.models.feature_extraction over converted models."""

import functools
from fnmatch import fnmatch

import pytest
import torch
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import convswap

from ..guided import awake
from ..models import library_model
from .models import assert_same, images

# A model, what is converted of it, and the names of modules and one convolution to look at.
CASES = {
    "torchvision:resnet18": (["layer1.*", "layer3.0.*"], ["layer1.0.conv2", "layer2", "layer3"]),
    "torchvision:mobilenet_v2": (["features.[2-5].*"], ["features.3.conv.2", "features.4", "features.18"]),
    "torchvision:shufflenet_v2_x0_5": (["conv1*", "stage2.*"], ["conv1", "stage2", "conv5"]),
}
MIXED = ("dynamic", "dcls", "guided", "padding_free", "partial")


@functools.cache
def models(name):
    where, _ = CASES[name]
    model = library_model(name).double().eval()
    convs = [key for key, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)]
    names = [key for key in convs if any(fnmatch(key, pattern) for pattern in where)]
    rules = [convswap.Swap(names[i :: len(MIXED)], to) for i, to in enumerate(MIXED)]
    return model, awake(convswap.convert(model, rules, example_inputs=(3, 64, 64)))


@pytest.mark.parametrize("name", CASES)
def test_modules_by_name(name):
    model, new = models(name)
    names = CASES[name][1]
    seen = {}
    hooks = [
        new.get_submodule(part).register_forward_hook(lambda module, args, y, part=part: seen.update({part: y.clone()}))
        for part in names
    ]
    x = images(3, 64)
    new(x)
    for hook in hooks:
        hook.remove()
    extractor = create_feature_extractor(new, names)
    assert_same(extractor(x), seen)
    smaller = images(1, 48)
    assert_same(create_feature_extractor(new, names[-1:])(smaller)[names[-1]], extractor(smaller)[names[-1]])
    kept = [n for n in get_graph_node_names(model)[1] if not any(n == swap.name for swap in convswap.report(new).swaps)]
    assert set(kept) <= set(get_graph_node_names(new)[1])


def test_nodes_of_a_routed_model():
    """Its forward goes through the modules that are on the way, so that nodes have the names of layers."""
    model = library_model("torchvision:resnet18").double().eval()
    new = awake(convswap.convert(model, "guided", "layer3.*.conv2", guide="layer2"))
    x = images(2, 64)
    y = create_feature_extractor(new, {"layer3.1.conv2.conv": "conv", "fc": "logits"})(x)
    assert_same(y["logits"], new(x))
    seen = []
    new.layer3[1].conv2.register_forward_hook(lambda module, args, y: seen.append(y))
    new(x)
    assert_same(y["conv"], seen[0])


def test_gradients_flow_through_an_extractor():
    _, new = models("torchvision:shufflenet_v2_x0_5")
    new.zero_grad()
    create_feature_extractor(new, ["stage2"])(images(2, 64))["stage2"].square().mean().backward()
    inside = [p for key, p in convswap.new_parameters(new).items() if key.startswith(("conv1", "stage2"))]
    assert inside
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in inside)
