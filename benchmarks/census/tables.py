"""The census in Markdown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .file import SECTIONS, Record
from .reasons import in_general

Records = Mapping[str, Record]


def document(content: Mapping[str, Any], file: str | None) -> str:
    """The whole of what a census found, with the sections that it has.

    Args:
        content: of the census' file.
        file: its name, or None if there is none.
    """
    made_with = ", ".join(f"{library} {version}" for library, version in content["versions"].items())
    dates = ", ".join(f"{section} on {content['date'][section]}" for section in SECTIONS if section in content["date"])
    parts = [
        "# The census",
        "What becomes of architectures of torchvision and timm. Written by `python -m benchmarks.census`"
        + (f"; what was found of each model is in `{file}`. " if file else ". ")
        + f"{made_with}; {dates}.",
    ]
    if content.get("structure"):
        parts.append(structure_tables(content["structure"]))
    if content.get("numbers"):
        from .number_tables import number_tables

        parts.append(number_tables(content["numbers"]))
    if content.get("training"):
        from .number_tables import training_tables

        parts.append(training_tables(content["training"]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def structure_tables(records: Records) -> str:
    """Totals, what every target swaps, why the rest is kept, and what is out of the ordinary."""
    good = {name: record for name, record in records.items() if "failure" not in record}
    return "\n".join(
        (
            "## Structure",
            "",
            "Each model is built (on the meta device: no numbers), traced, and converted by every target with its "
            "default options wherever the target can. The plan is carried out, and the copy compared with the plan: in "
            "the place of each convolution that is swapped a layer of the right class, with as many parameters as the "
            "plan says, and all else as it was. That every convolution is a site is asked of the model's modules, and "
            "of what was made by the constructors of torch's convolutions while it was built.",
            "",
            *_totals(records, good),
            "",
            "### What each target swaps",
            "",
            *_swaps(good),
            "",
            "### Why convolutions are kept",
            "",
            "Of all models together. `…` stands for numbers and names.",
            "",
            *_reasons(good),
            "",
            "### Out of the ordinary",
            "",
            *_oddities(records, good),
        )
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a table: the first column to the left, numbers to the right."""
    rows = [[_cell(value) for value in row] for row in rows]
    right = [bool(rows) and all(re.fullmatch(r"[\d,.]*", row[i]) for row in rows) for i in range(len(head))]
    ruler = ["---:" if numbers else "---" for numbers in right]
    return [f"| {' | '.join(row)} |" for row in (list(head), ruler, *rows)]


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|").replace("\n", " ")


def _totals(records: Records, good: Records) -> Iterator[str]:
    convs: Counter[str] = sum((Counter(record.get("sites", {})) for record in good.values()), Counter())
    rows: list[tuple[str, Any]] = [
        ("models", len(records)),
        ("… without a result", len(records) - len(good)),
        ("… with convolutions", sum("sites" in record for record in good.values())),
        ("… traced as one graph", sum(record["whole"] for record in good.values() if "sites" in record)),
        ("… traced in regions", sum(not record["whole"] for record in good.values() if "sites" in record)),
        ("… that cannot be built on the meta device", sum("built" in record for record in good.values())),
        (
            "… whose shapes are unknown without `example_inputs`",
            sum("sites" in r and "unknown_shapes" in r for r in good.values()),
        ),
        ("convolutions that are sites", convs.total()),
        *((f"… {kind}", number) for kind, number in convs.most_common()),
        ("convolutions that are no site", sum(map(_no_site, good.values()))),
        ("conversions (model and target)", sum(len(record["targets"]) for record in good.values())),
        ("… that failed", len(list(_errors(good)))),
        ("layers swapped", sum(of["swapped"] for _, _, of in _outcomes(good) if "swapped" in of)),
        ("seconds of one core for one model, median", _median([r["seconds"]["all"] for r in good.values()])),
        ("minutes of one core for all", round(sum(r["seconds"]["all"] for r in good.values()) / 60, 1)),
    ]
    yield from table(("", "number"), rows)


def _no_site(record: Record) -> int:
    outside: Mapping[str, int] = record.get("outside", {})
    return len(record.get("missing", ())) + sum(outside.values())


