"""Writing files whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from .errors import FileError


def check_writable(path: Path, overwrite: bool) -> None:
    """Raise now what would stop a file from being written later.

    Raises:
        FileError: if the folder does not exist, the path is a folder, or the file exists and must not be overwritten.
    """
    try:
        if path.is_dir():
            raise FileError(f"{path} is a folder: name a file")
        if not path.parent.is_dir():
            raise FileError(f"the folder {path.parent} does not exist: make it first")
        if path.exists() and not overwrite:
            raise FileError(f"{path} exists already: choose another name, or allow it to be overwritten (--force)")
    except OSError as error:  # such as a name that is too long
        raise FileError(f"{path} cannot be written: {error.strerror or error}") from error


def write_atomically(path: Path, write: Callable[[Path], None], overwrite: bool) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it; on failure an older file stays whole.

    Raises:
        FileError: as `check_writable` does, and if writing fails.
    """
    check_writable(path, overwrite)
    temporary = path.with_name(f".convswap-{secrets.token_hex(8)}.tmp")  # short, where the file's own name is long
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # whatever mode the writer has left it in
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, overwrite: bool) -> None:
    """Write ``text`` in UTF-8, atomically."""
    write_atomically(path, lambda temporary: _write(temporary, text), overwrite)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
