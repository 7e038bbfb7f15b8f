"""The census' file: JSON with what is found of each model, written when a run is over, and what a broken run left."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Collection, Mapping
from datetime import date
from pathlib import Path
from typing import Any, TextIO, cast

import timm
import torch
import torchvision

from convswap import __version__
from convswap.atomic import write_text
from convswap.errors import FileError

Record = dict[str, Any]
SECTIONS = ("structure", "numbers", "training")


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


def read_census(path: Path) -> dict[str, Any]:
    """What the file at ``path`` holds, reasons in words; nothing if there is no file.

    Raises:
        FileError: if it is no census.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        reasons = content.pop("reasons")
        for record in content.get("structure", {}).values():
            for outcome in record.get("targets", {}).values():
                if "kept" in outcome:
                    outcome["kept"] = {reasons[int(index)]: number for index, number in outcome["kept"].items()}
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise FileError(f"{path} is no census: {error}") from error
    return cast(dict[str, Any], content)


def write_census(path: Path, content: Mapping[str, Any]) -> None:
    """Write the file at once; reasons, which come again and again, once each and by number elsewhere."""
    numbers: dict[str, int] = {}
    structure = {name: _with_numbers(record, numbers) for name, record in content.get("structure", {}).items()}
    body = {**content, "structure": structure, "reasons": list(numbers)}
    write_text(path, _text(body), overwrite=True)


def _text(body: Mapping[str, Any]) -> str:
    """JSON with a line for each record, so that a difference of two files can be read."""
    parts = []
    for key, value in body.items():
        if key in SECTIONS:
            lines = ",\n".join(f"{json.dumps(name)}:{_compact(record)}" for name, record in value.items())
            parts.append(f"{json.dumps(key)}:{{\n{lines}\n}}")
        elif isinstance(value, list):
            parts.append(f"{json.dumps(key)}:[\n" + ",\n".join(map(_compact, value)) + "\n]")
        else:
            parts.append(f"{json.dumps(key)}:{_compact(value)}")
    return "{" + ",\n".join(parts) + "}\n"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _with_numbers(record: Record, numbers: dict[str, int]) -> Record:
    """``record`` with the numbers of its reasons in their place, those of new ones added to ``numbers``."""
    if not record.get("targets"):
        return record
    targets = {}
    for target, outcome in record["targets"].items():
        kept = {numbers.setdefault(why, len(numbers)): count for why, count in outcome.get("kept", {}).items()}
        targets[target] = {**outcome, "kept": kept} if kept else outcome
    return {**record, "targets": targets}
