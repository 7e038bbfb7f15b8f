"""The numbers of the census: a model converted to every target and compared with the original, in double precision."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from convswap import Swap, trace, verify
from convswap.carried_report import attach_report
from convswap.errors import GrowthWarning
from convswap.plan import Plan, plan_traced
from convswap.recipe import make_recipe
from convswap.report_making import make_report
from convswap.rewrite import build_layers, copy_with
from convswap.sites import Trace
from convswap.targets import all_targets
from convswap.verification import Verification

from .budget import LEFT_OUT, groups, keeping, left_out
from .catalogue import build
from .magnitudes import greatest, rounded
from .prepared import SEED, in_double
from .smallest import SmallestInput, smallest_input
from .turns import by_turns, told

BORDER_TARGETS = frozenset({"padding_free", "extrapolated", "partial", "random_pad"})
"""Those that promise the interior alone: they are compared on larger inputs, whose maps have one."""

ROOM = 96
"""Pixels that those have at least, 3 on each axis of a map of stride 32."""

MORE_ROOM = 224
"""Pixels for the layers whose windows all cross the border on inputs of that size."""

FRAMES = 32
"""Of videos for them."""

PARAMETER_LIMIT = 2**30
"""Bytes that the layers of a converted model may take together, with what is computed by them."""

GROUPS = 4
"""Converted models that the layers are distributed over, where one would take more."""

MEMORY_LIMIT = 8 * 2**30
"""Bytes that the comparisons of one model may ask for."""

TIME_LIMIT = 900
"""Seconds of a core after which no target is begun."""

NO_INTERIOR = "each window crosses the border"
LARGE = 250_000
"""Numbers in a sample from which a batch is a single one."""


def numbers(name: str, targets: Iterable[str] | None = None) -> dict[str, Any]:
    """Convert an architecture to each of ``targets``, by default all, with their default options, and compare.

    The targets that differ at the border are compared on inputs of at least `ROOM` pixels, and those of their layers
    that have no interior there on ones of `MORE_ROOM`.

    Returns:
        JSON values: the inputs by size, and for every target what `compare` gives, without what is None or empty.
    """
    wanted = list(targets or all_targets())
    outline = build(name)
    within = [to for to in wanted if to in BORDER_TARGETS]
    record: dict[str, Any] = {"targets": {}}
    start = time.process_time()
    if len(within) < len(wanted):
        given = smallest_input(name, outline)
        record["input"] = str(given)
        _on(name, given, {to: None for to in wanted if to not in within}, record["targets"], start)
    if within:
        given = smallest_input(name, outline, least=ROOM)
        record["roomy_input"] = str(given)
        _on(name, given, dict.fromkeys(within), record["targets"], start)
        without = {to: record["targets"][to].pop("without_interior", []) for to in within}
        if any(without.values()):
            larger = smallest_input(name, outline, least=MORE_ROOM if len(given.shape) == 3 else ROOM, frames=FRAMES)
            again: dict[str, Any] = {}
            if larger != given:  # models of one size have no larger ones
                record["roomiest_input"] = str(larger)
                _on(name, larger, {to: only for to, only in without.items() if only}, again, start)
            for to, outcome in again.items():
                outcome.pop("without_interior", None)
                _add(record["targets"][to], outcome)
    record["targets"] = {to: told(outcome) for to, outcome in record["targets"].items()}
    record["seconds"] = round(time.process_time() - start, 1)
    return record


def _on(
    name: str,
    given: SmallestInput,
    targets: dict[str, Collection[str] | None],
    records: dict[str, Any],
    begun: float,
) -> None:
    """Fill in the records of ``targets``, of all layers or of those that are named alone."""
    model = given.model(name)
    found = traced(model, given)
    model.double()
    call = given.call(batch_of(given), dtype=torch.float64)
    end = begun + TIME_LIMIT
    by_turns(targets, records, lambda to: compare(model, found, to, call, targets[to]), end, MEMORY_LIMIT)


def _add(record: dict[str, Any], again: dict[str, Any]) -> None:
    """Add what layers without an interior gave on a larger input to the record of a target."""
    if not again.get("swapped"):  # it failed, was not begun, or keeps them all at this size: they stay without
        record.setdefault("error", again.get("error", "layers without an interior are kept on larger inputs"))
        return
    if again["swapped"] != record["not_compared"].pop(NO_INTERIOR):
        record.setdefault("error", "some layers without an interior are kept on larger inputs")
    merged = _merged([record, again])
    record.update({key: merged[key] for key in merged if key not in ("output", "output_not_compared")})


def _merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The outcome for all layers from those for some of them each."""
    verified, not_compared = Counter[str](), Counter[str]()
    worst: dict[str, float] = {}
    for part in parts:
        verified.update(part["verified"])
        not_compared.update(part["not_compared"])
        for fidelity, error in part["worst"].items():
            worst[fidelity] = greatest((worst.get(fidelity, 0.0), error))
    outputs = [part["output"] for part in parts if part["output"] is not None]
    merged: dict[str, Any] = {
        "verified": dict(verified),
        "worst": worst,
        "output": greatest(outputs) if outputs else None,
        "not_compared": dict(not_compared),
    }
    shares = [part["least_compared"] for part in parts if part["least_compared"] is not None]
    merged["least_compared"] = min(shares, default=None)
    for key in ("output_not_compared", "error"):
        words = [part[key] for part in parts if key in part]
        if words and not (key == "output_not_compared" and outputs):
            merged[key] = words[0]
    return merged


