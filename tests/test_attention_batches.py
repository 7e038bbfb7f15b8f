"""What watching a model on batches sees: each attention once, of what has samples, with data left as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convswap
from convswap import attention_statistics
from convswap.attention_batches import BatchRunner
from convswap.errors import ConvswapError
from convswap.layers import CondConv2d, Dcls2d, DynamicConv2d, ODConv2d

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(7))


class SomeEmpty(nn.Module):
    """Calls its second layers with no samples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = DynamicConv2d(3, 3, 3), DynamicConv2d(3, 3, 3), Dcls2d(3, 3, 3, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return y.mean((2, 3)) + self.b(y[:0]).sum() + self.c(y[:0]).sum()


def test_calls_without_samples() -> None:
    found = attention_statistics(SomeEmpty(), X)
    assert ([layer.name for layer in found.layers], found.not_run) == (["a"], ("b",))
    frozen: Any = convswap.freeze(SomeEmpty(), X, mode="mean")
    assert type(frozen.a) is nn.Conv2d
    (told,) = convswap.report(frozen).freezings
    assert [(kept.name, kept.reason) for kept in told.kept] == [
        ("b", "the data did not reach it, so its mean attention is unknown")
    ]
    assert {layer.name: layer.error is None for layer in told.layers} == {"a": False, "c": True}


class InPlace(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x.mul_(2))
        return y


def test_models_that_change_their_input() -> None:
    data = X.clone()
    (told,) = convswap.report(convswap.freeze(InPlace(Dcls2d(3, 3, 3)), data)).freezings
    assert told.output_error is not None
    assert told.output_error.greatest < 1e-5
    assert torch.equal(data, X)
    BatchRunner(nn.ReLU(inplace=True), data).run()  # without parameters
    assert torch.equal(data, X)


class OfImages(nn.Module):
    """Takes images of different sizes, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = DynamicConv2d(3, 3, 3)

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        return [self.conv(image) for image in images]


@pytest.mark.parametrize("batch", [([X[0], X[1, :, :5]], ["labels"]), {"images": [X[0], X[1, :, :5]]}])
def test_lists_of_images_are_counted(batch: Any) -> None:
    found = attention_statistics(OfImages(), [batch, batch])
    assert (found.batches, found.samples) == (2, 4)
    assert found.layers[0].whole.samples == 4


def test_who_is_to_blame_for_what_is_not_finite() -> None:
    layer = DynamicConv2d(3, 3, 3)
    for look in (
        lambda data: attention_statistics(layer, data),
        lambda data: convswap.freeze(layer, data, mode="mean"),
    ):
        with pytest.raises(
            ConvswapError, match="attention of '' is not finite: batch 1 of the data holds NaN or infin"
        ):
            look([X, X / 0])
    nn.init.constant_(layer.attention.fc2.bias, torch.nan)
    with pytest.raises(ConvswapError, match="is not finite: the model has diverged"):
        attention_statistics(layer, X)


class Counting(nn.Module):
    """A body of an attention that remembers how often it was called."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, hidden, 1)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.fc(x) * self.calls
        return y


def test_nets_of_the_users_own_are_called_once() -> None:
    layer = DynamicConv2d(3, 3, 3, attention=Counting)
    with torch.no_grad():
        expected = layer(X) is not None and layer.attention.body.calls
        layer.attention.body.calls = 0
    found = attention_statistics(layer, [X, X])
    assert layer.attention.body.calls == 2 * expected == 2
    layer.attention.body.calls = 0
    means = [layer.attentions(X)["kernel"].mean(0) for _ in range(2)]
    assert found.layers[0].whole.mean == pytest.approx(torch.stack(means).mean(0).tolist())


def test_an_attention_that_several_layers_have() -> None:
    one, other = DynamicConv2d(3, 3, 3), DynamicConv2d(3, 3, 3)
    other.attention = one.attention
    found = attention_statistics(nn.Sequential(one, other), X)
    assert [layer.whole.samples for layer in found.layers] == [4, 4]
    assert [layer.sizes[0].size for layer in found.layers] == [(8, 8), (6, 6)]


@pytest.mark.parametrize("kind", [DynamicConv2d, CondConv2d, ODConv2d])
def test_attentions_are_those_of_the_layer(kind: Any) -> None:
    layer = kind(3, 3, 3, dtype=torch.float64)
    expected = layer.attentions(X.double())["kernel"].mean(0)
    for data in (X, [X[:1], X[1:]], list(X)):
        assert attention_statistics(layer, data).layers[0].whole.mean == pytest.approx(expected.tolist())


def test_no_model_at_all() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
        attention_statistics(3, X)  # type: ignore[arg-type]
