"""Whole CUDA ops of DCLS, host side and all, compiled as C++ and registered for the CPU, against the plain forms."""

import pytest

from .emulation import needs_compiler, run_op

pytestmark = needs_compiler

COMMON = """
import torch

def refuses(cases):
    for call, told in cases:
        try:
            call()
        except RuntimeError as error:
            assert told in str(error), error
        else:
            raise AssertionError(told)

def exact(arguments):
    return [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]

torch.manual_seed(0)
"""

SCATTER = """
from convswap.layers.dcls_scatter import scatter_ref
from convswap.layers.ops import dcls_scatter as op

for size, axes in [([6], [0]), ([5, 7], [1, 0]), ([3, 4, 5], [0, 2, 1])]:
    for dtype in (torch.float32, torch.float64):
        for normalise, right_slope in [(True, False), (False, True)]:
            w = torch.randn(4, 3, 2, dtype=dtype).transpose(0, 2)
            P = 2 * torch.randn(2 * len(size), 2, 3, 4, dtype=dtype)[::2]
            P = torch.where(torch.rand(P.shape) < 0.3, P.round(), P)
            options = axes, normalise, right_slope
            kernel = op.forward(w, P, size, *options)
            assert kernel.dtype == dtype
            assert kernel.is_contiguous()
            torch.testing.assert_close(kernel, scatter_ref(*exact((w, P)), size, *options).to(dtype))
            g = torch.randn(2, 3, *size, dtype=dtype)
            ours = op.backward(g, w, P, *options)
            theirs = op.dcls_scatter_backward_ref(*exact((g, w, P)), *options)
            for a, b in zip(ours, theirs):
                torch.testing.assert_close(a, b.to(dtype))

assert op.forward(torch.randn(0, 3, 2), torch.randn(2, 0, 3, 2), [5, 5], [1, 0], True, False).shape == (0, 3, 5, 5)
w, P = torch.randn(2, 3, 4), torch.randn(2, 2, 3, 4)
refuses([
    (lambda: op.forward(w, P, [5, 0], [1, 0], True, False), "size must be positive, got 0"),
    (lambda: op.forward(w, P, [5, 5], [1, 1], True, False), "axes must name every axis of the kernel once"),
    (lambda: op.forward(w, P, [5, 5], [1, 2], True, False), "axes must be from 0 to 1, got 2"),
    (lambda: op.forward(w, P, [5], [0], True, False), "P must have shape (1, 2, 3, 4), got (2, 2, 3, 4)"),
    (lambda: op.forward(w, P.double(), [5, 5], [1, 0], True, False), "P and weight must have one dtype"),
    (lambda: op.forward(w.half(), P.half(), [5, 5], [1, 0], True, False), "weight must be float32 or float64"),
    (lambda: op.forward(w, P, [1 << 20, 1 << 20], [1, 0], True, False), "less than 2^30 cells"),
    (lambda: op.forward(w, P, [1] * 4, [0, 1, 2, 3], True, False), "size must be 1, 2 or 3 numbers, got 4"),
    (lambda: op.backward(torch.randn(2, 4, 5, 5), w, P, [1, 0], True, False), "grad must have shape (2, 3, *size)"),
])
"""

SEPARABLE = """
from convswap.layers.dcls_separable import separable_ref
from convswap.layers.ops import dcls_separable as op

for size, axes in [([6], [0]), ([5, 7], [1, 0]), ([3, 4, 5], [0, 2, 1])]:
    for dtype in (torch.float32, torch.float64):
        for options in [(axes, True, 0.27), (axes, False, 1.0)]:
            w = torch.randn(4, 3, 2, dtype=dtype).transpose(0, 2)
            P, SIG = 2 * torch.randn(2, 2 * len(size), 2, 3, 4, dtype=dtype)[:, ::2]
            P = torch.where(torch.rand(P.shape) < 0.3, P.round(), P)
            SIG = torch.where(torch.rand(P.shape) < 0.3, 0, SIG)
            kernel = op.forward(w, P, SIG, size, *options)
            given = [v.double().requires_grad_() for v in (w, P, SIG)]
            expected = separable_ref(*given, size, *options)
            assert kernel.dtype == dtype
            assert kernel.is_contiguous()
            torch.testing.assert_close(kernel, expected.to(dtype))
            g = torch.randn(2, 3, *size, dtype=dtype)
            rounding = 1e-5 if dtype == torch.float32 else 1e-12
            for a, b in zip(op.backward(g, w, P, SIG, *options), torch.autograd.grad(expected, given, g.double())):
                torch.testing.assert_close(a, b.to(dtype), rtol=rounding, atol=rounding * b.abs().max().item())

w, P = torch.randn(2, 3, 4), torch.randn(2, 2, 3, 4)
refuses([
    (lambda: op.forward(w, P, P[:1], [5, 5], [1, 0], True, 0.27), "SIG must have shape (2, 2, 3, 4), got (1, 2, 3, 4)"),
    (lambda: op.forward(w, P, P.double(), [5, 5], [1, 0], True, 0.27), "SIG and weight must have one dtype"),
])
"""

