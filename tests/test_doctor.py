from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import pytest
import torch

import convswap
from convswap.doctor import diagnose


def test_what_is_here() -> None:
    found = diagnose()
    assert found.versions["python"] == platform.python_version()
    assert found.versions["convswap"] == convswap.__version__
    assert found.threads == torch.get_num_threads()
    assert found.devices[0].startswith("cpu ")
    assert len(found.devices) >= 1 + torch.cuda.device_count()
    assert {"dynamic", "dcls"} <= set(found.targets)
    assert json.loads(json.dumps(found.to_dict()))["versions"] == found.versions


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError, version

    def without_timm(package: str) -> str:
        if package == "timm":
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr("importlib.metadata.version", without_timm)
    found = diagnose()
    assert found.versions["timm"] is None
    assert found.versions["torch"] is not None


def compiler(folder: Path, code: str) -> str:
    """A program that runs ``code`` of a shell."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for the compiler")
@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("echo one 1.2; echo two", "one 1.2"),
        ("true", "?"),
        ("exit 3", "does not run: "),
    ],
)
def test_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, code))
    found = diagnose().compilers["c++"]
    assert found is not None
    assert found.startswith(told)


def test_compilers_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "gone"))
    monkeypatch.setattr("convswap.doctor.nvcc", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert diagnose().compilers == {"c++": None, "nvcc": None}


def test_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSWAP_CACHE", str(tmp_path))
    monkeypatch.setenv("CONVSWAP_KERNELS", "auto")
    assert diagnose().kernels["cpu"].startswith("not compiled yet")
    monkeypatch.setenv("CONVSWAP_KERNELS", "off")
    assert diagnose().kernels["cpu"] == "not used: CONVSWAP_KERNELS=off"
    monkeypatch.setenv("CONVSWAP_KERNELS", "never")
    assert "got 'never'" in diagnose().kernels["cpu"]
