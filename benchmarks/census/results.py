"""What a run finds, model by model: kept as it comes, and put into the census' file when the run is over."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Collection
from datetime import date
from pathlib import Path
from typing import Any, TextIO

import timm
import torch
import torchvision

from convswap import __version__
from convswap.errors import FileError

from .file import SECTIONS, Record, read_census, write_census


def versions() -> dict[str, str]:
    """What the results depend on."""
    return {
        "convswap": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
    }


class Results:
    """One section of the file, its records by name.

    Each record is appended to a file of JSON lines as it comes. `write` merges them into the JSON file and removes the
    lines; a run that is broken off leaves them, and the next one finds them in ``begun``. Models without a result are
    not among those: they are tried again.
    """

    def __init__(self, path: Path, section: str, whole: bool) -> None:
        """Open the section of the file at ``path``, which need not be there.

        Args:
            path: of the JSON file. The lines are beside it.
            section: one of ``SECTIONS``.
            whole: whether the records are to be all that the section has; else they replace those of the same names.

        Raises:
            FileError: if what is there is no census, other records in it were made with other versions, or the lines
                cannot be written or belong to a run that is going on.
        """
        self.path, self.section, self.whole = path, section, whole
        self.lines = path.with_suffix(f".{section}{'' if whole else '.some'}.jsonl")
        self._content()
        self._file = self._open()
        self.begun = self._read_lines()

    def _content(self) -> dict[str, Any]:
        content = read_census(self.path)
        old = content.get("versions")
        replaced = self.section if self.whole else None
        if any(content.get(section) for section in SECTIONS if section != replaced) and old != versions():
            raise FileError(
                f"{self.path} was made with {_told(old)}, and this is {_told(versions())}: give another file, or "
                "remove it"
            )
        return content

    def _open(self) -> TextIO:
        try:
            self.lines.parent.mkdir(parents=True, exist_ok=True)
            file = self.lines.open("a+", encoding="utf-8")
        except OSError as error:
            raise FileError(f"{self.lines} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise FileError(f"{self.lines} is of a run that is going on: give another file, or wait for it") from None
        return file

    def _read_lines(self) -> dict[str, Record]:
        """The records of a run that was broken off; with other versions than these, they are of no use."""
        self._file.seek(0)
        text = self._file.read()
        if text and not text.endswith("\n"):  # the last line, half written
            self._file.write("\n")
        found: dict[str, Record] = {}
        for line in text.splitlines():
            try:
                name, made_with, record = json.loads(line)
            except (ValueError, TypeError):
                continue
            if made_with == versions() and "failure" not in record:
                found[name] = record
        return found

    def add(self, name: str, record: Record) -> None:
        """Keep what was found of a model.

        Raises:
            FileError: if it cannot be written.
        """
        self.begun[name] = record
        try:
            self._file.write(json.dumps([name, versions(), record]) + "\n")
            self._file.flush()
        except OSError as error:
            raise FileError(f"{self.lines} cannot be written: {error.strerror}") from error

    def write(self, names: Collection[str]) -> dict[str, Any]:
        """Put the records of these models into the JSON file, and return its content.

        Raises:
            FileError: if the file is no census, or other records in it were made with other versions.
        """
        content = self._content()
        content["versions"] = versions()
        content.setdefault("date", {})[self.section] = date.today().isoformat()
        records = {} if self.whole else content.get(self.section, {})
        records = {**records, **{name: self.begun[name] for name in names}}
        content[self.section] = {name: records[name] for name in sorted(records)}
        write_census(self.path, content)
        self.lines.unlink(missing_ok=True)
        self._file.close()
        return content


def _told(made_with: Any) -> str:
    return ", ".join(f"{library} {version}" for library, version in dict(made_with or {}).items()) or "unknown versions"
