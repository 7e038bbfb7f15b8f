import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convswap.layers._geometry import (
    conv_nd,
    effective_size,
    is_channels_last,
    memory_format,
    normalise_padding,
    output_size,
    pad_widths,
    per_axis,
)

from .helpers import few_examples, geometries, plain_conv, relative_error


@few_examples
@given(geometries())
def test_any_convolution(g):
    window = effective_size(g.kernel_size, g.dilation)
    widths = pad_widths(normalise_padding(g.padding, g.dims), window, g.stride, g.size)
    conv, x = g.conv(), g.input()
    y = conv_nd(x, conv.weight, conv.bias, g.stride, widths, g.dilation, g.groups, g.padding_mode)
    assert relative_error(y, plain_conv(x, conv.weight, conv.bias, g)) < 1e-12
    assert tuple(y.shape[2:]) == output_size(g.size, widths, window, g.stride)


@few_examples
@given(st.integers(1, 6), st.integers(1, 3), st.sampled_from(("zeros", "reflect", "replicate", "circular")))
def test_same_is_that_of_torch(taps, dilation, padding_mode):
    conv = nn.Conv1d(1, 1, taps, padding="same", dilation=dilation, padding_mode=padding_mode, dtype=torch.float64)
    x = torch.randn(1, 1, 20, dtype=torch.float64)
    widths = pad_widths("same", effective_size((taps,), (dilation,)), (1,), (20,))
    y = conv_nd(x, conv.weight, conv.bias, (1,), widths, (dilation,), 1, padding_mode)
    assert relative_error(y, conv(x)) < 1e-12


@pytest.mark.parametrize(
    ("size", "stride", "window", "expected"),
    # Worked out by hand: ceil(size / stride) outputs, an odd pixel behind, none where the windows leave pixels over.
    [(7, 2, 3, (1, 1)), (8, 2, 3, (0, 1)), (8, 2, 5, (1, 2)), (8, 3, 2, (0, 0)), (7, 3, 2, (0, 1)), (1, 2, 3, (1, 1))],
)
def test_same_with_stride_is_that_of_tensorflow(size, stride, window, expected):
    assert pad_widths("same", (window,), (stride,), (size,)) == [expected]


def test_one_number_stands_for_every_axis():
    assert per_axis(3, 2, "stride") == (3, 3)
    assert per_axis([1, 2], 2, "stride") == (1, 2)
    with pytest.raises(ValueError, match=r"stride.*2.*\(1, 2, 3\)"):
        per_axis((1, 2, 3), 2, "stride")


@pytest.mark.parametrize(("padding", "message"), [("full", "full"), (-1, "-1"), ((1, 2, 3), r"\(1, 2, 3\)")])
def test_bad_padding_is_named(padding, message):
    with pytest.raises(ValueError, match=message):
        normalise_padding(padding, 2)


@pytest.mark.parametrize(
    ("shape", "expected"), [((4, 3, 3, 3), torch.channels_last), ((4, 3, 2, 2, 2), torch.channels_last_3d)]
)
def test_memory_format_is_recognised(shape, expected):
    kernel = torch.empty(shape)
    assert memory_format(kernel) == torch.contiguous_format
    assert memory_format(kernel.to(memory_format=expected)) == expected


def test_kernel_stored_in_both_ways_is_not_called_channels_last():
    for shape in ((4, 3, 1, 1), (4, 1, 3, 3)):
        assert not is_channels_last(torch.empty(shape).to(memory_format=torch.channels_last))
    assert not is_channels_last(torch.empty(3, 4, 5).transpose(1, 2))
