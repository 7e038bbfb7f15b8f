import copy
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from convswap.layers import HybridDense
from convswap.layers.functional import hybrid_dense

from .helpers import relative_error


def varied(bias=True, dtype=torch.float64):
    torch.manual_seed(0)
    layer = HybridDense(5, 7, bias, dtype=dtype)
    with torch.no_grad():
        layer.powers.uniform_(-1.5, 2.5)
        layer.muls.normal_()
    return layer


def written_out(layer, x):
    z = x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
    h = layer.muls * (z.relu() + 1e-8) ** layer.powers.clip(-10, 10)
    return torch.copysign(h.nan_to_num(), z)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 4, 5), (0, 5), (1, 5)])
def test_is_the_formula_for_any_leading_shape(shape, bias):
    layer, x = varied(bias), torch.randn(shape, dtype=torch.float64)
    y = layer(x)
    assert y.shape == (*shape[:-1], 7)
    assert relative_error(y, written_out(layer, x)) < 1e-12
    assert torch.equal(y, hybrid_dense(x, layer.weight, layer.bias, layer.muls, layer.powers))


def test_starts_as_a_linear_layer_and_its_relu():
    torch.manual_seed(0)
    layer = HybridDense(5, 7)
    torch.manual_seed(0)
    linear = nn.Linear(5, 7)
    x = torch.randn(4, 5)
    assert list(layer.state_dict()) == ["weight", "bias", "powers", "muls"]
    assert torch.equal(layer.weight, linear.weight)
    assert (layer(x) - linear(x).relu()).abs().max() < 1e-7


def test_derivatives():
    layer = varied()
    x = torch.rand(3, 5, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        layer.weight.abs_()  # away from the kink
        layer.weight[3:].neg_()
        layer.bias.copy_(layer.weight[:, 0].sign() * 0.3)
        layer.powers[3:].abs_()
    parameters = [value.detach().requires_grad_() for value in (layer.weight, layer.bias, layer.muls, layer.powers)]
    assert gradcheck(hybrid_dense, (x, *parameters), fast_mode=True)
    assert gradgradcheck(hybrid_dense, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("power", [-12.0, -10.0, -4.5, 0.0, 1.27, 10.0])
def test_gradients_are_finite_on_zeros_and_huge_values(dtype, power):
    """In the products of the linear layer's own backward too, where infinities of both signs meet."""
    layer = varied(dtype=dtype)
    with torch.no_grad():
        layer.powers.fill_(power)
        layer.bias.zero_()
    most = torch.finfo(dtype).max
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    for scale in (0.0, 1e-9, 1e-7, 1.0, 1e4, 0.9 * most):
        for tiny in (False, True):  # what is huge in x, and z tiny all the same
            with torch.no_grad():
                layer.weight.normal_()
                if tiny:
                    layer.weight.copy_(torch.tensor([1.0, 1.0, 1.0, 1.0, 1e-7])).mul_(1e-7)
            x = (scale * (signs if tiny else torch.ones(5))).to(dtype).repeat(3, 1).requires_grad_()
            y = layer(x)
            assert y.isfinite().all()
            y.backward(torch.randn(3, 7).sign().to(dtype) * most ** (0.9 if tiny else 0))
            assert all(value.grad.isfinite().all() for value in (x, *layer.parameters()))
            layer.zero_grad()


def test_gradients_that_overflow_are_the_largest_number():
    layer, most = HybridDense(2, 3), torch.finfo(torch.float32).max
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.zero_()
    x = torch.tensor([[1.0, 3.0], [1.0, 0.5]], requires_grad=True)
    grad = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, -1.0]]) * most
    layer(x).backward(grad)
    assert x.grad.tolist() == [[most, most], [0.0, 0.0]]  # in the second row infinities meet, or nothing is left
    assert layer.weight.grad[:2].tolist() == [[most, most]] * 2
    assert layer.bias.grad.tolist() == [most, most, 0.0]


def test_transforms_and_forward_mode():
    layer, x = varied(), torch.rand(4, 5, dtype=torch.float64)
    loss = lambda value: layer(value).square().sum()
    wanted = torch.func.grad(loss)(x)
    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    assert torch.allclose(wanted, leaf.grad)
    assert torch.allclose(torch.vmap(torch.func.grad(loss))(x), wanted)
    assert torch.allclose(torch.func.grad(lambda value: torch.vmap(layer)(value).square().sum())(x), wanted)
    _, along = torch.func.jvp(loss, (x,), (torch.ones_like(x),))
    assert torch.allclose(along, wanted.sum())
    both = [torch.func.hessian(loss)(x[0]), torch.autograd.functional.hessian(loss, x[0])]
    assert torch.allclose(*both)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 4, 3)])
def test_no_outputs(shape):
    layer, x = HybridDense(3, 0), torch.randn(shape, requires_grad=True)
    y = layer(x)
    assert y.shape == (*shape[:-1], 0)
    y.sum().backward()
    assert not x.grad.any()


def test_copies_casts_compiles_and_exports():
    layer, x = varied(), torch.randn(4, 5, dtype=torch.float64)
    y = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), y)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), y)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=1, max=9)},))
    assert relative_error(program.module()(x[:3]), y[:3]) < 1e-12
    assert torch.equal(torch.fx.symbolic_trace(nn.Sequential(layer))(x), y)
    assert HybridDense(5, 7, device="meta")(x.float().to("meta")).shape == y.shape
    with torch.autocast("cpu", torch.bfloat16):
        low = layer.float()(x.float())
    assert low.dtype == torch.bfloat16
    assert all(value.grad is None for value in layer.parameters())
    low.float().clamp(-9, 9).sum().backward()
    assert all(value.grad.isfinite().all() and value.grad.dtype == torch.float32 for value in layer.parameters())
