"""Routing guides from elsewhere in a network to the layers that they guide, by edits of its traced graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .errors import GuideError
from .generated_forward import (
    GraphCode,
    GuidedForward,
    check_class,
    further_inputs,
    guided_forward,
    plain_class,
)
from .graph_model import constants_of, graphs_of, set_graphs_of
from .guide_nodes import (
    MODEL_INPUT,
    first_name,
    further_input,
    guide_in_part,
    guide_in_whole,
    guide_node,
    placeholders,
)
from .inplace import only_read
from .layers.hypernet_conv import HypernetConv2d
from .modules import join
from .regions import TracedRegion, trace_regions
from .throwaway import cleared_caches, throwaway_copy, untouched_randomness
from .tracer import opaque_modules


@dataclass
class Routed:
    """A part of a model with the guides that are routed within it.

    Attributes:
        region: its graphs, edited.
        routes: the guides of its layers, both named relative to the part.
        inputs: further inputs that the graphs have got.
    """

    region: TracedRegion
    routes: dict[str, str]
    inputs: tuple[str, ...]


def route_guides(model: nn.Module) -> None:
    """Change the forward of ``model``, or of those parts of it that are regions, so that its guided layers get guides.

    Layers that are guided by their own input need nothing of the kind. Everything is found and made before anything is
    changed.

    Raises:
        GuideError: if a guide cannot be routed.
        ModelError: if the code of a part cannot be a graph.
    """
    if not any(True for _ in unrouted(model)):
        return
    with untouched_randomness(), cleared_caches(model):
        copied = throwaway_copy(model, FakeTensorMode(allow_non_fake_inputs=True))
        parts = [part for part in routed_parts(copied, opaque_modules(model)) if part.routes]
    changes: list[Callable[[], None]] = []
    for part in parts:
        root, traced = model.get_submodule(part.region.name), copied.get_submodule(part.region.name)
        changes.append(functools.partial(root.__dict__.update, constants_of(part.region, traced, root)))
        if isinstance(root, fx.GraphModule):
            changes.append(functools.partial(_install, root, part))
        else:
            made = guided_code(part, plain_class(root)).subclass
            changes.append(functools.partial(setattr, root, "__class__", made))
    for change in changes:
        change()


def _install(root: fx.GraphModule, part: Routed) -> None:
    """Let a graph module run the edited graphs."""
    inputs = (*further_inputs(root), *part.inputs)
    set_graphs_of(root, part.region.evaluation, part.region.training, inputs)


def unrouted(model: nn.Module) -> Iterator[tuple[str, HypernetConv2d]]:
    """Layers that are guided from elsewhere and that no forward hands a guide yet, by their first names."""
    handed: set[int] = set()
    for module in model.modules():
        changed = guided_forward(module)
        for name in () if changed is None else changed.routes:
            with suppress(AttributeError):  # the user has put something else there
                handed.add(id(module.get_submodule(name)))
        if isinstance(module, fx.GraphModule):
            handed.update(_handed_by_graph(module))
    for name, module in model.named_modules():
        if isinstance(module, HypernetConv2d) and module.guide is not None and id(module) not in handed:
            yield name, module


def _handed_by_graph(module: fx.GraphModule) -> Iterator[int]:
    """Identities of the guided layers that a graph module calls with a guide, or in parts."""
    for node in (node for graph in graphs_of(module) if graph is not None for node in graph.nodes):
        if node.op == "call_module":
            target = str(node.target)
            yield id(module.get_submodule(target.rpartition(".")[0]))
            if _has_guide(node):
                yield id(module.get_submodule(target))


def routed_parts(copied: nn.Module, opaque: Mapping[str, str], everything: bool = False) -> list[Routed]:
    """The regions of ``copied``, a throwaway copy, with graphs that are edited where there are guides to be routed.

    Args:
        copied: parts whose forward was changed before get their own classes back, and all edits are made anew.
        opaque: see `opaque_modules`; of the model that was copied.
        everything: do that in all regions, not only where there is something new to be routed.

    Raises:
        GuideError: if a guide cannot be routed.
    """
    wanted = dict(unrouted(copied))
    inputs: dict[int, tuple[str, ...]] = {}
    if guided_forward(copied) is not None:
        inputs[id(copied)] = further_inputs(copied)
        wanted.update(_undone(copied, copied))
    while True:
        regions = trace_regions(copied, opaque=opaque)
        roots = [copied.get_submodule(r.name) for r in regions if everything or _calls(r, copied, wanted)]
        changed = [root for root in roots if guided_forward(root) is not None]
        if not changed:
            break
        for root in changed:
            inputs[id(root)] = further_inputs(root)
            wanted.update(_undone(root, copied))
    parts = [_route(r, copied, wanted, inputs.get(id(copied.get_submodule(r.name)), ())) for r in regions]
    reached = {id(copied.get_submodule(join(part.region.name, name))) for part in parts for name in part.routes}
    missing = [name for name, layer in wanted.items() if id(layer) not in reached]
    if missing:
        raise GuideError(
            f"no traced path leads to {missing[0]!r}, so its guide {wanted[missing[0]].guide!r} cannot be routed to it"
        )
    return parts


def _undone(root: nn.Module, model: nn.Module) -> dict[str, HypernetConv2d]:
    """Give ``root`` its own class back; the layers that its forward handed guides."""
    changed = guided_forward(root)
    assert changed is not None
    check_class(root, changed, "converting again")
    root.__class__ = changed.base
    prefix = next(name for name, module in model.named_modules() if module is root)
    layers = {}
    for name, guide in changed.routes.items():
        layer: Any = root.get_submodule(name)
        layer.guide = guide_in_whole(guide, prefix)
        layers[join(prefix, name)] = layer
    return layers


def _calls(region: TracedRegion, model: nn.Module, wanted: Mapping[str, HypernetConv2d]) -> bool:
    layers = {id(layer) for layer in wanted.values()}
    root = model.get_submodule(region.name)
    return any(
        node.op == "call_module" and id(root.get_submodule(str(node.target))) in layers
        for graph in region.graphs()
        for node in graph.nodes
    )


def _route(
    region: TracedRegion, model: nn.Module, wanted: Mapping[str, HypernetConv2d], before: tuple[str, ...]
) -> Routed:
    """``region`` with its guides routed; ``before`` are the further inputs that it had before, which come first."""
    root = model.get_submodule(region.name)
    names = {id(layer): name for name, layer in wanted.items()}
    routes: dict[str, str] = {}
    inputs: dict[str, None] = dict.fromkeys(before)
    for graph in region.graphs():
        for call in [node for node in graph.nodes if node.op == "call_module"]:
            layer = root.get_submodule(str(call.target))
            if id(layer) not in names or _has_guide(call):
                continue
            whole_guide = str(layer.guide)
            try:
                if region.half is not None:
                    raise GuideError(f"{region.half}, so no guide can be routed in it")
                of_whole = whole_guide == MODEL_INPUT or further_input(whole_guide) not in (None, *before)
                if region.name and of_whole:
                    raise GuideError(f"its guide is {whole_guide!r}, and it is in {region.name!r}, traced on its own")
                guide = guide_in_part(first_name(model, whole_guide), region.name)
                name = _add_route(graph, call, guide, root)
            except GuideError as error:
                raise GuideError(f"{names[id(layer)]} cannot be guided: {error}") from None
            routes[str(call.target)] = guide
            if name is not None:
                inputs[name] = None
    for graph in region.graphs() if routes else ():  # both modes are given the same, in the same order
        for name in inputs:
            _further_placeholder(graph, name)
    return Routed(region, routes, tuple(inputs))


def _add_route(graph: fx.Graph, call: fx.Node, guide: str, root: nn.Module) -> str | None:
    """Hand ``call`` its guide; the name of a further input, if that is what it is."""
    node = guide_node(graph, call, guide)
    added = None
    if node is None:
        added = further_input(guide)
        node = _further_placeholder(graph, str(added))
    call.kwargs = {**call.kwargs, "guide": _kept_from_changes(graph, node, root)}
    return added


def _has_guide(call: fx.Node) -> bool:
    return len(call.args) > 1 or "guide" in call.kwargs


def _further_placeholder(graph: fx.Graph, name: str) -> fx.Node:
    """The placeholder of a further input, after those that have no default."""
    inputs = placeholders(graph)
    known = next((node for node in inputs if node.target == name), None)
    if known is not None:
        return known
    before = next((node for node in inputs if node.args or str(node.target).startswith("*")), None)
    if before is None:
        before = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(before):
        return graph.placeholder(name)


def _kept_from_changes(graph: fx.Graph, node: fx.Node, root: nn.Module) -> fx.Node:
    """``node``, or a copy of its value where what follows may change it in place before it is read as a guide."""
    if only_read(node, root, besides=_is_kept):
        return node
    known = next((user for user in node.users if user.meta.get(_KEPT)), None)
    if known is not None:
        return known
    after = node
    if node.op == "placeholder":
        after = placeholders(graph)[-1]
    with graph.inserting_after(after):
        kept = graph.call_method("clone", (node,))
    kept.meta[_KEPT] = True
    return kept


_KEPT = "convswap_kept"


def _is_kept(user: fx.Node) -> bool:
    return bool(user.meta.get(_KEPT))


def guided_code(part: Routed, base: type[nn.Module]) -> GuidedForward:
    """The forward of a module of class ``base`` that is the root of ``part``."""
    evaluation, training = (
        GraphCode.of(graph, tuple(str(node.target) for node in placeholders(graph)))
        for graph in (part.region.evaluation, part.region.training or part.region.evaluation)
    )
    return GuidedForward(base, part.routes, part.inputs, evaluation, training)
