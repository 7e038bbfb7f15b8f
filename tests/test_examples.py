from __future__ import annotations

import pytest

from convswap.targets import registry
from examples import own_target


def test_own_target(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(registry, "_targets", dict(registry._targets))
    own_target.main()
    printed = " ".join(capsys.readouterr().out.split())
    assert "11 of 52 convolutions converted (11 to mixed)" in printed
    assert "it has fewer than 2 groups" in printed
    assert "all keep what they promise" in printed
