"""Export of attended convolutions to ONNX, run by onnxruntime with another batch than they were exported with."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from convswap.layers import DynamicConv2d, ODConv2d

from .helpers import relative_error

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def test_onnx_gives_the_same_numbers_for_any_batch(tmp_path):
    torch.manual_seed(0)
    own = lambda channels, hidden: nn.Conv2d(channels, hidden, 3, 2)
    model = nn.Sequential(
        DynamicConv2d(4, 6, 3, padding="same", stride=2, attention=own),
        ODConv2d(6, 8, (2, 3), stride=2, padding=1, groups=2, padding_mode="circular"),
        ODConv2d(8, 8, 3, padding="same", groups=8, dilation=2, kernels=1),
    ).eval()
    x, path = torch.randn(2, 4, 21, 20), tmp_path / "layers.onnx"
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, dynamic_shapes=({0: batch},))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    more = torch.cat((x, x.flip(0), x[:1]))
    (y,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    assert relative_error(torch.from_numpy(np.asarray(y)), model(more)) < 1e-5
