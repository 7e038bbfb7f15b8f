from __future__ import annotations

import json
from pathlib import Path

import pytest

from convswap.layers.ops import _build

from .helpers import Cli, refused


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources that compile in a second, and an empty cache."""
    (tmp_path / "sources" / "cpu").mkdir(parents=True)
    (tmp_path / "sources" / "cuda").mkdir()
    (tmp_path / "sources" / "cpu" / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setattr(_build, "SOURCES", tmp_path / "sources")
    monkeypatch.setenv("CONVSWAP_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("small")
def test_build_for_people_and_machines(cli: Cli, tmp_path: Path) -> None:
    done = cli("build", "--backend", "cpu")
    assert done.code == 0, done
    assert "compiled in" in done.out
    done = cli("build", "--backend", "cpu", "--json")
    (entry,) = json.loads(done.out)
    assert (entry["backend"], entry["compiled"]) == ("cpu", False)
    assert Path(entry["library"]).parent == tmp_path / "cache"
    assert "found in the cache" in cli("build", "--backend", "cpu").out


@pytest.mark.usefixtures("small")
def test_what_cannot_be_built(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no compute capability" in refused(cli, tmp_path / "sources", "build", "--backend=cuda", "--cuda-archs=9.0")
    assert "leaves them out" in refused(cli, tmp_path / "sources", "build", "--backend=cpu", "--cuda-archs=90", code=2)
    assert "names no compute capability" in refused(cli, tmp_path / "sources", "build", "--cuda-archs=,", code=2)
    assert "invalid choice" in refused(cli, tmp_path / "sources", "build", "--backend=xpu", code=2)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler cannot be run" in refused(cli, tmp_path / "sources", "build", "--backend=cpu")
