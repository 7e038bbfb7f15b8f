"""Export to ONNX, of padding-free layers as they are and of frozen ones, run by onnxruntime."""

import warnings

import numpy as np
import pytest
import torch

from convswap.layers import ExtrapolatedConv2d, PaddingFreeConv1d

from .helpers import relative_error

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

MODULES = {
    "as it is": (lambda: PaddingFreeConv1d(4, 6, 3, 2, padding="same", groups=2), (8,)),
    "edge kernel": (lambda: PaddingFreeConv1d(4, 6, 3, padding=1, train_edge_kernel=True), (9,)),
    "frozen": (lambda: ExtrapolatedConv2d(4, 6, 3, padding=(1, 1)).freeze(), (9, 8)),
}


@pytest.mark.parametrize("name", MODULES)
def test_onnx_gives_the_same_numbers_for_any_batch(name, tmp_path):
    make, size = MODULES[name]
    module = make().eval()
    x = torch.randn(2, 4, *size)
    more = torch.cat((x, x.flip(0), x[:1]))
    path = tmp_path / "module.onnx"
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), path, dynamo=True, verbose=False, dynamic_shapes=(batch,))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    assert relative_error(torch.from_numpy(np.asarray(y)), module(more)) < 1e-5
