"""Real networks whose padding is replaced: interiors as they were, and what becomes of the predictions."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from rich.console import Console
from torch import nn

from examples import padded_photos

SEEN = {"coffee": "espresso", "camera": "tripod", "motorcycle": "moped"}
"""What both networks see in the photos with the zero padding that they were trained with."""

PADDED = {"mobilenet_v2": 18, "efficientnet_lite0": 17}
"""Convolutions that pad at all: the others are 1x1."""


ORDERS = tuple(f"padding_free, order {order}" for order in range(3))
TESTED = (*ORDERS, "explicit_boundary")
"""The others are tested in small networks."""


def keep_conversions(monkeypatch: pytest.MonkeyPatch, names: Sequence[str]) -> None:
    monkeypatch.setattr(padded_photos, "CONVERSIONS", {name: padded_photos.CONVERSIONS[name] for name in names})


@pytest.mark.parametrize("network", PADDED)
def test_photos_with_other_paddings(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_conversions(monkeypatch, TESTED)
    model: nn.Module = padded_photos.NETWORKS[network]()
    found = {outcome.padding: outcome for outcome in padded_photos.outcomes(model, list(SEEN))}
    assert set(found) == {"original", *TESTED}
    for padding, outcome in found.items():
        if padding != "original":
            assert outcome.layers == PADDED[network]
            assert outcome.interior_error <= 1e-5
    for padding in ("original", "padding_free, order 0", "explicit_boundary"):
        assert [what for what, _ in found[padding].seen] == list(SEEN.values()), padding
    probabilities = [[how for _, how in found[padding].seen] for padding in ("original", "explicit_boundary")]
    assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-4)
    replicated, straight, curved = (found[padding] for padding in ORDERS)
    assert 2 * replicated.growth < straight.growth < curved.growth / 2 < 50
    for (_, surer), (_, less_sure) in zip(replicated.seen, straight.seen, strict=True):
        assert less_sure < surer / 3


def test_example_prints_what_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_conversions(monkeypatch, ["random_pad"])
    padded_photos.main(["--network", "mobilenet_v2", "--photo", "coffee"])
    printed = capsys.readouterr().out
    assert "mobilenet_v2" in printed
    assert "efficientnet" not in printed
    assert "random_pad" in printed
    assert "18 convolutions converted" in printed


def test_nothing_is_cut_off_in_a_narrow_table() -> None:
    seen = (("carpenter's kit", 0.5),) * 5
    rows = [padded_photos.Outcome(name, seen, 17, 11.2, 1e-7) for name in padded_photos.CONVERSIONS]
    stream = io.StringIO()
    Console(file=stream, width=80).print(padded_photos._table("net", [*padded_photos.PHOTOS], iter(rows)))
    printed = stream.getvalue()
    assert "…" not in printed
    assert all(word in printed.split() for name in padded_photos.CONVERSIONS for word in name.split())
    assert {"interior", "error", "growth", "1e-07", "11.2"} <= {*printed.split()}


def test_what_is_no_photo_is_refused() -> None:
    with pytest.raises(SystemExit, match="2"):
        padded_photos.main(["--photo", "dog"])
