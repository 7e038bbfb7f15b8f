"""Export to ONNX, of layers as they are and of frozen ones, run by onnxruntime."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from convswap.layers import Dcls1d, Dcls2_1d, Dcls2d, Dcls2dK1d, Dcls3_1d, Dcls3d, DclsDilated2d

from .helpers import relative_error

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LAYERS = {
    "Dcls1d": (lambda: Dcls1d(4, 6, 5, padding=3, groups=2), (9,)),
    "Dcls2d v0": (lambda: Dcls2d(4, 6, 5, stride=2, padding=3, groups=2, version="v0"), (9, 8)),
    "Dcls2d v1": (lambda: Dcls2d(4, 6, 5, padding=3), (9, 8)),
    "Dcls2d max": (lambda: Dcls2d(4, 6, 5, padding=3, version="max"), (9, 8)),
    "Dcls2d gauss": (lambda: Dcls2d(4, 6, 5, padding="same", stride=2, version="gauss"), (9, 8)),
    "Dcls2d depthwise": (lambda: Dcls2d(4, 4, 9, padding=8, groups=4, dilated_kernel_size=17), (12, 13)),
    "Dcls3d": (lambda: Dcls3d(2, 3, 5, padding=1, dilated_kernel_size=3), (5, 6, 7)),
    "Dcls2_1d": (lambda: Dcls2_1d(4, 6, 2, dense_kernel_size=3, padding=1, version="gauss"), (9, 8)),
    "Dcls3_1d": (lambda: Dcls3_1d(2, 3, 2, dense_kernel_size=3, padding=1, dilated_kernel_size=5), (5, 6, 7)),
    "Dcls2dK1d": (lambda: Dcls2dK1d(4, 6, 3, flat_dim=1), (9, 8)),
    "DclsDilated2d": (lambda: DclsDilated2d(4, 6, 3, padding=2, dilation=2), (9, 8)),
}


class Together(nn.Module):
    """Layers side by side: an export of one takes nearly as long as one of all."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, images):
        return [layer(x) for layer, x in zip(self.layers, images, strict=True)]


@pytest.mark.parametrize("frozen", [False, True], ids=["as they are", "frozen"])
def test_onnx_gives_the_same_numbers_for_any_batch(frozen, tmp_path):
    layers = [make().eval() for make, _ in LAYERS.values()]
    images = [
        torch.randn(2, layer.in_channels, *size) for layer, (_, size) in zip(layers, LAYERS.values(), strict=True)
    ]
    more = [torch.cat((x, x.flip(0), x[:1])) for x in images]
    expected = Together(layers)(more)
    exported = Together([layer.freeze() for layer in layers] if frozen else layers)
    path = tmp_path / "layers.onnx"
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ([{0: batch}] * len(images),)
        torch.onnx.export(exported, (images,), path, dynamo=True, verbose=False, dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, {key: x.numpy() for key, x in zip(names, more, strict=True)})
    for name, y, wanted in zip(LAYERS, found, expected, strict=True):
        assert relative_error(torch.from_numpy(np.asarray(y)), wanted) < 1e-5, name
