"""The whole CUDA ops of dynamic and hybrid layers, host side and all, compiled as C++ and registered for the CPU."""

import pytest

from .emulation import needs_compiler, run_op

pytestmark = needs_compiler

COMMON = """
import torch

torch.manual_seed(0)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAST = torch.channels_last

def draw(*shape, dtype=torch.float32, form=torch.contiguous_format):
    return torch.randn(shape).to(dtype).contiguous(memory_format=form)

def spread(tensor):  # neither in order nor in vectors
    wide = tensor.new_zeros(*tensor.shape[:-1], tensor.shape[-1] + 1)
    wide[..., 1:] = tensor
    return wide[..., 1:]

def compare(ours, reference, arguments, dtype):
    found = ours(*arguments)
    exact = reference(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
    same = reference(*arguments)
    if isinstance(found, torch.Tensor):
        found, exact, same = (found,), (exact,), (same,)
    for ours, theirs, alike in zip(found, exact, same, strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        wide = [i for i, n in enumerate(ours.shape) if n > 1 and ours.numel()]
        assert [ours.stride(i) for i in wide] == [alike.stride(i) for i in wide], (reference, ours.shape)
        if ours.numel():
            worst = (ours.double() - theirs).abs().max() / theirs.abs().max().clamp(min=1)
            assert worst <= 8 * torch.finfo(dtype).eps, (reference, dtype, worst, ours.shape)

def refuses(cases):
    for call, told in cases:
        try:
            call()
        except RuntimeError as error:
            assert told in str(error), error
        else:
            raise AssertionError(told)
"""

DYNAMIC = """
from convswap.layers.ops import dynamic_conv2d as op

def check(dtype, batch, kernels, channels, outputs, size, kernel, stride, padding, dilation, groups, last, weight_last):
    forms = [LAST if flag else torch.contiguous_format for flag in (last, weight_last)]
    x = draw(batch, channels, *size, dtype=dtype, form=forms[0])
    w = draw(kernels * outputs, channels // groups, *kernel, dtype=dtype, form=forms[1])
    a, b = draw(batch, kernels, dtype=dtype), draw(batch, outputs, dtype=dtype)
    geometry = stride, padding, dilation, groups
    compare(op.forward, op.dynamic_conv2d_ref, (x, w, b, a, *geometry), dtype)
    y = op.forward(x, w, None, a, *geometry)
    compare(op.input_grad, op.dynamic_conv2d_input_grad_ref, (y, w, a, [channels, *size], *geometry), dtype)
    compare(op.weight_grad, op.dynamic_conv2d_weight_grad_ref, (y, x, w, a, *geometry), dtype)
    if dtype == torch.float32:
        parts = [spread(t) for t in (y, x, w, a)]
        compare(op.weight_grad, op.dynamic_conv2d_weight_grad_ref, (*parts, *geometry), dtype)
        compare(op.forward, op.dynamic_conv2d_ref, (parts[1], parts[2], spread(b), parts[3], *geometry), dtype)

for dtype in DTYPES:
    check(dtype, 2, 3, 4, 4, (5, 6), (3, 2), (2, 1), (1, 2, 0, 1), (1, 2), 4, True, True)
    check(dtype, 1, 2, 6, 18, (4, 3), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 2, False, True)
check(torch.float32, 3, 2, 9, 34, (3, 3), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, True, False)
check(torch.bfloat16, 2, 1, 3, 33, (4, 4), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, True, True)
check(torch.float32, 0, 2, 2, 4, (3, 3), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, False, False)
# No outputs; and nothing is summed where there are no channels.
geometry = (1, 1), (1, 1, 1, 1), (1, 1), 1
x, w, a = draw(2, 2, 3, 3), draw(0, 2, 3, 3), draw(2, 2)
assert op.forward(x, w, None, a, *geometry).shape == (2, 0, 3, 3)
assert torch.equal(op.input_grad(draw(2, 0, 3, 3), w, a, [2, 3, 3], *geometry), torch.zeros_like(x))
to_weight, to_attention = op.weight_grad(draw(2, 0, 3, 3), x, w, a, *geometry)
assert to_weight.shape == (0, 2, 3, 3)
assert torch.equal(to_attention, torch.zeros(2, 2))
x, w, b = draw(2, 0, 3, 3), draw(6, 0, 3, 3), draw(2, 3)
assert torch.equal(op.forward(x, w, b, a, *geometry), b[:, :, None, None].expand(2, 3, 3, 3))
assert op.input_grad(draw(2, 3, 3, 3), w, a, [0, 3, 3], *geometry).shape == (2, 0, 3, 3)
to_weight, to_attention = op.weight_grad(draw(2, 3, 3, 3), x, w, a, *geometry)
assert to_weight.shape == (6, 0, 3, 3)
assert torch.equal(to_attention, torch.zeros(2, 2))

x, w = draw(2, 4, 5, 5), draw(6, 4, 3, 3)

def call(x=x, w=w, b=None, a=a, stride=(1, 1), padding=(1, 1, 1, 1), dilation=(1, 1), groups=1):
    return op.forward(x, w, b, a, stride, padding, dilation, groups)

refuses([
    (lambda: call(stride=(0, 1)), "stride must be at least 1, got 0"),
    (lambda: call(dilation=(4, 1)), "a kernel of 3 pixels with dilation 4 does not fit"),
    (lambda: call(padding=(1, 1, -1, 1)), "padding must not be negative, got -1"),
    (lambda: call(w=w.double()), "input and weight must have one dtype"),
    (lambda: call(a=a.double()), "input and attention must have one dtype"),
    (lambda: call(a=a[:1]), "attention must be (batch 2, kernels), got (1, 2)"),
    (lambda: call(a=a[:, :0]), "attention must be (batch 2, kernels), got (2, 0)"),
    (lambda: call(w=w[:5]), "weight must have a row for each output of 2 kernels, got (5, 4, 3, 3)"),
    (lambda: call(w=w[:, :3]), "weight must have 4 inputs of a group, got (6, 3, 3, 3)"),
    (lambda: call(w=w[0]), "weight must have 4 axes"),
    (lambda: call(groups=3), "groups must divide the 4 channels"),
    (lambda: call(b=draw(3)), "bias must have shape (2, 3), got (3)"),
    (lambda: call(x=x.int(), w=w.int(), a=a.int()), "input must be float32"),
    (lambda: op.input_grad(draw(2, 3, 5, 4), w, a, [4, 5, 5], *geometry), "grad must have shape (2, 3, 5, 5)"),
    (lambda: op.weight_grad(draw(2, 3, 4, 5), x, w, a, *geometry), "grad must have shape (2, 3, 5, 5)"),
    (lambda: op.weight_grad(draw(2, 3, 5, 5).half(), x, w, a, *geometry), "grad and input must have one dtype"),
])
"""

