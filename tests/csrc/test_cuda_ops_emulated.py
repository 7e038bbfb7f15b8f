"""Whole CUDA ops, host side and all, compiled as C++ and registered for the CPU, against the plain PyTorch forms."""

from .emulation import needs_compiler, run_op

pytestmark = needs_compiler

LARGE_DEPTHWISE = """
import torch
from convswap.layers.ops import large_depthwise_conv2d as op

torch.manual_seed(0)
for size, kernel, stride, padding, m, batch in [
    ((9, 8), (5, 7), [1, 1], [2, 2, 3, 3], 1, 3),
    ((7, 12), (4, 3), [2, 3], [0, 3, 1, 2], 2, 2),
    ((1, 1), (3, 3), [1, 1], [1, 1, 1, 1], 1, 1),
    ((2, 5), (3, 4), [7, 1], [0, 2, 0, 0], 1, 2),
    ((6, 6), (3, 3), [1, 1], [1, 1, 1, 1], 1, 0),
]:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for form in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(batch, 4, *size, dtype=dtype).contiguous(memory_format=form)
            w = torch.randn(4 * m, 1, *kernel[::-1], dtype=dtype).transpose(2, 3)
            b = torch.randn(8 * m, dtype=dtype)[::2]
            calls = [(op.forward, op.large_depthwise_conv2d_ref, (x, w, b, stride, padding))]
            calls += [(op.forward, op.large_depthwise_conv2d_ref, (x[..., ::1], w, None, stride, padding))]
            y = op.large_depthwise_conv2d_ref(x, w, b, stride, padding)
            g = torch.randn_like(y)
            geometry = stride, padding
            ref = op.large_depthwise_conv2d_input_grad_ref
            calls += [(op.input_grad, ref, (g, w, [4, *size], *geometry))]
            ref = op.large_depthwise_conv2d_weight_grad_ref
            calls += [(op.weight_grad, ref, (g, x, list(kernel), *geometry))]
            for ours, reference, arguments in calls:
                found = ours(*arguments)
                exact = reference(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
                assert found.dtype == dtype
                same = reference(*arguments)
                wide = [i for i, n in enumerate(found.shape) if n > 1 and found.numel()]
                assert [found.stride(i) for i in wide] == [same.stride(i) for i in wide], (ours, size, form)
                torch.testing.assert_close(found, exact.to(dtype))

x, w = torch.randn(2, 4, 5, 5), torch.randn(4, 1, 3, 3)
pad = [1, 1, 1, 1]
for call, told in [
    (lambda: op.forward(x, w, None, [0, 1], pad), "stride must be at least 1, got 0"),
    (lambda: op.forward(x, w, None, [1, 1], [1, 1, -1, 1]), "padding must not be negative, got -1"),
    (lambda: op.forward(x, w.double(), None, [1, 1], pad), "input and weight must have one dtype"),
    (lambda: op.forward(x, w[:3], None, [1, 1], pad), "number of kernels, 3, must be a multiple of"),
    (lambda: op.forward(x, torch.randn(4, 1, 8, 3), None, [1, 1], pad), "the kernel has 8 pixels on an axis"),
    (lambda: op.forward(x, w, torch.randn(3), [1, 1], pad), "bias must have 4 elements"),
    (lambda: op.forward(x.int(), w.int(), None, [1, 1], pad), "input must be float32"),
    (lambda: op.input_grad(x, w, [4, 6, 5], [1, 1], pad), r"grad must have shape (2, 4, 6, 5), got (2, 4, 5, 5)"),
    (lambda: op.weight_grad(x, x, [3], [1, 1], pad), "kernel size must be 2 numbers, got 1"),
]:
    try:
        call()
    except RuntimeError as error:
        assert told in str(error), error
    else:
        raise AssertionError(told)
"""


def test_large_depthwise(tmp_path):
    run_op("large_depthwise_conv2d", LARGE_DEPTHWISE, tmp_path)
