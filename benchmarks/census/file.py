"""The census' file: JSON with what is found of each model, a line for each, and what many have in common once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from convswap.atomic import write_text
from convswap.errors import FileError

Record = dict[str, Any]
CENSUS = Path(__file__).parent.parent / "census.json"
SECTIONS = ("structure", "numbers", "training")


def read_census(path: Path) -> dict[str, Any]:
    """What the file at ``path`` holds, by words instead of numbers; nothing if there is no file.

    Raises:
        FileError: if it is no census.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        targets, outcomes, reasons = (content.pop(key) for key in ("targets", "outcomes", "reasons"))
        for outcome in outcomes:
            if "kept" in outcome:
                outcome["kept"] = {reasons[int(index)]: number for index, number in outcome["kept"].items()}
        for record in content.get("structure", {}).values():
            if "targets" in record:
                found = zip(targets, record["targets"], strict=False)
                record["targets"] = {to: dict(outcomes[index]) for to, index in found if index is not None}
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise FileError(f"{path} is no census: {error}") from error
    return cast(dict[str, Any], content)


def write_census(path: Path, content: Mapping[str, Any]) -> None:
    """Write the file at once.

    What comes again and again is written once, and by its number elsewhere: reasons, and what a target does with a
    model. A record of the structure has these in the order of ``"targets"``.
    """
    records = content.get("structure", {})
    targets = list(dict.fromkeys(target for record in records.values() for target in record.get("targets", {})))
    reasons, outcomes = _Numbered(), _Numbered()

    def number(outcome: Record | None) -> int | None:
        if outcome is None:
            return None
        if "kept" in outcome:
            outcome = {**outcome, "kept": {reasons.of(why): count for why, count in outcome["kept"].items()}}
        return outcomes.of(_compact(outcome))

    structure = {}
    for name, record in records.items():
        structure[name] = dict(record)
        if "targets" in record:
            numbers = [number(record["targets"].get(target)) for target in targets]
            structure[name]["targets"] = numbers if record["targets"] else []
    body = {**content, "structure": structure, "targets": targets}
    body |= {"outcomes": [json.loads(one) for one in outcomes], "reasons": list(reasons)}
    write_text(path, _text(body), overwrite=True)


class _Numbered(dict[str, int]):
    """Texts, numbered as they come."""

    def of(self, text: str) -> int:
        return self.setdefault(text, len(self))


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
