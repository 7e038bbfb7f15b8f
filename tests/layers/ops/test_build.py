"""The builder, on a source that compiles in a second or fails at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from convswap.layers.ops import _build
from convswap.layers.ops._build import BuildError, build, library_path

from ... import fresh_process

needs_compiler = pytest.mark.skipif(
    subprocess.run(["sh", "-c", "command -v ${CXX:-c++}"], capture_output=True).returncode != 0,
    reason="needs a C++ compiler",
)

IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from convswap.layers.ops import _build
_build.SOURCES = Path(sys.argv[1])
print(_build.build("cpu"))
"""


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder of sources with one small file, and an empty cache."""
    folder = tmp_path / "sources"
    (folder / "cpu").mkdir(parents=True)
    (folder / "cuda").mkdir()
    (folder / "cpu" / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setattr(_build, "SOURCES", folder)
    monkeypatch.setenv("CONVSWAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CONVSWAP_CUDA_ARCHS", raising=False)
    return folder


def program(path, code):
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(0o755)
    return str(path)


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".lock", ".so", ".size"))


@needs_compiler
def test_compiled_once_and_again_after_a_change(sources, capsys):
    library = build("cpu")
    assert "compiling its cpu kernels" in capsys.readouterr().err
    made = library.stat().st_mtime_ns
    assert build("cpu") == library == library_path("cpu")
    assert library.stat().st_mtime_ns == made
    assert capsys.readouterr().err == ""
    assert not left_behind(library.parent)
    assert library.parent.stat().st_mode & 0o777 == 0o700
    (sources / "cpu" / "one.h").write_text("// a header counts too\n")
    assert build("cpu") != library
    (sources / "shared.h").write_text("// those of both backends as well\n")
    assert len({library, build("cpu"), library_path("cpu")}) == 2


def test_flags_and_compiler_are_part_of_the_key(sources, monkeypatch):
    before = library_path("cpu")
    monkeypatch.setenv("CXX", "c++ -g")
    assert library_path("cpu") != before


@needs_compiler
def test_four_at_once_compile_once(sources, tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv("CXX", program(tmp_path / "cxx", f'echo "$@" >> {log}\nsleep 1\nexec c++ "$@"'))
    running = [fresh_process.Running(IN_ANOTHER_PROCESS, str(sources)) for _ in range(4)]
    told = {process.wait(timeout=120).stdout.strip() for process in running}
    assert told == {str(library_path("cpu"))}
    assert Path(told.pop()).exists()
    assert len(log.read_text().splitlines()) == 2  # one source, and linking


@needs_compiler
def test_a_killed_builder_leaves_no_lock(sources, tmp_path, monkeypatch):
    started = tmp_path / "started"
    monkeypatch.setenv("CXX", program(tmp_path / "cxx", f"touch {started}\nexec sleep 600"))
    process = subprocess.Popen([sys.executable, "-c", IN_ANOTHER_PROCESS, str(sources)], start_new_session=True)
    while not started.exists():
        assert process.poll() is None
    os.killpg(process.pid, 9)
    process.wait(10)
    program(tmp_path / "cxx", 'exec c++ "$@"')
    assert build("cpu").exists()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("echo one.cpp:1: no such thing >&2; exit 1", "one.cpp:1: no such thing"),
        ("exit 3", "exit code 3"),
        ("true", "cannot be written to"),  # says that all is well, and has made nothing
    ],
)
def test_a_broken_compiler(sources, tmp_path, monkeypatch, code, told):
    monkeypatch.setenv("CXX", program(tmp_path / "cxx", code))
    with pytest.raises(BuildError, match=told):
        build("cpu")
    assert not library_path("cpu").exists()
    assert not left_behind(tmp_path / "cache")


def test_no_compiler(sources, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match=r"no-such-compiler cannot be run"):
        build("cpu")


def test_no_cuda_compiler(sources, monkeypatch):
    monkeypatch.setattr(_build, "nvcc", lambda: None)
    with pytest.raises(BuildError, match="install the CUDA toolkit"):
        build("cuda", ["90"])


def test_cache_that_cannot_be_made(sources, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONVSWAP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BuildError, match="set CONVSWAP_CACHE"):
        build("cpu")


def test_cache_of_another_user(sources, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: -1)
    with pytest.raises(BuildError, match="belongs to another user"):
        build("cpu")


def test_architectures(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(_build, "nvcc", lambda: "nvcc")
    monkeypatch.setattr(_build.torch.cuda, "device_count", lambda: 0)
    with pytest.raises(BuildError, match="no GPU is visible"):
        library_path("cuda")
    for wrong in ("9.0", "²"):
        with pytest.raises(BuildError, match=f"'{wrong}' is no compute capability"):
            library_path("cuda", ["80", wrong])
    assert library_path("cuda", ["90", "90"]) == library_path("cuda", ["90"])
    both = library_path("cuda", ["80", "90"])
    monkeypatch.setenv("CONVSWAP_CUDA_ARCHS", "90")
    assert library_path("cuda") != both
    both.touch()
    assert library_path("cuda") != both  # it is not whole
    both.with_suffix(".size").write_text("0")
    assert library_path("cuda") == both  # a library of more architectures serves
    monkeypatch.setenv("CONVSWAP_CUDA_ARCHS", "90, 120")
    assert library_path("cuda") != both


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [("CXX", '"', "is no command line"), ("CONVSWAP_CACHE", "~no-such-user/cache", "set CONVSWAP_CACHE")],
)
def test_an_environment_that_makes_no_sense(sources, monkeypatch, variable, value, told):
    monkeypatch.setenv(variable, value)
    with pytest.raises(BuildError, match=told):
        build("cpu")


def test_an_incomplete_installation(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(_build, "SOURCES", tmp_path / "nothing")
    with pytest.raises(BuildError, match="install convswap again"):
        build("cpu")


@needs_compiler
def test_a_library_that_is_cut_off_is_compiled_again(sources):
    library = build("cpu")
    whole = library.read_bytes()
    library.write_bytes(whole[: len(whole) // 2])
    assert not _build.is_compiled(library)
    assert build("cpu") == library
    assert library.read_bytes() == whole


def test_a_cache_that_others_may_write_to(sources, tmp_path, monkeypatch):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("CONVSWAP_CACHE", str(folder))
    with pytest.raises(BuildError, match="chmod go-w"):
        build("cpu")
