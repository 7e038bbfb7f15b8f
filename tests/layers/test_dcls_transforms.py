"""Derivatives in forward mode and the transforms of ``torch.func``, with and without kernels."""

import pytest
import torch
from torch.autograd import forward_ad

from convswap.layers import Dcls2d, DclsDilated2d
from convswap.layers.functional import large_depthwise_conv2d

from .helpers import relative_error

LAYERS = {
    **{
        f"{version} {formula}": (version, formula)
        for version in ("v0", "v1", "max", "gauss")
        for formula in ("auto", "dense", "depthwise", "sparse")
        if formula != "sparse" or version in ("v0", "v1")
    }
}


def loss_of(layer, x):
    return lambda parameters: torch.func.functional_call(layer, parameters, (x,)).square().sum()


def parameters_of(layer):
    return {name: parameter.detach() for name, parameter in layer.named_parameters()}


def layers():
    for version, formula in LAYERS.values():
        layer = Dcls2d(4, 4, 5, 1, "same", 17, 4, version=version, dtype=torch.float64)
        layer.formula = formula
        yield layer
    yield Dcls2d(4, 6, 5, padding=3, dtype=torch.float64)
    yield DclsDilated2d(4, 4, 3, padding=2, dilation=2, groups=4, shared_positions=True, dtype=torch.float64)


@pytest.mark.parametrize("layer", list(layers()), ids=str)
def test_transforms_give_what_reverse_mode_gives(layer):
    x = torch.randn(3, 4, 12, 12, dtype=torch.float64)
    loss, parameters = loss_of(layer, x), parameters_of(layer)
    loss_value = layer(x).square().sum()
    expected = dict(zip(parameters, torch.autograd.grad(loss_value, layer.parameters()), strict=True))
    found = torch.func.grad(loss)(parameters)
    assert all(relative_error(found[name], expected[name]) < 1e-9 for name in parameters)
    directions = {name: torch.randn_like(value) for name, value in parameters.items()}
    along = sum((directions[name] * expected[name]).sum() for name in parameters)
    assert relative_error(torch.func.jvp(loss, (parameters,), (directions,))[1], along) < 1e-9
    each = torch.func.vmap(lambda one: torch.func.grad(loss_of(layer, one))(parameters))(x)
    assert all(relative_error(each[name].sum(0), expected[name]) < 1e-9 for name in parameters)


def test_dual_numbers():
    x, w = torch.randn(2, 4, 12, 12, dtype=torch.float64), torch.randn(4, 1, 7, 7, dtype=torch.float64)
    direction = torch.randn_like(w)
    with forward_ad.dual_level():
        y = large_depthwise_conv2d(x, forward_ad.make_dual(w, direction), None, 1, 3)
        tangent = forward_ad.unpack_dual(y).tangent
    assert relative_error(tangent, large_depthwise_conv2d(x, direction, None, 1, 3)) < 1e-12
