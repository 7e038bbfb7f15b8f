from __future__ import annotations

import json

import convswap.targets

from .helpers import Cli


def test_targets_for_people(cli: Cli) -> None:
    done = cli("targets")
    assert done.code == 0
    assert done.err == ""
    for name, target in convswap.targets.all_targets().items():
        assert f"{name} " in done.out
        assert " ".join(target.summary.split()) in done.out
    assert "kernels=4" in done.out


def test_targets_for_machines(cli: Cli) -> None:
    done = cli("targets", "--json")
    assert done.code == 0
    data = json.loads(done.out)
    assert list(data) == list(convswap.targets.all_targets())
    assert data["dynamic"]["options"] == {
        "kernels": 4,
        "reduction": 4,
        "temperature": 1.0,
        "attention": None,
        "noise": 0.1,
        "convert_first": False,
    }
    assert data["dcls"]["options"] == {
        "kernel_count": None,
        "dilated_kernel_size": None,
        "version": "v1",
        "share_positions": "none",
        "max_kernel_bytes": 2**28,
    }
    assert data["dcls"]["summary"] == convswap.targets.get_target("dcls").summary
