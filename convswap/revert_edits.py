"""Edits of models so that no forward hands a guide to what is a convolution again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import fx, nn

from .generated_forward import FURTHER_INPUTS, check_class, further_inputs, guided_forward
from .graph_model import graphs_of, set_graphs_of
from .guide_nodes import placeholders
from .layers.hypernet.fit import fit_guide
from .layers.hypernet_conv import HypernetConv2d
from .routing import route_guides, unrouted


def call_without_guides(model: nn.Module, reverted: Collection[int]) -> None:
    """Let the graphs of ``model`` call layers of these identities with their input alone, and not in parts."""
    for module in model.modules():
        if isinstance(module, fx.GraphModule):
            _edit(module, reverted)


def take_back(model: nn.Module, reverted: Iterable[nn.Module]) -> None:
    """Give parts of ``model`` their own classes back if their forward hands guides to what has been reverted.

    Raises:
        ModelError: if the class of one was changed after it was converted.
    """
    identities = {id(conv) for conv in reverted}
    for module in list(model.modules()):
        _take_back(module, identities)


def _take_back(root: nn.Module, reverted: set[int]) -> None:
    """Give ``root`` its own class back if its forward hands guides to convolutions; then route those that are left."""
    changed = guided_forward(root)
    if changed is None or not any(id(_part(root, name)) in reverted for name in changed.routes):
        return
    check_class(root, changed, "reverting")
    root.__class__ = changed.base
    for name in changed.constants():
        root.__dict__.pop(name, None)
    left = {name: layer for name in changed.routes if isinstance(layer := _part(root, name), HypernetConv2d)}
    guides = {layer: layer.guide for layer in (*left.values(), *(layer for _, layer in unrouted(root)))}
    try:
        for layer in guides:  # what has not been routed before is not now
            layer.guide = None
        for name, layer in left.items():  # as they are called within this part, which need not be the whole model
            layer.guide = changed.routes[name]
        route_guides(root)
    finally:
        for layer, guide in guides.items():
            layer.guide = guide


def restorer(model: nn.Module) -> Callable[[], None]:
    """What gives the parts of ``model`` the forwards back that they have at present."""
    changed = [(module, type(module), _held(module)) for module in model.modules() if guided_forward(module)]
    graphs = [
        (module, copy.deepcopy(graphs_of(module)), further_inputs(module))
        for module in model.modules()
        if isinstance(module, fx.GraphModule)
    ]

    def restore() -> None:
        for part, kind, constants in changed:
            for name in _held(part):
                del part.__dict__[name]
            part.__class__ = kind
            part.__dict__.update(constants)
        for module, (evaluation, training), inputs in graphs:
            set_graphs_of(module, evaluation, training, inputs)

    return restore


def _held(module: nn.Module) -> dict[str, Any]:
    """The tensors that ``module`` holds for a forward that was changed."""
    changed = guided_forward(module)
    names = set() if changed is None else changed.constants()
    return {name: module.__dict__[name] for name in names if name in module.__dict__}


def _part(root: nn.Module, name: str) -> nn.Module | None:
    try:
        return root.get_submodule(name)
    except AttributeError:  # the user has put something else there
        return None


def _edit(module: fx.GraphModule, reverted: Collection[int]) -> None:
    """The same for one module."""
    names = {name for name, part in module.named_modules(remove_duplicate=False) if id(part) in reverted}
    inputs = further_inputs(module)
    graphs = [*filter(None, graphs_of(module))]
    for graph in graphs:
        for node in [node for node in graph.nodes if node.op == "call_module"]:
            owner, _, part = str(node.target).rpartition(".")
            if str(node.target) in names or (owner in names and part == "conv"):
                _call_convolution(graph, node, str(node.target) if str(node.target) in names else owner)
    read = {str(node.target) for graph in graphs for node in placeholders(graph) if node.users}
    unread = set(inputs) - read
    for graph in graphs:
        for node in placeholders(graph):
            if node.target in unread:
                graph.erase_node(node)
    if unread:
        module.meta[FURTHER_INPUTS] = tuple(name for name in inputs if name in read)
    module.recompile()


def _call_convolution(graph: fx.Graph, node: fx.Node, name: str) -> None:
    """Put a call of the convolution ``name`` in the place of a call of a layer, or of its second part."""
    given = node.args[0] if node.args else node.kwargs["input"]
    handed = [other for other in node.all_input_nodes if other is not given]
    with graph.inserting_before(node):
        call = graph.create_node("call_module", name, (given,), {}, type_expr=node.type)
    call.meta.update(node.meta)
    node.replace_all_uses_with(call)
    graph.erase_node(node)
    for other in handed:
        _erase_unused(graph, other, name)


def _erase_unused(graph: fx.Graph, node: fx.Node, name: str) -> None:
    """Erase what nothing reads any more of the way from a guide to the kernels of the layer ``name``."""
    of_layer = node.op == "call_module" and str(node.target).startswith(f"{name}.")
    on_the_way = node.op in ("call_function", "call_method") and (
        node.target in (fit_guide, "clone") or getattr(node.target, "__name__", "") == "getitem"
    )
    if node.users or not (of_layer or on_the_way):
        return
    before = node.all_input_nodes
    graph.erase_node(node)
    for other in before:
        _erase_unused(graph, other, name)
