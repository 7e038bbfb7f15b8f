"""Whole CUDA ops with generated kernels, host side and all, compiled as C++ and registered for the CPU."""

import pytest

from .emulation import needs_compiler, run_op

pytestmark = needs_compiler

COMMON = """
import torch

torch.manual_seed(0)
CASES = [
    ((9, 8), [3, 5], [1, 1], [1, 1, 2, 2], [1, 1], 2, 3),
    ((8, 8), [3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1, 2),
    ((7, 7), [3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1, 2),
    ((7, 12), [4, 3], [2, 3], [0, 3, 1, 2], [1, 2], 2, 2),
    ((1, 1), [3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1, 1),
    ((2, 5), [3, 4], [7, 1], [0, 2, 0, 0], [1, 1], 1, 2),
    ((6, 5), [1, 1], [2, 2], [0, 0, 0, 0], [9, 9], 3, 2),
    ((6, 6), [3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1, 0),
]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

def out_size(size, kernel, stride, padding, dilation):
    return [
        (size[i] + padding[2 * i] + padding[2 * i + 1] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1
        for i in range(2)
    ]

def spread(shape, dtype):  # in memory that no vector is aligned in, and not in order
    return torch.randn(*shape[:-1], shape[-1] + 1, dtype=torch.float64).to(dtype)[..., 1:]

def shifted(tensor):  # in order, where no vector is aligned
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)

def compare(ours, reference, arguments, dtype):
    found = ours(*arguments)
    exact = reference(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
    same = reference(*arguments)
    assert found.dtype == dtype
    wide = [i for i, n in enumerate(found.shape) if n > 1 and found.numel()]
    assert [found.stride(i) for i in wide] == [same.stride(i) for i in wide], (ours, found.shape)
    torch.testing.assert_close(found, exact.to(dtype))
    return found

def refuses(cases):
    for call, told in cases:
        try:
            call()
        except RuntimeError as error:
            assert told in str(error), error
        else:
            raise AssertionError(told)

def check(op, references, weight_shape, channels, outputs, last=()):
    ref, input_ref, weight_ref = references
    for size, kernel, stride, padding, dilation, multiple, batch in CASES:
        out = out_size(size, kernel, stride, padding, dilation)
        shape = weight_shape(batch, channels, outputs * multiple, kernel[0] * kernel[1], out)
        geometry = kernel, stride, padding, dilation, *last
        for dtype in DTYPES:
            for form in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(batch, channels, *size).to(dtype).contiguous(memory_format=form)
                g = torch.randn(batch, outputs * multiple, *out).to(dtype).contiguous(memory_format=form)
                b = spread((batch, outputs * multiple), dtype)
                for w in (torch.randn(shape).to(dtype), spread(shape, dtype)):
                    compare(op.forward, ref, (x, w, b, *geometry), dtype)
                compare(op.forward, ref, (x, shifted(w), None, *geometry), dtype)
                compare(op.input_grad, input_ref, (g, w, [channels, *size], *geometry), dtype)
                compare(op.weight_grad, weight_ref, (g, x, *geometry), dtype)
                compare(op.weight_grad, weight_ref, (shifted(g.contiguous()), x[..., ::1], *geometry), dtype)
"""

