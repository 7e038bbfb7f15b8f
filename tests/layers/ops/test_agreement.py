import pytest
import torch

from convswap.layers.ops import _agreement, large_depthwise_conv2d
from convswap.layers.ops._agreement import first_disagreement


def test_the_cpu_agrees_with_itself():
    assert first_disagreement("cpu") is None


def test_examples_cover_every_op():
    seen = {op._schema.name for op, _ in _agreement._examples()}
    known = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("convswap::")}
    assert seen == known


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
