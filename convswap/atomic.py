"""Writing files whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from .errors import FileError


def check_writable(path: Path, overwrite: bool) -> None:
    """Raise now what would stop a file from being written later.

    Raises:
        FileError: if the folder does not exist, the path is no ordinary file, or the file exists and must not be
            overwritten.
    """
    try:
        written = _pointed_to(path)
        if written.is_dir():
            raise FileError(f"{path} is a folder: name a file")
        if not written.parent.is_dir():
            raise FileError(f"the folder {written.parent} does not exist: make it first")
        if os.path.lexists(path) and not overwrite:
            raise _exists(path)
        if os.path.lexists(written) and not written.is_file():
            raise FileError(f"{path} is no ordinary file, so it cannot be overwritten")
    except OSError as error:  # such as a name that is too long
        raise FileError(f"{path} cannot be written: {error.strerror or error}") from error


def write_atomically(path: Path, write: Callable[[Path], None], overwrite: bool) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it; on failure an older file stays whole.

    A symlink stays one: what it points to is written. A file that is overwritten keeps its permissions.

    Raises:
        FileError: as `check_writable` does, and if writing fails.
    """
    check_writable(path, overwrite)
    target = _pointed_to(path)
    temporary = target.with_name(f".convswap-{secrets.token_hex(8)}.tmp")  # short, where the file's own name is long
    try:
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
        temporary.chmod(0o600)  # nobody reads here what they may not read there
        write(temporary)
        with temporary.open("rb") as written:
            temporary.chmod(mode)  # whatever mode the writer has left it in
            os.fsync(written.fileno())
        if overwrite:
            os.replace(temporary, target)
        else:
            _move_to_new(temporary, target)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise FileError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, overwrite: bool) -> None:
    """Write ``text`` in UTF-8, atomically."""
    write_atomically(path, lambda temporary: _write(temporary, text), overwrite)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _pointed_to(path: Path) -> Path:
    """Where a file must be put for ``path`` to have it."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _exists(path: Path) -> FileError:
    return FileError(f"{path} exists already: choose another name, or allow it to be overwritten (--force)")


def _move_to_new(temporary: Path, target: Path) -> None:
    """Rename, unless somebody else has made ``target`` by now.

    Raises:
        FileExistsError: if they have.
    """
    try:
        os.link(temporary, target)  # which, unlike a rename, never replaces a file
    except FileExistsError:
        raise
    except (OSError, AttributeError):  # not every file system has hard links, nor every Python
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        os.replace(temporary, target)