HYBRID = """
from convswap.layers.ops import hybrid_activation as op

LAST_3D = torch.channels_last_3d
for dtype in DTYPES:
    for shape, form in [((5, 3), None), ((2, 3, 4), None), ((2, 3, 4, 5), None), ((2, 3, 4, 5), LAST),
                        ((2, 3, 2, 3, 2), LAST_3D), ((2, 3, 2, 1, 2), None), ((0, 3), None), ((2, 0), None)]:
        z, g = (draw(*shape, dtype=dtype, form=form or torch.contiguous_format) for _ in range(2))
        muls, powers = draw(shape[1], dtype=dtype), torch.rand(shape[1]).to(dtype)
        compare(op.forward, op.hybrid_activation_ref, (z, muls, powers), dtype)
        compare(op.backward, op.hybrid_activation_backward_ref, (g, z, muls, powers), dtype)
        compare(op.backward, op.hybrid_activation_backward_ref, (g.contiguous(), spread(z), muls, powers), dtype)
    # At the clips, at 0 and where nothing is finite.
    z = torch.tensor([[0.0, -0.0, 1e4, torch.inf, -torch.inf, torch.nan, -3.0]], dtype=dtype).expand(9, 7).T
    muls = torch.tensor([1, -2, 1, 3, torch.nan, 0, 1, 2, torch.inf], dtype=dtype)
    powers = torch.tensor([1, -12, 10, torch.nan, 2, -10, 0, -5, 1], dtype=dtype)
    with torch.no_grad():
        found, exact = (f(z, muls, powers) for f in (op.forward, op.hybrid_activation_ref))
    torch.testing.assert_close(found, exact)
    g = torch.full_like(z, 2)
    for ours, theirs in zip(*(f(g, z, muls, powers) for f in (op.backward, op.hybrid_activation_backward_ref))):
        torch.testing.assert_close(ours, theirs)
z, p = draw(2, 3), draw(3)
refuses([
    (lambda: op.forward(p, p, p), "z must be (N, C, *any), got (3)"),
    (lambda: op.forward(z, p[:2], p), "muls must have shape (3), got (2)"),
    (lambda: op.forward(z, p, p[:2]), "powers must have shape (3), got (2)"),
    (lambda: op.forward(z, p.half(), p), "z and muls must have one dtype"),
    (lambda: op.forward(z.int(), p.int(), p.int()), "z must be float32"),
    (lambda: op.backward(z[:1], z, p, p), "grad must have shape (2, 3), got (1, 3)"),
])
"""


@pytest.mark.parametrize(("name", "code"), [("dynamic_conv2d", DYNAMIC), ("hybrid_activation", HYBRID)])
def test_op(tmp_path, name, code):
    run_op(name, COMMON + code, tmp_path)
