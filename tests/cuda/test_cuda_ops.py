"""All ops on a GPU, values and gradients, against the plain PyTorch forms in fp64 on the CPU."""

import pytest
import torch

from convswap.layers.ops._load import kernels_mode, load_kernels, why_not_loaded

from .cases import BATCHED, HALF, MIXED, REFERENCES, arguments, op, reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

DEVICE = "cuda"
HALVES = [torch.bfloat16, torch.float16]
DTYPES = {name: [torch.float32, torch.float64] for name in REFERENCES}
for one in HALF:
    DTYPES[one] += HALVES


@pytest.fixture(autouse=True)
def kernels():
    """The GPU's own: the plain forms are as exact as cuDNN is."""
    if kernels_mode() == "off":
        pytest.skip("CONVSWAP_KERNELS=off")
    assert load_kernels(DEVICE), why_not_loaded(DEVICE)


def moved(args, device, dtype=None):
    found = []
    for a in args:
        if isinstance(a, torch.Tensor):
            a = a.detach().to(device, dtype or a.dtype).requires_grad_(a.requires_grad)
        found.append(a)
    return found, [a for a in found if isinstance(a, torch.Tensor)]


def values_and_gradients(function, args, tensors, g=None):
    y = function(*args)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y) if g is None else g.to(y)
    return [y, *torch.autograd.grad(y, tensors, g)], g


