"""The models of these tests: small ones of timm, converted to many targets at once."""

import copy
import functools

import torch

import convswap
from convswap import Swap

from ..guided import awake
from ..models import library_model, without_randomness

NAMES = ("timm:test_resnet", "timm:test_convnext", "timm:test_efficientnet")
STEMS = {"timm:test_resnet": "conv1", "timm:test_convnext": "stem", "timm:test_efficientnet": "conv_stem"}
FIRST = {"timm:test_resnet": "conv1.0", "timm:test_convnext": "stem.0", "timm:test_efficientnet": "conv_stem"}

EXACT = ("dynamic", "dcls", "guided", "odconv")
SIZE = 48


def images(batch=4, size=SIZE, dtype=torch.float64, seed=1):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def original(name):
    """A model in double precision and evaluation mode, whose training mode is no more random."""
    return copy.deepcopy(_original(name))


def converted(name, kind="mixed"):
    """A copy of it that is converted.

    Args:
        name: one of `NAMES`.
        kind: ``"exact"`` for one target that keeps the function after the other, in turn, and hybrid for the stem;
            ``"fresh"`` for all kinds of targets; ``"mixed"`` for the same, and ``"routed"`` for layers that are guided
            by the stem, both with new parameters that are away from their start, so that they matter.
    """
    return copy.deepcopy(_converted(name, kind))


def rules(name, targets=(*EXACT, "padding_free", "partial")):
    """Convert one convolution after the other to one target after the other, and the first to hybrid."""
    order = {}

    def place(site):
        return order.setdefault(site.name, len(order)) % len(targets)

    turns = [Swap(lambda site, i=i: place(site) == i, target) for i, target in enumerate(targets)]
    return [Swap(FIRST[name], "hybrid", hidden=2), *turns]


@functools.cache
def _original(name):
    return without_randomness(library_model(name, num_classes=10)).double().eval()


@functools.cache
def _converted(name, kind):
    model = _original(name)
    if kind == "exact":
        return convswap.convert(model, rules(name, EXACT), example_inputs=(3, SIZE, SIZE))
    if kind == "fresh":
        return convswap.convert(model, rules(name), example_inputs=(3, SIZE, SIZE))
    if kind == "mixed":
        return awake(converted(name, "fresh"))
    return awake(convswap.convert(model, "guided", ["*.0.*", f"!{STEMS[name]}*"], guide=STEMS[name]))


def gradients(model, x):
    """Of a loss that weighs all outputs differently, by the name of the parameter."""
    loss(model(x)).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def loss(y):
    weights = torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype)
    return (y.flatten(1) * weights).sum(1).square().mean()


def assert_same(actual, expected, tolerance=1e-9):
    """Tensors, or dicts of them, that differ by no more than that part of the greatest number."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name in expected:
            assert_same(actual[name], expected[name], tolerance)
        return
    scale = expected.detach().abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale + 1e-13)