CHANNELWISE = """
from convswap.layers.ops import guided_channelwise_conv2d as op

references = (
    op.guided_channelwise_conv2d_ref,
    op.guided_channelwise_conv2d_input_grad_ref,
    op.guided_channelwise_conv2d_weight_grad_ref,
)
check(op, references, lambda batch, channels, outputs, taps, out: (batch, outputs, taps, *out), 4, 4)

x, w, b = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 9, 5, 5), torch.randn(2, 4)
assert op.weight_grad(x[:, :0], x[:, :0], [3, 3], [1, 1], [1] * 4, [1, 1]).shape == (2, 0, 9, 5, 5)

def call(x=x, w=w, b=None, kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1), dilation=(1, 1)):
    return op.forward(x, w, b, kernel, stride, padding, dilation)

refuses([
    (lambda: call(stride=(0, 1)), "stride must be at least 1, got 0"),
    (lambda: call(stride=(1,)), "stride must be 2 numbers, got 1"),
    (lambda: call(dilation=(1, 0)), "dilation must be at least 1, got 0"),
    (lambda: call(dilation=(4, 1)), "a kernel of 3 pixels with dilation 4 does not fit on an axis where the padded"),
    (lambda: call(dilation=(2**62, 1)), "with dilation 4611686018427387904 does not fit"),
    (lambda: call(kernel=(8, 3)), "a kernel of 8 pixels with dilation 1 does not fit"),
    (lambda: call(kernel=(3, 0)), "the kernel must have pixels, got size 0"),
    (lambda: call(padding=(1, 1, -1, 1)), "padding must not be negative, got -1"),
    (lambda: call(padding=(1 << 40, 1, 1, 1)), "less than 2^30 pixels on an axis"),
    (lambda: call(w=w.double()), "input and weight must have one dtype"),
    (lambda: call(w=w[:, :3]), "the number of outputs, 3, must be a multiple of the number of channels, 4"),
    (lambda: call(w=w[:, :, :8]), "weight must have shape (2, 4, 9, 5, 5), got (2, 4, 8, 5, 5)"),
    (lambda: call(w=w[:1]), "weight must have shape (2, 4, 9, 5, 5), got (1, 4, 9, 5, 5)"),
    (lambda: call(w=w[0]), "weight must have 5 axes"),
    (lambda: call(w=w[..., :4]), "weight must have shape (2, 4, 9, 5, 5), got (2, 4, 9, 5, 4)"),
    (lambda: call(b=b[0]), "bias must have shape (2, 4), got (4)"),
    (lambda: call(b=b.half()), "input and bias must have one dtype"),
    (lambda: call(x=x.int(), w=w.int()), "input must be float32"),
    (lambda: call(x=x[0]), "input must have 4 axes (batch, channels, height, width), got (4, 5, 5)"),
    (lambda: op.input_grad(x, w, [4, 6, 5], [3, 3], [1, 1], [1] * 4, [1, 1]),
     "grad must have shape (2, 4, 6, 5), got (2, 4, 5, 5)"),
    (lambda: op.input_grad(x, w, [4, 5], [3, 3], [1, 1], [1] * 4, [1, 1]), "input_size must be channels, height and"),
    (lambda: op.weight_grad(x.half(), x, [3, 3], [1, 1], [1] * 4, [1, 1]), "grad and input must have one dtype"),
    (lambda: op.weight_grad(x, x, [3, 3], [1, 1], [0] * 4, [1, 1]), "grad must have shape (2, 4, 3, 3)"),
])
"""

LOCAL = """
from convswap.layers.ops import guided_local_conv2d as op

references = (
    op.guided_local_conv2d_ref,
    op.guided_local_conv2d_input_grad_ref,
    op.guided_local_conv2d_weight_grad_ref,
)
for groups, channels, outputs in [(1, 3, 5), (2, 4, 6), (4, 4, 4)]:
    def shape(batch, channels, outputs, taps, out):
        return batch, channels // groups, taps, outputs, *out
    check(op, references, shape, channels, outputs, (groups,))

x, w = torch.randn(2, 4, 5, 5), torch.randn(2, 2, 9, 6, 5, 5)
geometry = [3, 3], [1, 1], [1] * 4, [1, 1]
for b in (None, torch.randn(2, 6)):
    compare(op.forward, references[0], (x[:, :0], w[:, :0], b, *geometry, 2), torch.float32)
assert op.input_grad(torch.randn(2, 6, 5, 5), w[:, :0], [0, 5, 5], *geometry, 2).shape == (2, 0, 5, 5)
assert op.weight_grad(torch.randn(2, 6, 5, 5), x[:, :0], *geometry, 2).shape == (2, 0, 9, 6, 5, 5)
refuses([
    (lambda: op.forward(x, w, None, *geometry, 1), "weight must have shape (2, 4, 9, 6, 5, 5), got (2, 2, 9, 6, 5, 5)"),
    (lambda: op.forward(x, w, None, *geometry, 3), "groups must divide the 4 channels of the input and the 6 "),
    (lambda: op.forward(x, w, None, *geometry, 0), "got 0"),
    (lambda: op.forward(x, w[0], None, *geometry, 2), "weight must have 6 axes"),
    (lambda: op.input_grad(x, w, [4, 5, 5], *geometry, 2), "grad must have shape (2, 6, 5, 5), got (2, 4, 5, 5)"),
    (lambda: op.weight_grad(x, x, *geometry, 3), "groups must divide the 4 channels of the input and the 4 outputs"),
])
"""


@pytest.mark.parametrize(("name", "code"), [("guided_channelwise_conv2d", CHANNELWISE), ("guided_local_conv2d", LOCAL)])
def test_op(tmp_path, name, code):
    run_op(name, COMMON + code, tmp_path)
