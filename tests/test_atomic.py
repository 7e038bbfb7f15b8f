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
        write_text(tmp_path / "a.txt", "new", overwrite=True)
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


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_overwriting_keeps_the_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(mode)
    write_text(path, "new", overwrite=True)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_nobody_else_may_read_what_is_being_written(tmp_path: Path) -> None:
    modes = []

    def write(temporary: Path) -> None:
        modes.append(stat.S_IMODE(temporary.stat().st_mode))

    write_atomically(tmp_path / "a.txt", write, overwrite=False)
    assert modes == [0o600]


# Links ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """A link to a file in another folder, which is not there yet."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.txt").symlink_to(Path("elsewhere") / "a.txt")
    return tmp_path / "link.txt"


@pytest.mark.parametrize("dangling", [True, False])
def test_link_stays_a_link(link: Path, dangling: bool) -> None:
    target = link.parent / "elsewhere" / "a.txt"
    if not dangling:
        target.write_text("old")
    write_text(link, "new", overwrite=True)
    assert link.is_symlink()
    assert not target.is_symlink()
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("dangling", [True, False])
def test_links_exist(link: Path, dangling: bool) -> None:
    target = link.parent / "elsewhere" / "a.txt"
    if not dangling:
        target.write_text("old")
    with pytest.raises(FileError, match=r"link.txt exists already: .* \(--force\)"):
        write_text(link, "new", overwrite=False)
    assert link.is_symlink()
    assert target.exists() is not dangling


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "lost.txt").symlink_to(tmp_path / "nowhere" / "a.txt")
    with pytest.raises(FileError, match=r"the folder .*nowhere does not exist"):
        write_text(tmp_path / "lost.txt", "new", overwrite=True)
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    with pytest.raises(FileError, match=r"loop.txt is no ordinary file"):
        write_text(tmp_path / "loop.txt", "new", overwrite=True)


@pytest.mark.skipif(os.name != "posix", reason="there are no named pipes")
def test_what_is_no_ordinary_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="pipe is no ordinary file, so it cannot be overwritten"):
        write_text(tmp_path / "pipe", "new", overwrite=True)
    assert (tmp_path / "pipe").is_fifo()


# Somebody else writes the same file -------------------------------------------------------------------------------


def no_links(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("hard_links", [True, False])
def test_file_of_somebody_else_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    path = tmp_path / "a.txt"
    if not hard_links:
        monkeypatch.setattr(os, "link", no_links)

    def write(temporary: Path) -> None:
        temporary.write_text("ours")
        path.write_text("theirs")

    with pytest.raises(FileError, match=r"a.txt exists already"):
        write_atomically(path, write, overwrite=False)
    assert path.read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_links)
    write_text(tmp_path / "a.txt", "new", overwrite=False)
    assert (tmp_path / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
