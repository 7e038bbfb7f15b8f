"""The CUDA ops of padding by extrapolation, compiled as C++ and registered for the CPU, against the plain forms."""

from .emulation import needs_compiler, run_op

pytestmark = needs_compiler

EXTRAPOLATE = """
import torch
from convswap.layers.ops import extrapolate_pad as op

torch.manual_seed(0)
formats = {4: [torch.channels_last], 5: [torch.channels_last_3d]}
for shape, padding, order in [
    ((2, 8, 6, 5), [1, 1, 1, 1], [2, 2, 2, 2]),
    ((2, 3, 6, 5), [1, 0, 2, 3], [0, 1, 2, 1]),
    ((3, 5, 7), [2, 1], [1, 2]),
    ((2, 8, 3, 4, 5), [1, 0, 2, 1, 1, 1], [1, 9, 0, 2, 1, 1]),
    ((1, 8, 5, 7), [280, 3, 0, 0], [0, 1, 0, 0]),
    ((0, 3, 4, 4), [1, 1, 1, 1], [2, 2, 2, 2]),
    ((2, 0, 4, 4), [1, 1, 1, 1], [2, 2, 2, 2]),
    ((2, 3, 0, 4), [0, 0, 1, 1], [2, 2, 2, 2]),
]:
    padded = [n + padding[2 * i] + padding[2 * i + 1] for i, n in enumerate(shape[2:])]
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for form in (torch.contiguous_format, *formats.get(len(shape), [])):
            x = torch.randn(shape, dtype=dtype).contiguous(memory_format=form)
            g = torch.randn(*shape[:2], *padded, dtype=dtype).contiguous(memory_format=form)
            for ours, plain, given in [
                (op.forward, op.extrapolate_pad_ref, x),
                (op.forward, op.extrapolate_pad_ref, torch.stack([x, x], -1)[..., 0]),
                (op.forward, op.extrapolate_pad_ref, torch.cat([x, x])[1 : 1 + shape[0]]),
                (op.backward, op.extrapolate_pad_backward_ref, g),
            ]:
                found, exact = ours(given, padding, order), plain(given.double(), padding, order)
                assert found.dtype == dtype
                same = plain(given, padding, order)
                wide = [i for i, n in enumerate(found.shape) if n > 1 and found.numel()]
                assert [found.stride(i) for i in wide] == [same.stride(i) for i in wide], (shape, form)
                torch.testing.assert_close(found, exact.to(dtype))

x = torch.randn(2, 4, 5, 3)
one, two = [1, 1, 1, 1], [2, 2, 2, 2]
for call, told in [
    (lambda: op.forward(x, [1, 1, -1, 1], two), "must not be negative, got (1, 1, -1, 1) and (2, 2, 2, 2)"),
    (lambda: op.forward(x, one, [2, -2, 2, 2]), "must not be negative, got (1, 1, 1, 1) and (2, -2, 2, 2)"),
    (lambda: op.forward(x, one, [2, 2]), "of 2 axes, 4 numbers, got (1, 1, 1, 1) and (2, 2)"),
    (lambda: op.forward(x, one, [4, 4, 2, 3]), "order 3 takes 3 + 1 pixels, and axis 1 of the image has 3"),
    (lambda: op.forward(x[0, 0], [], []), "must be (B, C, *size) with 1 to 3 spatial axes, got (5, 3)"),
    (lambda: op.forward(x.int(), one, two), "input must be float32"),
    (lambda: op.forward(x, [1 << 30, 0, 0, 0], two), "padding must be less than 2^30, got 1073741824"),
    (lambda: op.backward(x, [3, 3, 0, 0], two), "axis 0 has 5 pixels, less than a padding of 6"),
    (lambda: op.backward(x, one, two), "order 2 takes 2 + 1 pixels, and axis 1 of the image has 1"),
]:
    try:
        call()
    except RuntimeError as error:
        assert told in str(error), error
    else:
        raise AssertionError(told)
"""


def test_extrapolate_pad(tmp_path):
    run_op("extrapolate_pad", EXTRAPOLATE, tmp_path)
