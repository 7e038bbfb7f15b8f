"""Derivatives in forward mode and the transforms of ``torch.func`` inside what ``torch.compile`` compiles."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap

from convswap.layers import Dcls2d
from convswap.layers.functional import guided_channelwise_conv2d, guided_local_conv2d, large_depthwise_conv2d
from convswap.layers.ops._load import load_kernels

from .helpers import relative_error


def draw(*size):
    return torch.randn(*size, dtype=torch.float64)


def guided_channelwise():
    return lambda x, w: guided_channelwise_conv2d(x, w, None, 3, 2), draw(2, 4, 9, 8), draw(2, 4, 9, 5, 4)


def guided_local():
    return lambda x, w: guided_local_conv2d(x, w, None, 3, 2), draw(2, 2, 9, 8), draw(2, 2, 9, 3, 5, 4)


def large_depthwise():
    return lambda x, w: large_depthwise_conv2d(x, w, None, 1, 3), draw(2, 4, 9, 8), draw(4, 1, 7, 7)


def dcls(**options):
    layer = Dcls2d(4, 4, 5, padding=3, dilated_kernel_size=7, groups=4, bias=False, dtype=torch.float64, **options)
    fixed = {name: value.detach() for name, value in layer.named_parameters()}
    return lambda x, w: functional_call(layer, {**fixed, "weight": w}, (x,)), draw(2, 4, 9, 8), fixed["weight"]


CASES = {
    "guided channelwise": guided_channelwise,
    "guided local": guided_local,
    "large depthwise": large_depthwise,
    "dcls": dcls,
    "dcls gauss": lambda: dcls(version="gauss"),
}


@pytest.fixture(autouse=True)
def _kernels():
    load_kernels("cpu")
    torch._dynamo.reset()


def compiled(function, backend):
    return torch.compile(function, backend=backend, fullgraph=True)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("case", CASES)
def test_forward_mode(case, backend):
    """Each is linear in either argument: along both at once their own values are found twice."""
    convolve, x, w = CASES[case]()
    tangent = compiled(lambda x, w: jvp(convolve, (x, w), (x, w))[1], backend)(x, w)
    wanted = 2 * convolve(x, w)
    assert wanted.abs().max() > 0.1
    assert relative_error(tangent, wanted) < 1e-9


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("case", ["guided channelwise", "large depthwise", "dcls"])
def test_gradients_and_maps(case, backend):
    convolve, x, w = CASES[case]()

    def gradient(x, w):
        return grad(lambda w: convolve(x, w).square().sum())(w)

    learned = w.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(convolve(x, learned).square().sum(), learned)
    assert relative_error(compiled(gradient, backend)(x, w), wanted) < 1e-9
    if case == "guided channelwise":
        each = compiled(lambda x, w: vmap(gradient)(x, w), backend)(x, w)
    else:
        each = compiled(lambda x, w: vmap(gradient, (0, None))(x, w), backend)(x, w).sum(0)
    assert relative_error(each, wanted) < 1e-9


def test_dual_numbers():
    convolve, x, w = guided_channelwise()

    def tangent(x, w):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(convolve(x, forward_ad.make_dual(w, w))).tangent

    assert relative_error(compiled(tangent, "aot_eager")(x, w), convolve(x, w)) < 1e-9


@pytest.mark.parametrize("case", ["guided channelwise", "large depthwise"])
def test_no_transform_and_the_kernels_are_used(case):
    if not load_kernels("cpu"):
        pytest.skip("kernels are switched off")
    convolve, x, w = CASES[case]()
    called = []

    def look(graph, _):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    compiled(convolve, look)(x, w)
    assert any(name.startswith("convswap.") for name in called)
