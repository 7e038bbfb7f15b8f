"""Routing guides from elsewhere in a network to the layers that they guide, by edits of its traced graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from .errors import GuideError, ModelError
from .generated_forward import FURTHER_INPUTS, GraphCode, GuidedForward, further_inputs, guided_forward, plain_class
from .guide_nodes import MODEL_INPUT, further_input, guide_in_part, guide_in_whole, guide_node, placeholders
from .layers import ConvLayer
from .layers.hypernet_conv import HypernetConv2d
from .regions import TracedRegion, trace_regions
from .throwaway import cleared_caches, throwaway_copy, untouched_randomness


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

    Layers that are guided by their own input need nothing of the kind. Everything is found before anything is changed.

    Raises:
        GuideError: if a guide cannot be routed.
    """
    if not any(True for _ in unrouted(model)):
        return
    with untouched_randomness(), cleared_caches(model):
        copied = throwaway_copy(model, FakeTensorMode(allow_non_fake_inputs=True))
        parts = [part for part in routed_parts(copied) if part.routes]
    made = []
    for part in parts:
        root, traced = model.get_submodule(part.region.name), copied.get_submodule(part.region.name)
        made.append((part, root, traced, guided_code(part, plain_class(root))))
    for part, root, traced, code in made:
        for graph in part.region.graphs():
            take_constants(graph, traced, root)
        if isinstance(root, fx.GraphModule):
            root.graph = part.region.evaluation
            setattr(root, FURTHER_INPUTS, (*further_inputs(root), *part.inputs))
        else:
            root.__class__ = code.subclass


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
    for node in module.graph.nodes:
        if node.op == "call_module":
            target = str(node.target)
            yield id(module.get_submodule(target.rpartition(".")[0]))
            if _has_guide(node):
                yield id(module.get_submodule(target))


def routed_parts(copied: nn.Module, everything: bool = False) -> list[Routed]:
    """The regions of ``copied``, a throwaway copy, with graphs that are edited where there are guides to be routed.

    Args:
        copied: parts whose forward was changed before get their own classes back, and all edits are made anew.
        everything: do that in all regions, not only where there is something new to be routed.

    Raises:
        GuideError: if a guide cannot be routed.
    """
    wanted = dict(unrouted(copied))
    while True:
        regions = trace_regions(copied)
        roots = [copied.get_submodule(r.name) for r in regions if everything or _calls(r, copied, wanted)]
        changed = [root for root in roots if guided_forward(root) is not None]
        if not changed:
            break
        for root in changed:
            wanted.update(_undone(root, copied))
    parts = [_route(region, copied, wanted) for region in regions]
    reached = {id(copied.get_submodule(_join(part.region.name, name))) for part in parts for name in part.routes}
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
    root.__class__ = changed.base
    prefix = next(name for name, module in model.named_modules() if module is root)
    layers = {}
    for name, guide in changed.routes.items():
        layer: Any = root.get_submodule(name)
        layer.guide = guide_in_whole(guide, prefix)
        layers[_join(prefix, name)] = layer
    return layers


def _calls(region: TracedRegion, model: nn.Module, wanted: Mapping[str, HypernetConv2d]) -> bool:
    layers = {id(layer) for layer in wanted.values()}
    root = model.get_submodule(region.name)
    return any(
        node.op == "call_module" and id(root.get_submodule(str(node.target))) in layers
        for graph in region.graphs()
        for node in graph.nodes
    )


def _route(region: TracedRegion, model: nn.Module, wanted: Mapping[str, HypernetConv2d]) -> Routed:
    root = model.get_submodule(region.name)
    names = {id(layer): name for name, layer in wanted.items()}
    routes: dict[str, str] = {}
    inputs: dict[str, None] = {}
    for graph in region.graphs():
        for call in [node for node in graph.nodes if node.op == "call_module"]:
            layer = root.get_submodule(str(call.target))
            if id(layer) not in names or _has_guide(call):
                continue
            whole_guide = str(layer.guide)
            try:
                if region.name and (whole_guide == MODEL_INPUT or further_input(whole_guide) is not None):
                    raise GuideError(f"its guide is {whole_guide!r}, and it is in {region.name!r}, traced on its own")
                guide = guide_in_part(whole_guide, region.name)
                name = _add_route(graph, call, guide, root)
            except GuideError as error:
                raise GuideError(f"{names[id(layer)]} cannot be guided: {error}") from None
            routes[str(call.target)] = guide
            if name is not None:
                inputs[name] = None
    for graph in region.graphs():  # both modes are given the same
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
    call.args = (*call.args, _kept_from_changes(graph, node, root))
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
    if all(_only_reads(user, root) for user in node.users):
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


def _only_reads(user: fx.Node, root: nn.Module) -> bool:
    """Whether a node is known to leave what it is given as it is, and to give none of it out again."""
    if user.meta.get(_KEPT):
        return True
    if user.op != "call_module":
        return False
    module = root.get_submodule(str(user.target))
    return isinstance(module, ConvLayer) or type(module) in _READERS


_READERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.MaxPool2d, nn.Linear)


def guided_code(part: Routed, base: type[nn.Module]) -> GuidedForward:
    """The forward of a module of class ``base`` that is the root of ``part``."""
    evaluation, training = (
        GraphCode.of(graph, tuple(str(node.target) for node in placeholders(graph)))
        for graph in (part.region.evaluation, part.region.training or part.region.evaluation)
    )
    return GuidedForward(base, part.routes, part.inputs, evaluation, training)


def take_constants(graph: fx.Graph, traced: nn.Module, root: nn.Module) -> None:
    """Give ``root`` the tensors that tracing found in the code and put on the copy.

    Raises:
        ModelError: if one has no numbers, because the code computes it from parameters.
    """
    for node in graph.nodes:
        if node.op != "get_attr" or hasattr(root, str(node.target)) or "." in str(node.target):
            continue
        value = getattr(traced, str(node.target))
        if isinstance(value, Tensor) and (isinstance(value, FakeTensor) or value.is_meta):
            raise ModelError(
                f"the forward of {type(root).__name__} keeps a tensor that tracing cannot tell the value of"
            )
        setattr(root, str(node.target), value.detach().clone() if isinstance(value, torch.Tensor) else value)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
