"""Clamping during training, and positions that several layers share."""

import copy
import io

import pytest
import torch
from torch import nn

from convswap.layers import (
    Dcls1d,
    Dcls2_1d,
    Dcls2d,
    Dcls2dK1d,
    Dcls3_1d,
    Dcls3d,
    DclsDilated2d,
    clamp_after_step,
)
from convswap.layers.dcls_grid import position_axes
from convswap.layers.dcls_kernel import VERSIONS


def cells(layer):
    """Grid positions, counted from the first cell, with the size of the grid along each."""
    if isinstance(layer, DclsDilated2d):
        scale = layer.gain * layer.P[0].numel() ** 0.5
        for d, (taps, step) in enumerate(zip(layer.kernel_size, layer.dilation, strict=True)):
            rest = torch.arange(taps) * step
            yield layer.P[d] * scale + (rest[:, None] if d == 0 else rest), step * (taps - 1) + 1
        return
    for d, axis in enumerate(position_axes(layer.version, layer.spaced)):
        size = layer.dilated_kernel_size[axis]
        yield layer.P[d] + size // 2, size


def on_the_grid(layer):
    return all(bool(((cell >= -1e-4) & (cell <= size - 1 + 1e-4)).all()) for cell, size in cells(layer))


LAYERS = [
    *(
        (lambda c=c, d=d, v=v: c(4, 4, 3, dilated_kernel_size=(4, 5, 2)[:d], version=v))
        for d, c in enumerate((Dcls1d, Dcls2d, Dcls3d), 1)
        for v in VERSIONS
    ),
    lambda: Dcls2_1d(4, 4, 3, dense_kernel_size=2, dilated_kernel_size=4),
    lambda: Dcls3_1d(4, 4, 3, dense_kernel_size=2, dilated_kernel_size=4, version="gauss"),
    lambda: Dcls2dK1d(4, 4, 3, dilated_kernel_size=6, flat_dim=1),
    lambda: DclsDilated2d(4, 4, (3, 2), dilation=(2, 3)),
    lambda: DclsDilated2d(4, 4, 3, dilation=4, gain=0.3, shared_positions=True),
]


@pytest.mark.parametrize("make", LAYERS)
def test_positions_stay_on_the_grid_after_each_step(make):
    torch.manual_seed(0)
    layer = make()
    model = nn.Sequential(nn.Identity(), layer)
    x = torch.randn(2, 4, *(10,) * layer.dims)
    assert on_the_grid(layer)
    optimiser = torch.optim.SGD([{"params": [layer.P], "lr": 1e3}, {"params": [layer.weight], "lr": 1e-3}])
    handle = clamp_after_step(optimiser, model)

    def step():
        optimiser.zero_grad()
        layer(x).square().sum().backward()
        optimiser.step()

    step()
    assert on_the_grid(layer)
    handle.remove()
    step()
    assert not on_the_grid(layer)
    layer.clamp_positions()
    assert on_the_grid(layer)
    assert layer.P.requires_grad


def test_model_without_positions_is_refused():
    model = nn.Sequential(nn.Conv2d(2, 2, 3))
    with pytest.raises(ValueError, match="no DCLS layer in this Sequential"):
        clamp_after_step(torch.optim.SGD(model.parameters(), lr=0.1), model)


def model_of_shared_positions():
    torch.manual_seed(0)
    model = nn.Sequential(*(Dcls2d(4, 4, 5, padding=3, version="gauss") for _ in range(3)))
    for layer in model[1:]:
        layer.P, layer.SIG = model[0].P, model[0].SIG
    return model


def one_position_tensor(model):
    return len({id(layer.P) for layer in model}) == len({id(layer.SIG) for layer in model}) == 1


@pytest.mark.parametrize(
    "change",
    [
        copy.deepcopy,
        lambda model: model.double().float(),
        lambda model: model.to(memory_format=torch.channels_last),
        lambda model: model.eval().requires_grad_(False).train(),
    ],
)
def test_shared_positions_stay_shared(change):
    model = model_of_shared_positions()
    x = torch.randn(1, 4, 6, 6)
    expected = model(x)
    other = change(model)
    assert one_position_tensor(other)
    assert torch.equal(other(x), expected)


def test_shared_positions_in_a_state_dict():
    model, other = model_of_shared_positions(), model_of_shared_positions()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(1, 4, 6, 6)
    assert one_position_tensor(other)
    assert torch.equal(other(x), model(x))


def test_shared_positions_learn_from_all_layers():
    model = model_of_shared_positions()
    alone = copy.deepcopy(model)
    for layer in alone:  # each its own copy
        layer.P, layer.SIG = (nn.Parameter(value.detach().clone()) for value in (layer.P, layer.SIG))
    x = torch.randn(1, 4, 6, 6)
    for each in (model, alone):
        each(x).square().sum().backward()
    assert len(list(model.parameters())) == len(list(alone.parameters())) - 4
    torch.testing.assert_close(model[0].P.grad, sum(layer.P.grad for layer in alone))
    torch.testing.assert_close(model[0].SIG.grad, sum(layer.SIG.grad for layer in alone))
    with torch.no_grad():
        model[0].P.mul_(100)
    clamp_after_step(optimiser := torch.optim.SGD(model.parameters(), lr=0.0), model)
    optimiser.step()
    assert all(on_the_grid(layer) for layer in model)
