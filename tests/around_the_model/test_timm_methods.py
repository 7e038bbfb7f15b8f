"""What timm's models can do besides forward, and what timm does with models."""

import copy

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import FeatureDictNet, FeatureGraphNet, FeatureHookNet, FeatureListNet
from timm.models._features import FeatureGetterNet
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.utils import freeze, get_state_dict, unfreeze, unwrap_model

import convswap

from .models import EXACT, NAMES, SIZE, assert_same, converted, gradients, images, original, rules


@pytest.mark.parametrize("name", NAMES)
def test_features_and_head(name):
    model, new, x = original(name), converted(name, "exact"), images()
    assert type(new) is type(model)
    features = new.forward_features(x)
    assert_same(features, model.forward_features(x))
    for pre_logits in (False, True):
        assert_same(
            new.forward_head(features, pre_logits=pre_logits), model.forward_head(features, pre_logits=pre_logits)
        )
    last, middle = new.forward_intermediates(x)
    expected_last, expected_middle = model.forward_intermediates(x)
    assert_same(last, expected_last)
    assert_same(dict(enumerate(middle)), dict(enumerate(expected_middle)))
    other = converted(name)  # whose function is another
    assert_same(other.forward_head(other.forward_features(x)), other(x))


@pytest.mark.parametrize(("name", "kind"), [*((name, "mixed") for name in NAMES), (NAMES[1], "routed")])
def test_classifier(name, kind):
    new, x = converted(name, kind), images()
    before = new(x)
    head = new.get_classifier()
    assert isinstance(head, torch.nn.Linear)
    assert head.out_features == 10
    with torch.no_grad():
        head.bias.add_(1)
    assert_same(new(x), before + 1)
    new.reset_classifier(7)
    new.double()
    assert new(x).shape == (4, 7)
    assert convswap.new_parameters(new).keys() == convswap.new_parameters(converted(name, kind)).keys()
    new.reset_classifier(0)
    assert_same(new(x) @ head.weight.T + head.bias, before + 1)


def test_ways_around_a_routed_forward_say_what_is_missing():
    new = converted(NAMES[0], "routed")
    for call in (new.forward_features, new.forward_intermediates):
        with pytest.raises(RuntimeError, match=r"no guide in this call: .* guided by 'conv1'.*call the model itself"):
            call(images())


@pytest.mark.parametrize("name", NAMES)
def test_data_config(name):
    config = resolve_model_data_config(original(name))
    assert "mean" in config
    assert resolve_model_data_config(converted(name)) == config


@pytest.mark.parametrize("name", NAMES)
def test_features_only(name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name.removeprefix("timm:"), features_only=True).double().eval()
    rule = [convswap.Swap(r.where, r.to) for r in rules(name, EXACT)[1:]]
    new, x = convswap.convert(model, rule, example_inputs=(3, SIZE, SIZE)), images(2)
    assert len(convswap.report(new).swaps) > 5
    expected = dict(enumerate(model(x)))
    assert_same(dict(enumerate(new(x))), expected)
    assert new.feature_info.channels() == model.feature_info.channels()
    source = {"source": name, "source_args": {"features_only": True}}
    convswap.save(new, tmp_path / "new.safetensors", **source)
    assert_same(dict(enumerate(convswap.load(tmp_path / "new.safetensors").eval()(x))), expected)


@pytest.mark.parametrize("name", NAMES)
def test_feature_nets_over_a_converted_model(name):
    new, x = converted(name), images(2)
    last = len(new.feature_info) - 1
    flat = {} if name == "timm:test_resnet" else {"flatten_sequential": True}
    nets = [kind(copy.deepcopy(new), out_indices=(1, last), **flat) for kind in (FeatureListNet, FeatureDictNet)]
    nets.append(FeatureHookNet(copy.deepcopy(new), out_indices=(1, last), **flat))
    nets.append(FeatureGetterNet(copy.deepcopy(new), out_indices=(1, last)))
    _, expected = new.forward_intermediates(x, indices=(1, last))
    for net in nets:
        y = net.eval()(x)
        for actual, value in zip(y.values() if isinstance(y, dict) else y, expected, strict=True):
            assert_same(actual, value)


TAILS = {
    "timm:test_resnet": lambda model, y: model.forward_head(y),
    "timm:test_efficientnet": lambda model, y: model.forward_head(model.bn2(model.conv_head(y))),
}


@pytest.mark.parametrize("name", TAILS)
def test_feature_graphs_of_routed_models(name):
    """They are made from the forward, which hands in the guides. (ConvNeXt's stages end in an addition: see Limits.)"""
    new, x = converted(name, "routed"), images(2)
    (features,) = FeatureGraphNet(copy.deepcopy(new), out_indices=(len(new.feature_info) - 1,))(x)
    assert_same(TAILS[name](new, features), new(x))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing(name):
    new, x = converted(name).train(), images()
    expected = gradients(copy.deepcopy(new), x)
    new.set_grad_checkpointing(True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        found = gradients(new, x)
    assert_same(found, expected)
    kept = sum(saved)
    saved.clear()
    new.set_grad_checkpointing(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        gradients(new, x)
    assert kept < sum(saved)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_groups(name):
    """Each parameter is in one group; new ones decay by their axes, and have the layer of the convolution."""
    model, new = original(name), converted(name)
    every = {id(p) for p in new.parameters()}
    without, with_decay = param_groups_weight_decay(new, 0.05)
    assert (without["weight_decay"], with_decay["weight_decay"]) == (0.0, 0.05)
    assert {id(p) for group in (without, with_decay) for p in group["params"]} == every
    assert all(p.ndim <= 1 for p in without["params"])
    assert all(p.ndim > 1 for p in with_decay["params"])

    def scales(of):
        names = {id(p): key for key, p in of.named_parameters()}
        groups = param_groups_layer_decay(of, layer_decay=0.5)
        return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}

    before, after = scales(model), scales(new)
    assert after.keys() == dict(new.named_parameters()).keys()
    for swap in convswap.report(new).swaps:
        of_layer = {scale for key, scale in after.items() if key.startswith(f"{swap.name}.")}
        assert of_layer == {before[f"{swap.name}.weight"]}


@pytest.mark.parametrize("name", NAMES)
def test_utilities(name):
    new, x = converted(name), images(2)
    expected = new(x)
    assert unwrap_model(new) is new
    assert_same(dict(get_state_dict(new)), dict(new.state_dict()))
    freeze(new)
    assert not any(p.requires_grad for p in new.parameters())
    assert_same(new.eval()(x), expected)
    unfreeze(new)
    assert all(p.requires_grad for p in new.parameters())
    assert_same(new.eval()(x), expected)
