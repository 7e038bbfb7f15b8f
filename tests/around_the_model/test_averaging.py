"""Averages of weights: timm's ModelEmaV3, and torch.optim.swa_utils."""

import copy

import pytest
import torch
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import convswap

from .models import NAMES, assert_same, converted, images, original


def after_a_step(model):
    new = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.mul_(1.1).add_(0.01)
        for buffer in new.buffers():
            if buffer.is_floating_point():
                buffer.mul_(1.1)
    return new


def mixture(first, second, share):
    names = dict(second.named_parameters()).keys() | dict(second.named_buffers()).keys()
    one, other = first.state_dict(keep_vars=True), second.state_dict(keep_vars=True)
    return {n: one[n] * (1 - share) + other[n] * share for n in names & one.keys() if one[n].is_floating_point()}


@pytest.mark.parametrize(("name", "kind"), [*((name, "mixed") for name in NAMES), (NAMES[1], "routed")])
def test_averages(name, kind):
    model, x = converted(name, kind), images(2)
    ema = ModelEmaV3(model, decay=0.75)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True)
    averaged.update_parameters(model)  # the first is a copy
    moved = after_a_step(model)
    ema.update(moved)
    averaged.update_parameters(moved)
    expected = mixture(model, moved, 0.25)
    assert {key for key in convswap.new_parameters(model) if "predictors" not in key} <= expected.keys()
    for mean in (ema.module, averaged.module):
        assert type(mean) is type(model)
        state = mean.state_dict()
        assert_same({key: state[key] for key in expected}, expected)
    assert_same(ema.module.eval()(x), averaged.module.eval()(x))
    assert (ema.module(x) - model(x)).abs().max() > 0


@pytest.mark.parametrize("name", [NAMES[0], NAMES[2]])
def test_statistics_of_batches_are_taken_anew(name):
    """After update_bn the norms have the statistics of what the averaged layers give."""
    averaged = AveragedModel(converted(name))
    loader = [images(4, seed=seed) for seed in (5, 6)]
    update_bn(loader, averaged)
    again = copy.deepcopy(averaged.module).train()
    norms = [m for m in again.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for batch in loader:
        again(batch)
    found = [m for m in averaged.module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(found) > 5
    for norm, expected in zip(found, norms, strict=True):
        assert int(norm.num_batches_tracked) == 2
        assert_same(norm.running_var, expected.running_var)


@pytest.mark.parametrize("name", NAMES[:2])
def test_shared_positions_are_averaged_once(name):
    """By swa_utils; ModelEmaV3 goes by state dicts and takes one step for each name, as with any tied weights."""
    where = "*conv_dw" if "convnext" in name else "*"
    model = convswap.convert(
        original(name), "dcls", where, share_positions="stage", version="v1", example_inputs=(3, 48, 48)
    )
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    averaged.update_parameters(model)
    moved = after_a_step(model)
    averaged.update_parameters(moved)
    shared = [key for key in model.state_dict() if key.endswith(".P")]
    assert len(shared) > len({id(model.get_parameter(key)) for key in shared})
    for key in shared:
        expected = 0.75 * model.get_parameter(key) + 0.25 * moved.get_parameter(key)
        assert_same(averaged.module.get_parameter(key), expected)
    ema = ModelEmaV3(model, decay=0.75)
    ema.update(moved)
    for key in shared:
        names = sum(model.get_parameter(other) is model.get_parameter(key) for other in shared)
        expected = torch.lerp(moved.get_parameter(key), model.get_parameter(key), 0.75**names)
        assert_same(ema.module.get_parameter(key), expected)
