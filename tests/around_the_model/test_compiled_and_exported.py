"""torch.compile, torch.export and ONNX."""

import copy
import functools

import pytest
import torch

import convswap

from ..guided import awake
from ..models import library_model, without_randomness
from .models import assert_same, gradients, images

# Short models and few layers of each, so that compilation stays short; most kinds of targets are among them
# (odconv is exported and compiled among the tests of its layer).
CASES = {
    "timm:test_resnet": {"layer2.0.conv1": "dynamic", "layer3.0.conv2": "padding_free"},
    "torchvision:mobilenet_v2": {
        "features.0.0": "hybrid",
        "features.1.conv.0.0": "dcls",
        "features.1.conv.1": "routed",
    },
    "torchvision:squeezenet1_1": {
        "features.3.expand3x3": "guided",
        "features.6.expand3x3": "partial",
    },
}
STEM = "features.0"  # what guides the routed layer
SHORT = {"torchvision:mobilenet_v2": {"inverted_residual_setting": [[1, 8, 1, 2]]}}


@functools.cache
def few_converted(name):
    """A converted model, which the tests leave as it is."""
    new = without_randomness(library_model(name, num_classes=10, **SHORT.get(name, {}))).double().eval()
    for where, to in CASES[name].items():
        options = {"guide": STEM} if to == "routed" else {}
        to = "guided" if to == "routed" else to
        new = convswap.convert(new, to, where, example_inputs=(3, 48, 48), **options)
    return awake(new)


@pytest.mark.parametrize("name", CASES)
def test_compile(name):
    torch._dynamo.reset()
    new, x = copy.deepcopy(few_converted(name)).train(), images(4, 32)
    compiled = torch.compile(copy.deepcopy(new), backend="aot_eager", fullgraph=True)
    found = {key.removeprefix("_orig_mod."): grad for key, grad in gradients(compiled, x).items()}
    assert_same(found, gradients(new, x))


@pytest.fixture(scope="module", params=CASES)
def exported(request):
    """A converted model in single precision, and its program for any batch size: one for the tests of a model."""
    new = copy.deepcopy(few_converted(request.param)).float()
    batch = torch.export.Dim("batch", min=1, max=64)
    return new, torch.export.export(new, (images(2, 32, torch.float32),), dynamic_shapes=({0: batch},))


def test_export(exported, tmp_path):
    new, program = exported
    torch.export.save(program, tmp_path / "model.pt2")
    x = images(3, 32, torch.float32, seed=2)
    assert_same(torch.export.load(tmp_path / "model.pt2").module()(x), new(x), tolerance=1e-5)


def test_onnx(exported, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    (new, program), file = exported, str(tmp_path / "model.onnx")
    torch.onnx.export(program, f=file, dynamo=True, optimize=False, verbose=False)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    x = images(3, 32, torch.float32, seed=2)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_same(torch.from_numpy(y), new(x).detach(), tolerance=1e-5)
