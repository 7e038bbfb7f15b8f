"""Export of guided convolutions to ONNX, run by onnxruntime with another batch than they were exported with."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from convswap.layers import (
    GuidedChannelWiseConv2d,
    GuidedConv2d,
    GuidedDepthWiseConv2d,
    GuidedLocalConv2d,
    SeparableGuidedConv2d,
)

from .helpers import relative_error

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PAIRS = {
    "guided": lambda: GuidedConv2d(4, 6, 3, stride=2, groups=2, bias=True).with_hypernet(3, generate_bias=True),
    "guided circular": lambda: GuidedConv2d(4, 6, (2, 3), padding=1, padding_mode="circular").with_hypernet(3),
    "local": lambda: GuidedLocalConv2d(4, 6, 3, stride=2, groups=2).with_hypernet(3, generate_bias=True),
    "low rank": lambda: GuidedLocalConv2d(4, 6, 3, stride=2, groups=2).with_hypernet(3, rank=2),
    "channelwise": lambda: GuidedChannelWiseConv2d(4, 8, 3, stride=2, dilation=2).with_hypernet(3),
    "depthwise": lambda: GuidedDepthWiseConv2d(4, 6, 2, groups=2).with_hypernet(3),
    "separable": lambda: SeparableGuidedConv2d(4, 6, 3, padding=1, groups=2).with_hypernet(3, generate_bias=True),
    "own body": lambda: GuidedLocalConv2d(4, 6, 3).with_hypernet(3, hypernet=lambda g, n: nn.Conv2d(g, n, 3, 2)),
}


class Together(nn.Module):
    """Pairs side by side: an export of one takes nearly as long as one of all."""

    def __init__(self, pairs):
        super().__init__()
        self.pairs = nn.ModuleList(pairs)

    def forward(self, x, guide):
        return [pair(x, guide) for pair in self.pairs]


def test_onnx_gives_the_same_numbers_for_any_batch(tmp_path):
    torch.manual_seed(0)
    pairs = Together([make() for make in PAIRS.values()]).eval()
    x, guide = torch.randn(2, 4, 9, 8), torch.randn(2, 3, 4, 13)  # to be interpolated and averaged
    path = tmp_path / "pairs.onnx"
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(pairs, (x, guide), path, dynamo=True, verbose=False, dynamic_shapes=({0: batch}, {0: batch}))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    more = [torch.cat((value, value.flip(0), value[:1])) for value in (x, guide)]
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, {key: value.numpy() for key, value in zip(names, more, strict=True)})
    for name, y, wanted in zip(PAIRS, found, pairs(*more), strict=True):
        assert relative_error(torch.from_numpy(np.asarray(y)), wanted) < 1e-5, name