SPARSE = """
from convswap.layers.ops import dcls_sparse_conv2d as op

for image, size, stride, padding, m, batch in [
    ((9, 8), [5, 7], [1, 1], [2, 2, 3, 3], 1, 3),
    ((7, 12), [4, 3], [2, 3], [0, 3, 1, 2], 2, 2),
    ((1, 1), [3, 3], [1, 1], [1, 1, 1, 1], 1, 1),
    ((2, 5), [3, 4], [7, 1], [0, 2, 0, 0], 1, 2),
    ((6, 6), [3, 3], [1, 1], [1, 1, 1, 1], 1, 0),
]:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for form in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(batch, 4, *image).to(dtype).contiguous(memory_format=form)
            sums = torch.float64 if dtype == torch.float64 else torch.float32
            w = torch.randn(5, 1, 4 * m, dtype=sums).transpose(0, 2)
            P = torch.randn(4, 4 * m, 1, 5, dtype=sums)[::2]
            P = torch.where(torch.rand(P.shape) < 0.3, P.round(), P)
            geometry = size, [1, 0], True, False, stride, padding
            y = op.dcls_sparse_depthwise_conv2d_ref(x, w, P, *geometry)
            g = torch.randn(y.shape).to(dtype).contiguous(memory_format=form)
            for name, arguments in [
                ("", (x, w, P, *geometry)),
                ("_input_grad", (g, w, P, [4, *image], *geometry)),
                ("_kernel_grad", (g, x, w, P, *geometry)),
            ]:
                ours = {"": op.forward, "_input_grad": op.input_grad, "_kernel_grad": op.kernel_grad}[name](*arguments)
                reference = getattr(op, f"dcls_sparse_depthwise_conv2d{name}_ref")
                # In the same precision: an element with little on the grid is scaled up, its rounding with it.
                theirs = reference(*arguments)
                if name == "_kernel_grad":
                    for a, b in zip(ours, theirs):
                        assert a.dtype == sums
                        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item() if batch else 0)
                    continue
                assert ours.dtype == dtype
                wide = [i for i, n in enumerate(ours.shape) if n > 1 and ours.numel()]
                assert [ours.stride(i) for i in wide] == [theirs.stride(i) for i in wide], (name, image, form)
                torch.testing.assert_close(ours, theirs)

x, w, P = torch.randn(2, 4, 5, 5), torch.randn(4, 1, 3), torch.randn(2, 4, 1, 3)
whole = op.forward(x, w, P, [3, 3], [1, 0], True, False, [1, 1], [1] * 4)
spread = torch.randn(2, 8, 5, 10)[:, ::2, :, ::2].copy_(x)
assert torch.equal(op.forward(spread, w, P, [3, 3], [1, 0], True, False, [1, 1], [1] * 4), whole)

def call(x=x, w=w, P=P, size=(3, 3), axes=(1, 0), stride=(1, 1), padding=(1, 1, 1, 1)):
    return op.forward(x, w, P, size, axes, True, False, stride, padding)

refuses([
    (lambda: call(stride=(0, 1)), "stride must be at least 1, got 0"),
    (lambda: call(padding=(1, 1, -1, 1)), "padding must not be negative, got -1"),
    (lambda: call(x=x.double()), "weight and P must be float64"),
    (lambda: call(w=w.double(), P=P.double()), "weight and P must be float32"),
    (lambda: call(w=w[:3], P=P[:, :3]), "weight has 3 outputs, which must be a multiple of the 4 channels"),
    (lambda: call(size=(8, 3)), "the kernel has 8 pixels on an axis where the padded image has 7"),
    (lambda: call(x=x.int()), "input must be float32"),
    (lambda: call(x=x[0]), "input must have 4 axes (batch, channels, height, width), got (4, 5, 5)"),
    (lambda: call(size=(3,), axes=(0,), P=P[:1]), "size must be height and width, got 1"),
    (lambda: op.input_grad(x, w, P, [4, 6, 5], [3, 3], [1, 0], True, False, [1, 1], [1] * 4),
     "grad must have shape (2, 4, 6, 5), got (2, 4, 5, 5)"),
    (lambda: op.kernel_grad(x.half(), x, w, P, [3, 3], [1, 0], True, False, [1, 1], [1] * 4),
     "grad and input must have one dtype"),
])
"""


@pytest.mark.parametrize(
    ("name", "code"), [("dcls_scatter", SCATTER), ("dcls_separable", SEPARABLE), ("dcls_sparse_conv2d", SPARSE)]
)
def test_op(tmp_path, name, code):
    run_op(name, COMMON + code, tmp_path)
