"""torch.func over converted models, recomputation, and gradients in several pieces."""

import copy

import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from ..guided import awake
from .models import NAMES, assert_same, converted, gradients, images, loss

KINDS = [*((name, "mixed") for name in NAMES), (NAMES[1], "routed")]


def state(model):
    return {key: p.detach() for key, p in model.named_parameters()}, dict(model.named_buffers())


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_functional_call(name, kind):
    new, x = converted(name, kind), images(2)
    other = awake(copy.deepcopy(new), seed=7)
    assert_same(functional_call(new, state(other), (x,)), other(x))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_gradients_of_single_samples(name, kind):
    new, x = converted(name, kind), images(2)
    parameters, buffers = state(new)

    def of_one(parameters, one):
        return loss(functional_call(new, (parameters, buffers), (one[None],)))

    together = vmap(grad(of_one), (None, 0))(parameters, x)
    for i, one in enumerate(x):
        expected = gradients(new, one[None])
        assert_same({key: together[key][i] for key in expected}, expected, 1e-8)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_ensembles(name, kind):
    models = [awake(converted(name, kind), seed=seed) for seed in (5, 6)]
    parameters, buffers = stack_module_state(models)
    x = images(2)
    y = vmap(lambda p, b: functional_call(models[0], (p, b), (x,)))(parameters, buffers)
    for one, model in zip(y, models, strict=True):
        assert_same(one, model(x))


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_recomputation(name, kind):
    new, x = converted(name, kind).train(), images()
    expected = gradients(copy.deepcopy(new), x)
    assert_same(gradients(lambda_of(new), x), expected)


def lambda_of(model):
    """The model as a module that forgets what its parts computed."""

    class Forgetful(torch.nn.Module):
        def forward(self, x):
            return checkpoint(model, x, use_reentrant=False)

        def named_parameters(self, *args, **kwargs):
            return model.named_parameters(*args, **kwargs)

    return Forgetful()


@pytest.mark.parametrize("name", NAMES)
def test_accumulation(name):
    new, x = converted(name), images(4)
    expected = gradients(new, x)
    for half in x.chunk(2):
        (loss(new(half)) / 2).backward()
    assert_same({key: p.grad for key, p in new.named_parameters() if p.grad is not None}, expected)