def check(name, args, dtype, channels_last=False):
    ours, our_tensors = moved(args, DEVICE)
    if channels_last:
        ours[0] = our_tensors[0] = ours[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    found, g = values_and_gradients(op(name), ours, our_tensors)
    theirs, their_tensors = moved(args, "cpu", torch.float64)
    exact, _ = values_and_gradients(reference(name), theirs, their_tensors, g.cpu())
    if channels_last:
        assert found[0].is_contiguous(memory_format=torch.channels_last)
    for y, z in zip(found, exact, strict=True):
        # Rounded once to the tensor's dtype; summed before in fp32 or fp64.
        summed = 1e-12 if dtype == torch.float64 else 1e-5
        if name in MIXED and dtype in HALVES:
            summed = torch.finfo(dtype).eps
        bound = torch.finfo(y.dtype).eps * z.abs() + summed * z.abs().max()
        assert ((y.cpu().double() - z).abs() <= bound).all(), (name, dtype, [getattr(a, "shape", a) for a in args])


@pytest.mark.parametrize(("name", "dtype"), [(n, d) for n in REFERENCES for d in DTYPES[n]])
def test_values_and_gradients(name, dtype):
    for args in arguments(name, dtype):
        check(name, args, dtype)


@pytest.mark.parametrize("name", sorted(HALF))
def test_channels_last(name):
    check(name, arguments(name, torch.float32)[0], torch.float32, channels_last=True)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_same_twice(name):
    args, tensors = moved(arguments(name, torch.float32)[0], DEVICE)
    first, g = values_and_gradients(op(name), args, tensors)
    again, _ = values_and_gradients(op(name), args, tensors, g)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", REFERENCES)
def test_in_a_cuda_graph(name):
    args, _ = moved(arguments(name, torch.float32)[0], DEVICE)
    with torch.no_grad():
        expected = op(name)(*args)
        args[0].neg_()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = op(name)(*args)
        args[0].neg_()
        graph.replay()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("name", REFERENCES)
def test_no_output(name):
    args, tensors = moved(arguments(name, torch.float32)[0], DEVICE)
    none = args[0].detach()[:0].requires_grad_()
    if name in BATCHED:
        args = [a.detach()[:0].requires_grad_() if i in BATCHED[name] else a for i, a in enumerate(args)]
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
    elif name in HALF:
        args[0] = tensors[0] = none
    else:
        for i, a in enumerate(args):
            if isinstance(a, torch.Tensor):
                args[i] = (a[:0] if i == 0 else a[:, :0]).detach().requires_grad_()
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
    found, _ = values_and_gradients(op(name), args, tensors)
    assert found[0].numel() == 0
    assert all((a == 0).all() for a in found[1:])


def test_more_elements_than_32_bits_count():
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GB of free GPU memory")
    forward, geometry = op("large_depthwise_conv2d"), ([1, 1], [3, 3, 3, 3])
    x = torch.randn(1, 1, 256, 256, device=DEVICE, dtype=torch.bfloat16).repeat(33, 1025, 1, 1)
    x[-1, -1].neg_()
    w = torch.randn(1, 1, 7, 7, device=DEVICE, dtype=torch.bfloat16).repeat(1025, 1, 1, 1)
    y = forward(x, w, None, *geometry)
    last = forward(x[-1:], w, None, *geometry)
    assert x.numel() > 2**31
    assert torch.equal(y[-1:], last)
    assert torch.equal(y[-1, -1], -y[0, 0])
    backward = torch.ops.convswap.large_depthwise_conv2d_input_grad.default
    assert torch.equal(backward(y, w, [1025, 256, 256], *geometry)[-1:], backward(last, w, [1025, 256, 256], *geometry))


def test_more_generated_numbers_than_32_bits_count():
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GB of free GPU memory")
    geometry = [3, 3], [1, 1], [1, 1, 1, 1], [1, 1]
    x = torch.randn(1, 240, 576, 576, device=DEVICE, dtype=torch.bfloat16).repeat(3, 1, 1, 1)
    w = torch.randn(1, 240, 1, 576, 576, device=DEVICE, dtype=torch.bfloat16).repeat(3, 1, 9, 1, 1)
    assert w.numel() > 2**31
    y = op("guided_channelwise_conv2d")(x, w, None, *geometry)
    assert torch.equal(y[-1:], op("guided_channelwise_conv2d")(x[-1:], w[-1:], None, *geometry))
    backward = torch.ops.convswap.guided_channelwise_conv2d_input_grad.default
    alone = backward(y[-1:], w[-1:], [240, 576, 576], *geometry)
    assert torch.equal(backward(y, w, [240, 576, 576], *geometry)[-1:], alone)
    del w
    backward = torch.ops.convswap.guided_channelwise_conv2d_weight_grad.default
    assert torch.equal(backward(y, x, *geometry)[-1:], backward(y[-1:], x[-1:], *geometry))


def test_more_mixed_numbers_than_32_bits_count():
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GB of free GPU memory")
    forward, geometry = op("dynamic_conv2d"), ([1, 1], [1, 1, 1, 1], [1, 1], 1025)
    x = torch.randn(1, 1, 256, 256, device=DEVICE, dtype=torch.bfloat16).repeat(33, 1025, 1, 1)
    w = torch.randn(2 * 1025, 1, 3, 3, device=DEVICE, dtype=torch.bfloat16)
    a = torch.randn(33, 2, device=DEVICE, dtype=torch.bfloat16)
    y = forward(x, w, None, a, *geometry)
    assert x.numel() > 2**31
    assert torch.equal(y[-1:], forward(x[-1:], w, None, a[-1:], *geometry))
    backward = torch.ops.convswap.dynamic_conv2d_input_grad.default
    alone = backward(y[-1:], w, a[-1:], [1025, 256, 256], *geometry)
    assert torch.equal(backward(y, w, a, [1025, 256, 256], *geometry)[-1:], alone)
    backward = torch.ops.convswap.dynamic_conv2d_weight_grad.default
    alone = backward(y[-1:], x[-1:], w, a[-1:], *geometry)[1]
    assert torch.equal(backward(y, x, w, a, *geometry)[1][-1:], alone)


def test_more_padded_numbers_than_32_bits_count():
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GB of free GPU memory")
    geometry = [1, 1, 1, 1], [2, 2, 2, 2]
    x = torch.randn(1, 1, 256, 256, device=DEVICE, dtype=torch.bfloat16).repeat(33, 1025, 1, 1)
    x[-1, -1].neg_()
    y = op("extrapolate_pad")(x, *geometry)
    assert x.numel() > 2**31
    assert torch.equal(y[-1:], op("extrapolate_pad")(x[-1:], *geometry))
    assert torch.equal(y[-1, -1], -y[0, 0])
    backward = op("extrapolate_pad_backward")
    assert torch.equal(backward(y, *geometry)[-1:], backward(y[-1:], *geometry))
