import re
from pathlib import Path

import pytest
import torch

import convswap
from convswap.layers.ops import _agreement, large_depthwise_conv2d
from convswap.layers.ops._agreement import first_disagreement


def test_the_cpu_agrees_with_itself():
    assert first_disagreement("cpu") is None


def test_examples_cover_every_op():
    seen = {op._schema.name for op, _ in _agreement._examples()}
    known = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("convswap::")}
    assert seen == known


def guided_examples(name):
    """Kernels (or the shape of their gradient), images and geometry of the examples of an op, contiguous ones."""
    for op, arguments in _agreement._examples():
        if op._schema.name == f"convswap::{name}":
            yield arguments


@pytest.mark.parametrize("name", ["guided_channelwise_conv2d", "guided_local_conv2d"])
@pytest.mark.parametrize("part", ["", "_input_grad", "_weight_grad"])
def test_guided_examples_have_rows_of_whole_vectors_and_others(name, part):
    """Of either kind the usual 3x3 kernels one pixel apart, and others."""
    found = set()
    for arguments in guided_examples(name + part):
        kernel, stride, _, dilation = [value for value in arguments if isinstance(value, list)][-4:]
        width = arguments[1 if part != "_weight_grad" else 0].shape[-1]
        found.add((width % 4 == 0, kernel == [3, 3] and stride == dilation == [1, 1]))
    assert found >= {(True, True), (False, False)}


def test_local_examples_give_threads_several_channels():
    """As csrc/cuda/guided_plan.cuh plans it: of 4 channels where as many threads remain as keep a GPU busy."""
    source = Path(convswap.__file__).parent / "_csrc" / "cuda" / "guided_plan.cuh"
    enough = 1 << int(re.search(r"kGuidedFull = 1 << (\d+)", source.read_text())[1])

    def threads(numbers, channels, share):
        return max(n // share for n, c in zip(numbers, channels, strict=True) if c > 1)

    kernels = [arguments[1].shape for arguments in guided_examples("guided_local_conv2d")]
    assert threads([k[0] * k[4] * k[5] for k in kernels], [k[3] for k in kernels], 4) >= enough
    kernels = [arguments[1].shape for arguments in guided_examples("guided_local_conv2d_input_grad")]
    assert threads([k[0] * k[4] * k[5] for k in kernels], [k[1] for k in kernels], 2) >= enough
    grads = [arguments[0].shape for arguments in guided_examples("guided_local_conv2d_weight_grad")]
    assert threads([g[0] * g[2] * g[3] for g in grads], [g[1] for g in grads], 4) >= enough


@pytest.mark.parametrize("fault", ["number", "shape", "error", "nan"])
def test_what_differs_is_named(monkeypatch, fault):
    op = large_depthwise_conv2d.weight_grad
    calls = []

    class Wrong:
        def __str__(self):
            return "an op"

        def __call__(self, *arguments):
            calls.append(0)
            y = op(*arguments)
            if len(calls) != 1:
                return y
            if fault == "error":
                raise RuntimeError("no kernel image is available")
            if fault == "shape":
                return y[1:]
            y[-1, 0, -1, -1] += 1 if fault == "number" else torch.nan
            return y

    monkeypatch.setattr(large_depthwise_conv2d, "weight_grad", Wrong())
    told = first_disagreement("cpu")
    assert told is not None
    assert told.startswith("an op")
