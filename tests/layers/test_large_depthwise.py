"""The functional form of depthwise convolution with large kernels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convswap.layers import large_depthwise
from convswap.layers.large_depthwise import large_depthwise_conv2d, large_depthwise_pays
from convswap.layers.ops._load import kernels_loaded, load_kernels


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    load_kernels("cpu")


class Convolve(nn.Module):
    def __init__(self, padding=2):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, 5, 5))
        self.bias = nn.Parameter(torch.randn(4))
        self.padding = padding

    def forward(self, x):
        return large_depthwise_conv2d(x, self.weight, self.bias, 1, self.padding)


@pytest.mark.parametrize("padding", [0, 3, (2, 4), "same", "valid"], ids=str)
def test_like_torch_without_a_stride(padding):
    x, weight, bias = torch.randn(2, 4, 9, 8).double(), torch.randn(8, 1, 5, 4).double(), torch.randn(8).double()
    wanted = F.conv2d(x, weight, bias, 1, padding, 1, 4)
    torch.testing.assert_close(large_depthwise_conv2d(x, weight, bias, 1, padding), wanted)
    torch.testing.assert_close(large_depthwise_conv2d(x[0], weight, bias, 1, padding), wanted[0])


def test_same_padding_with_a_stride():
    x, weight = torch.randn(1, 3, 9, 8).double(), torch.randn(3, 1, 6, 6).double()
    y = large_depthwise_conv2d(x, weight, stride=(2, 3), padding="same")
    assert y.shape == (1, 3, 5, 3)
    wanted = F.conv2d(F.pad(x, (2, 2, 2, 3)), weight, None, (2, 3), 0, 1, 3)
    torch.testing.assert_close(y, wanted)


def test_channels_last_stays_so():
    x = torch.randn(2, 4, 9, 8).to(memory_format=torch.channels_last)
    y = large_depthwise_conv2d(x, torch.randn(4, 1, 3, 3), padding=1)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_as_it_does_for_torch(dtype):
    module, x = Convolve(), torch.randn(2, 4, 9, 8)
    with torch.autocast("cpu", dtype):
        y = module(x)
        wanted = F.conv2d(x, module.weight, module.bias, 1, 2, 1, 4)
        doubles = large_depthwise_conv2d(x.double(), module.weight.double(), None, 1, 2)
    assert y.dtype == wanted.dtype == dtype
    assert doubles.dtype == torch.float64
    torch.testing.assert_close(y, wanted, rtol=1e-2, atol=2e-2)
    y.sum().backward()
    assert module.weight.grad.dtype == torch.float32


def test_compiles_whole_under_autocast_too():
    module, x = Convolve("same"), torch.randn(2, 4, 9, 8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))
    with torch.autocast("cpu", torch.bfloat16):
        y = compiled(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), module(x), rtol=2e-2, atol=1e-1)


def test_exports_to_ops_of_torch_alone():
    module, x = Convolve(), torch.randn(2, 4, 9, 8)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(module, (x,), dynamic_shapes={"x": {0: batch}})
    assert not [node for node in program.graph.nodes if "convswap" in str(node.target)]
    more = torch.randn(5, 4, 9, 8)
    torch.testing.assert_close(program.module()(more), module(more))


def test_traced_as_one_call():
    graph = torch.fx.symbolic_trace(lambda x, w: large_depthwise.large_depthwise_conv2d(x, w, padding=1)).graph
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [large_depthwise_conv2d]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.randn(4, 4)}, r"\(B, C, H, W\) or \(C, H, W\), got \(4, 4\)"),
        ({"input": torch.randn(1, 0, 9, 9)}, r"must have channels, got \(1, 0, 9, 9\)"),
        ({"weight": torch.randn(4, 2, 3, 3)}, r"\(m \* C, 1, kh, kw\), got \(4, 2, 3, 3\)"),
        ({"weight": torch.randn(6, 1, 3, 3)}, r"multiple of the input's 4 channels, got 6"),
        ({"weight": torch.randn(4, 1, 3, 3).double()}, r"weight .* torch.float32 on cpu, got torch.float64"),
        ({"bias": torch.randn(3)}, r"bias must be \(4,\), got \(3,\)"),
        ({"stride": 0}, r"stride must be at least 1, got \(0, 0\)"),
        ({"padding": -1}, r"must not be negative"),
        ({"padding": "reflect"}, r'must be "same", "valid" or numbers'),
        (
            {"weight": torch.randn(4, 1, 12, 3)},
            r"kernel \(12, 3\) is larger than the input \(9, 9\) padded by \(1, 1\)",
        ),
    ],
)
def test_what_does_not_fit_is_said(changes, message):
    arguments = {"input": torch.randn(1, 4, 9, 9), "weight": torch.randn(4, 1, 3, 3), "padding": 1, **changes}
    with pytest.raises(ValueError, match=message):
        large_depthwise_conv2d(**arguments)


def test_pays_where_it_was_measured_to():
    x = torch.randn(2, 32, 14, 14)
    last = x.to(memory_format=torch.channels_last)
    small, medium, large = (torch.randn(32, 1, k, k) for k in (3, 7, 17))
    if not kernels_loaded("cpu"):
        assert not large_depthwise_pays(x, large)
        return
    if not large_depthwise._WIDE_VECTORS:
        pytest.skip("measured on a CPU with wide vectors only")
    assert large_depthwise_pays(x, medium)
    assert large_depthwise_pays(x, large)
    assert large_depthwise_pays(last, large)
    assert not large_depthwise_pays(last, small)
    assert not large_depthwise_pays(last, medium)
    assert large_depthwise_pays(last, medium, training=True)
    assert large_depthwise_pays(last, medium.requires_grad_())
    with torch.no_grad():
        assert not large_depthwise_pays(last, medium)
    assert not large_depthwise_pays(x.to("meta"), large.to("meta"))
