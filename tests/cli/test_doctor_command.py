from __future__ import annotations

import json
import platform

import pytest
import torch

import convswap

from .helpers import Cli


def test_doctor_for_people(cli: Cli) -> None:
    done = cli("doctor")
    assert done.code == 0
    assert done.err == ""
    for told in (
        platform.python_version(),
        torch.__version__.partition("+")[0],
        "torchvision",
        "timm",
        "cpu ",
        "dynamic",
        "nvcc",
    ):
        assert told in done.out


def test_doctor_for_machines(cli: Cli) -> None:
    done = cli("doctor", "--json")
    assert done.code == 0
    data = json.loads(done.out)
    assert data["versions"]["convswap"] == convswap.__version__
    assert data["threads"] == torch.get_num_threads()
    assert data["broken_targets"] == {}
    assert set(data) == {"versions", "devices", "threads", "compilers", "kernels", "targets", "broken_targets"}


def test_broken_target(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convswap.doctor.broken_targets", lambda: {"theirs": "ImportError: no module [bold]x"})
    done = cli("doctor")
    assert done.code == 1
    assert "theirs: ImportError: no module [bold]x" in done.out
    done = cli("doctor", "--json")
    assert done.code == 1
    assert json.loads(done.out)["broken_targets"] == {"theirs": "ImportError: no module [bold]x"}