def _median(values: Sequence[float]) -> float | str:
    return round(sorted(values)[len(values) // 2], 1) if values else ""


def _outcomes(records: Records) -> Iterator[tuple[str, str, Record]]:
    """Each model, target, and what the target did with the model."""
    for name, record in records.items():
        for target, outcome in record["targets"].items():
            yield name, target, outcome


def _errors(records: Records) -> Iterator[tuple[str, str, str]]:
    return ((name, target, outcome["error"]) for name, target, outcome in _outcomes(records) if "error" in outcome)


def _swaps(records: Records) -> list[str]:
    swapped: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    reached: Counter[str] = Counter()
    all_targets = dict.fromkeys(target for _, target, _ in _outcomes(records))
    for _, target, outcome in _outcomes(records):
        swapped[target] += outcome.get("swapped", 0)
        kept[target] += sum(outcome.get("kept", {}).values())
        reached[target] += bool(outcome.get("swapped"))
    rows = [(f"`{t}`", reached[t], swapped[t], kept[t]) for t in all_targets]
    return table(("target", "models with a swap", "convolutions swapped", "kept"), rows)


def _reasons(records: Records) -> Iterator[str]:
    numbers: Counter[tuple[str, str]] = Counter()
    models: Counter[tuple[str, str]] = Counter()
    for _, target, outcome in _outcomes(records):
        for why, number in outcome.get("kept", {}).items():
            numbers[target, why] += number
            models[target, why] += 1
    everywhere = _of_all_targets(numbers, {target for _, target, _ in _outcomes(records)})
    rows = [("(all)", why, numbers[key], models[key]) for why, key in everywhere.items()]
    order = list(dict.fromkeys(target for _, target, _ in _outcomes(records)))
    rest = [key for key in numbers if key[1] not in everywhere]
    rest.sort(key=lambda key: (order.index(key[0]), -numbers[key]))
    rows += [(f"`{key[0]}`", key[1], numbers[key], models[key]) for key in rest]
    yield from table(("target", "reason", "convolutions", "models"), rows)


def _of_all_targets(numbers: Counter[tuple[str, str]], targets: set[str]) -> dict[str, tuple[str, str]]:
    """Reasons that every target has for the same number of convolutions, and one of their keys each."""
    found: dict[str, dict[str, int]] = {}
    for (target, why), number in numbers.items():
        found.setdefault(why, {})[target] = number
    return {
        why: (next(iter(of)), why)
        for why, of in found.items()
        if set(of) == targets and len(targets) > 1 and len(set(of.values())) == 1
    }


def _oddities(records: Records, good: Records) -> Iterator[str]:
    rows = [(name, "no result", record["failure"]) for name, record in records.items() if "failure" in record]
    rows += [(name, f"`{target}`", error) for name, target, error in _errors(good)]
    for name, record in good.items():
        rows += [(name, "no site", missing) for missing in record.get("missing", ())]
        rows += [(name, "no module of it", f"{number} {kind}") for kind, number in record.get("outside", {}).items()]
    yield from _listed("Models without a result, conversions that failed, convolutions that are no site", rows)
    yield from _grouped(
        "Built in another way than on the meta device",
        good,
        lambda r: [r["built"].partition(" ")[2]] if "built" in r else [],
    )
    yield from _grouped(
        "Shapes unknown", good, lambda r: [r["unknown_shapes"]] if "sites" in r and "unknown_shapes" in r else []
    )
    yield from _grouped("Not traced as one graph", good, _why_in_parts)
    yield from _grouped("Sites that no call was seen of in evaluation mode", good, lambda r: r.get("unreached", ()))
    yield from _grouped("Convolutions that cannot be sites", good, lambda r: r.get("others", ()))
    slow = sorted(good, key=lambda name: -good[name]["seconds"]["all"])[:10]
    rows = [(name, sum(good[name].get("sites", {}).values()), good[name]["seconds"]["all"]) for name in slow]
    yield from ("#### The slowest", "", *table(("model", "convolutions", "seconds"), rows))


def _why_in_parts(record: Record) -> Iterable[str]:
    if "sites" not in record or record["whole"]:
        return ()
    if not record.get("failures"):
        return ("the model's own forward cannot be traced, its parts are",)
    # Of torch.fx's long explanations the first sentence is enough.
    return {f"a part cannot be traced: {in_general(why).partition('. ')[0]}" for why in record["failures"].values()}


def _listed(title: str, rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield from (f"#### {title}", "")
    yield from table(("model", "what", "why"), rows) if rows else ["None."]
    yield ""


def _grouped(title: str, records: Records, reasons: Any) -> Iterator[str]:
    """For each reason the models it holds for, the first few by name."""
    found: dict[str, list[str]] = {}
    for name, record in records.items():
        for why in reasons(record):
            found.setdefault(in_general(why), []).append(name)
    yield from (f"#### {title}", "")
    if not found:
        yield from ("None.", "")
        return
    rows = [
        (why, len(names), ", ".join(names[:6]) + (", …" if len(names) > 6 else ""))
        for why, names in sorted(found.items(), key=lambda item: -len(item[1]))
    ]
    yield from (*table(("why", "models", "such as"), rows), "")