def batch_of(given: SmallestInput) -> int:
    """Two samples, as kernels may be made for each of them; one where they are large."""
    return 1 if math.prod(given.shape) >= LARGE else 2


def traced(model: nn.Module, given: SmallestInput) -> Trace:
    """The trace of a model with these inputs, by a real pass where its path depends on the data."""
    return trace(model, given.call(batch_of(given)), real_pass=given.kind == "list of images")


def compare(
    model: nn.Module, found: Trace, to: str, call: tuple[Any, ...], only: Collection[str] | None = None
) -> dict[str, Any]:
    """A model converted to one target and compared with the original, layer by layer and at the output.

    Where all layers at once would take too much memory, a few models with some of them each are compared.

    Args:
        model: in double precision.
        found: its trace.
        to: the target.
        call: the inputs.
        only: names of the layers that are converted, by default all.

    Returns:
        JSON values: ``swapped``; ``verified``, layers with something compared that keep their promise, by fidelity;
        ``worst``, greatest relative error by fidelity; ``least_compared``, the smallest share of a layer's outputs that
        was compared, of those of which anything was; ``output``, relative error, or None and why in
        ``output_not_compared``; ``not_compared``, numbers of layers by reason; ``without_interior``, names of layers;
        and an ``error`` where layers break their promise, or the outputs differ though all are exact.

    Raises:
        NothingToSwapError: if all convolutions are kept.
    """
    plan = plan_traced(found, model, [Swap("*", to)], call)
    if only is not None:
        plan = keeping(plan, "", lambda step: step.site.name not in only)
    parts = groups(plan, PARAMETER_LIMIT, GROUPS, batch=len(call[0]))
    outcomes, without = [], []
    for part in parts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GrowthWarning)
            converted = carried_out(part, model)
            with in_double():
                checked = verify(model, converted, call)
        outcomes.append(_summary(checked))
        without += [check.name for check in checked.layers if check.fidelity == "interior" and check.compared == 0]
        del converted
    result: dict[str, Any] = {"swapped": len(plan.swaps), **_merged(outcomes)}
    if without:
        result["without_interior"] = without
    if left_out(parts[0]):
        result["not_compared"][LEFT_OUT] = left_out(parts[0])
    if sum(result["verified"].values()) + sum(result["not_compared"].values()) != len(plan.swaps):
        result.setdefault("error", "some layers were neither compared nor told not to be")
    return result


def carried_out(plan: Plan, model: nn.Module) -> nn.Module:
    """A copy of ``model`` with the layers of ``plan``, which shares the parameters of all else, to take less memory."""
    instead: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    converted = copy_with(model, instead | build_layers(plan.steps, SEED))
    attach_report(converted, make_report(plan, make_recipe(plan.steps, SEED), None))
    return converted


def _summary(checked: Verification) -> dict[str, Any]:
    compared = [check for check in checked.layers if check.compared > 0]
    worst: dict[str, float] = {}
    for check in compared:
        worst[check.fidelity] = greatest((worst.get(check.fidelity, 0.0), check.relative_error))
    verified = Counter(check.fidelity for check in compared if check.passed)
    output = checked.output_relative_error
    summary: dict[str, Any] = {
        "verified": dict(verified),
        "worst": {fidelity: rounded(error) for fidelity, error in worst.items()},
        "least_compared": min((round(check.compared, 4) for check in compared), default=None),
        "output": None if output is None else rounded(output),
        "not_compared": dict(Counter(_reasons(checked))),
    }
    if not checked.same_shapes:
        summary["output_not_compared"] = "the outputs have other shapes"
    elif output is None:
        summary["output_not_compared"] = "the output has no numbers"
    failed = {check.name: check.relative_error for check in checked.layers if not check.passed}
    if failed:
        name = max(failed, key=lambda name: failed[name])
        summary["error"] = f"{len(failed)} layers break their promise, most of all {name} ({failed[name]:.1e})"
    elif not checked.output_passed:
        how = "have other shapes" if output is None else f"differ (relative error {output:.1e})"
        summary["error"] = f"the outputs {how}"
    return summary


def _reasons(checked: Verification) -> Iterator[str]:
    for _ in checked.not_run:
        yield "it does not run in evaluation mode"
    for check in checked.layers:
        if check.compared == 0:
            yield NO_INTERIOR if check.fidelity == "interior" else "the original gives no finite numbers"
