"""Other precisions and memory formats."""

import pytest
import torch

from .models import NAMES, assert_same, converted, gradients, images, original


@pytest.mark.parametrize("name", NAMES)
def test_lower_precision(name):
    """Autocast and half precision cost a converted model about what they cost the original."""
    x = images()
    errors = {}
    for which, model in (("original", original(name)), ("converted", converted(name, "exact"))):
        expected = model(x)
        single = model.float()
        with torch.autocast("cpu", torch.bfloat16):
            y = single(x.float())
        assert y.dtype == torch.bfloat16
        outputs = {"autocast": y}
        for dtype in (torch.bfloat16, torch.float16):
            model.to(dtype)
            outputs[dtype] = model(x.to(dtype))
            assert outputs[dtype].dtype == dtype
            model.float()
        scale = expected.abs().max()
        errors[which] = {
            key: ((value.double() - expected).abs().max() / scale).item() for key, value in outputs.items()
        }
    for key, error in errors["converted"].items():
        assert error <= 4 * errors["original"][key] + 1e-3, errors


@pytest.mark.parametrize("name", NAMES)
def test_training_under_autocast(name):
    new = converted(name, "exact").float().train()
    with torch.autocast("cpu", torch.bfloat16):
        y = new(images(4, dtype=torch.float32))
    y.float().square().mean().backward()
    for key, parameter in new.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("kind", ["mixed", "routed"])
@pytest.mark.parametrize("name", NAMES)
def test_channels_last(name, kind):
    new, x = converted(name, kind), images()
    y, expected = new(x), gradients(new, x)
    last = new.to(memory_format=torch.channels_last)
    nhwc = x.to(memory_format=torch.channels_last)
    assert_same(last(nhwc), y)
    assert_same(gradients(last, nhwc), expected)
    if kind == "mixed":
        before = original(name).to(memory_format=torch.channels_last).forward_features(nhwc)
        assert last.forward_features(nhwc).stride() == before.stride()
