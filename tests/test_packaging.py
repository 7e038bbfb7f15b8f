from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {
    "convswap/__init__.py",
    "convswap/py.typed",
    "convswap/cli/main.py",
    "convswap/layers/dynamic.py",
    "convswap/targets/dcls.py",
    "convswap/templates/report.html",
    "convswap/layers/ops/_build.py",
    "convswap/_csrc/README.md",
    "convswap/_csrc/cpu/large_depthwise_conv2d.cpp",
    "convswap/_csrc/cuda/large_depthwise_conv2d.cu",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the repository tracks, because setuptools writes into the folder that it builds."""
    copied = tmp_path_factory.mktemp("source") / "convswap"
    copied.mkdir()
    for name in ("convswap", "layers", "csrc", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copied / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copied / name)
    return copied


def build(kind: str, source: Path, out: Path) -> Path:
    code = f"import setuptools.build_meta as b; print(b.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.strip().splitlines()[-1]


def test_wheel_is_pure_and_whole(source: Path, tmp_path: Path) -> None:
    wheel = build("wheel", source, tmp_path)
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert names >= NEEDED
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"convswap"}


def test_sdist_holds_what_a_wheel_is_built_from(source: Path, tmp_path: Path) -> None:
    sdist = build("sdist", source, tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    with zipfile.ZipFile(build("wheel", unpacked, tmp_path)) as archive:
        assert set(archive.namelist()) >= NEEDED
