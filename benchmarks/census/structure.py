"""The structure of a model: its convolutions, how far it is traced, and what every target does with it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from convswap import ConvswapError, Swap, trace
from convswap.conv_classes import CONVS
from convswap.costs import CostOnDemand
from convswap.errors import NothingToSwapError
from convswap.plan import Plan, plan_traced
from convswap.rewrite import build_layers, copy_with
from convswap.sites import ConvSite, Trace
from convswap.targets import all_targets

from .catalogue import build_and_tell
from .file import Record
from .made_convolutions import made_convolutions
from .prepared import SEED
from .reasons import in_general


def structure(name: str, targets: Iterable[str] | None = None) -> Record:
    """The record of an architecture on the meta device, see `structure_of`.

    Besides: ``built``, why it was not built on the meta device; ``outside``: convolutions that it holds on to and that
    are none of its modules, number by class; ``seconds``, that the whole took.
    """
    started = time.process_time()
    with made_convolutions() as made:
        model, built = build_and_tell(name)
    record = structure_of(model, targets)
    outside = made.outside(model)
    if outside:
        record["outside"] = outside
    if built is not None:
        record["built"] = built
    record["seconds"]["all"] = round(time.process_time() - started, 2)
    return record


def structure_of(model: nn.Module, targets: Iterable[str] | None = None) -> Record:
    """What is found in ``model``, as JSON values. What does not occur is left out.

    * ``parameters``; ``sites``: number by class; ``others``: what cannot be a site, by reason.
    * ``regions``: how many; ``whole``: whether it was traced as one graph, with nothing left out; ``failures``: the
      modules that could not be traced, and why; ``unknown_shapes``: why shapes are unknown.
    * ``missing``: convolutions of the model that are no site; ``unreached``: sites that no forward pass calls, by why.
    * ``targets``: for each, ``swapped``, how many; ``kept``: how many by reason `in_general`; ``error``, if any.
    * ``seconds``: for the trace, and for the plans of all targets and their layers.
    """
    started = time.process_time()
    found = trace(model)
    traced = time.process_time()
    record: Record = {
        "class": found.model,
        "parameters": found.parameters,
        "sites": Counter(site.kind for site in found.sites),
        "regions": len(found.regions),
        "whole": is_whole(found),
        "input_shape": found.input_shape,
        "unknown_shapes": found.unknown_shapes,
        "others": Counter(f"{other.kind}: {other.reason}" for other in found.others),
        "failures": _failures(found),
        "missing": sorted(_convolutions(model) - {site.name for site in found.sites}),
        "unreached": Counter(filter(None, (_why_unreached(site, found) for site in found.sites))),
        "targets": {},
    }
    record = {key: value for key, value in record.items() if value not in (None, {}, [])} | {"targets": {}}
    if found.sites:
        for target in targets or all_targets():
            record["targets"][target] = _try(target, model, found)
    seconds = {"trace": traced - started, "targets": time.process_time() - traced}
    record["seconds"] = {what: round(taken, 2) for what, taken in seconds.items()}
    return record


def is_whole(found: Trace) -> bool:
    """Whether one graph has all of a model's convolutions."""
    return len(found.regions) == 1 and not found.regions[0].name and not found.regions[0].failures


def _failures(found: Trace) -> dict[str, str]:
    failures = {}
    for region in found.regions:
        prefix = f"{region.name}." if region.name else ""
        failures.update({f"{prefix}{name}": why for name, why in region.failures})
    return failures


def _convolutions(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, CONVS)}


def _why_unreached(site: ConvSite, found: Trace) -> str | None:
    """Why no call of a site was seen in evaluation mode, or None if one was."""
    if site.training_only:
        return "runs in training mode only"
    if site.calls:
        return None
    if found.unknown_shapes is not None:
        return "no pass could be run that would call it"
    if site.node is None:
        return "neither a graph nor a pass, in either mode, leads to it"
    return "a graph leads to it, and the pass did not call it"


def _try(target: str, model: nn.Module, found: Trace) -> Record:
    """What a target does with a model, its plan carried out."""
    try:
        plan = plan_traced(found, model, [Swap("*", target)])
        layers = build_layers(plan.steps, seed=SEED)
        converted = copy_with(model, layers)
        places = {name for step in plan.swaps for name in step.site.names()}
        difference = _not_as_planned(plan, layers) or _difference(model, converted, places, layers)
    except NothingToSwapError as error:
        return {"swapped": 0, "kept": _in_general(error.reasons)}
    except ConvswapError as error:
        return {"error": str(error)}
    except Exception as error:  # a bug, which the record is to name
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    kept = _in_general(Counter(step.reason for step in plan.keeps))
    record: Record = {"swapped": len(plan.swaps)}
    if kept:
        record["kept"] = kept
    if difference is not None:
        record["error"] = difference
    return record


def _in_general(reasons: Mapping[str, int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for why, number in reasons.items():
        found[in_general(why)] += number
    return found


def _not_as_planned(plan: Plan, layers: dict[int, nn.Module]) -> str | None:
    """The first layer that is not what its step says, or None if all are.

    That is of the class of the layer that the plan told the cost of, with as many parameters.
    """
    for step in plan.swaps:
        assert isinstance(step.cost_after, CostOnDemand)
        layer, kind = layers[id(step.site.module)], type(step.cost_after.layer)
        parameters = sum(parameter.numel() for parameter in layer.parameters())
        if type(layer) is not kind:
            return f"{step.site.name} should be a {kind.__name__} and is a {type(layer).__name__}"
        if parameters != step.cost_after.parameters:
            return f"{step.site.name} has {parameters} parameters, and the plan says {step.cost_after.parameters}"
    return None


def _difference(model: nn.Module, converted: nn.Module, places: set[str], layers: dict[int, nn.Module]) -> str | None:
    """What is not as planned: a layer that is not in its place, or something else that is changed. None if all is."""
    old = dict(model.named_modules(remove_duplicate=False))
    new = dict(converted.named_modules(remove_duplicate=False))
    within = tuple(f"{name}." for name in places)
    for name, module in old.items():
        part = new.pop(name, None)
        if name in places:
            if part is not layers[id(module)]:
                return f"{name} should be a new layer and is a {type(part).__name__}"
        elif type(part) is not type(module):
            return f"{name} was a {type(module).__name__} and is a {type(part).__name__}"
        elif _tensors(part) != _tensors(module):
            return f"the tensors of {name} are others than they were"
        elif part is not None and part.training != module.training:
            return f"{name} is in another mode than it was"
    added = next((name for name in new if not name.startswith(within)), None)
    return None if added is None else f"{added} was not there"


def _tensors(module: nn.Module | None) -> list[tuple[str, Any]]:
    holders = () if module is None else (module._parameters, module._buffers)
    return [(name, _kind(value)) for holder in holders for name, value in holder.items()]


def _kind(tensor: Tensor | None) -> tuple[Any, ...] | None:
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad)
