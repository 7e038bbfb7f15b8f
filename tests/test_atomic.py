from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from convswap.atomic import check_writable, write_atomically, write_text
from convswap.errors import FileError


def test_whole_file_with_no_other(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "größer\n", overwrite=False)
    assert (tmp_path / "a.txt").read_bytes() == "größer\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_file_is_not_there_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert path.read_text() == "old"

    write_atomically(path, write, overwrite=True)
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("x"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(FileError if isinstance(error, OSError) else type(error)) as told:
        write_atomically(path, write, overwrite=True)
    if isinstance(error, OSError):
        assert str(told.value) == f"{path} could not be written: No space left on device"
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_failing_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(FileError, match="could not be written: Permission denied"):
        write_text(tmp_path / "a.txt", "new", overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_existing_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileError, match=r"a.txt exists already: .* \(--force\)"):
        write_text(path, "new", overwrite=False)
    assert path.read_text() == "old"
    check_writable(path, overwrite=True)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is a folder: name a file"):
        check_writable(tmp_path, overwrite=True)
    with pytest.raises(FileError, match=r"the folder .*nowhere does not exist: make it first"):
        check_writable(tmp_path / "nowhere" / "a.txt", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"the folder .*file does not exist"):
        check_writable(tmp_path / "file" / "a.txt", overwrite=True)


def test_longest_name(tmp_path: Path) -> None:
    write_text(tmp_path / ("a" * 255), "new", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a" * 255]
    with pytest.raises(FileError, match="File name too long"):
        write_text(tmp_path / ("a" * 256), "new", overwrite=False)


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text("new")
        temporary.chmod(0o600)  # as some writers leave their files

    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "a.txt", write, overwrite=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == mode
