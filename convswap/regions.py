"""Tracing a model with torch.fx, only as deep as convolutions lie, in as few pieces as possible."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from .conv_classes import CONVS
from .layers import ConvLayer
from .modules import join
from .tracer import OUTPUT_OF, ConvTracer, FaithfulTracer


@dataclass
class TracedRegion:
    """A part of a model and its graphs.

    Attributes:
        name: qualified name of its root.
        evaluation: its graph in evaluation mode.
        training: that in training mode; None where it is the same, or where only one mode can be traced.
        failures: modules that became leaves because they cannot be traced, and why.
        half: what to say of it if only one mode can be traced, whose graph is ``evaluation`` then; else None.
    """

    name: str
    evaluation: fx.Graph
    training: fx.Graph | None
    failures: dict[str, str] = field(default_factory=dict)
    half: str | None = None

    def graphs(self) -> tuple[fx.Graph, ...]:
        """The graphs of both modes, evaluation first."""
        return (self.evaluation,) if self.training is None else (self.evaluation, self.training)


def trace_regions(
    model: nn.Module, through: type[nn.Module] | tuple[()] = (), opaque: Mapping[str, str] | None = None
) -> list[TracedRegion]:
    """Trace ``model``, a throwaway copy, in regions.

    Every module without convolutions is a leaf, and so is every convolution: what happens inside attention, norms and
    losses never matters. A module whose own code cannot be traced becomes a leaf of the graph around it, and its
    children are regions of their own. Both modes are traced, because some models run heads in training mode only.
    Layers of ours of the kind ``through`` are no leaves, but their parts are. With ``opaque``, see `opaque_modules`,
    the graphs are such that they can be run in the place of the code.
    """
    return list(_trace_below("", model, _modules_with_convs(model, through), opaque))


def is_leaf_kind(module: nn.Module) -> bool:
    """Whether a module is never looked into: a convolution, or a layer of ours."""
    return isinstance(module, (*CONVS, ConvLayer))


def _modules_with_convs(model: nn.Module, through: type[nn.Module] | tuple[()]) -> set[int]:
    """Identities of the modules to be traced through: those that have a convolution somewhere below them."""
    holding: set[int] = set()

    def visit(module: nn.Module) -> bool:
        if is_leaf_kind(module):
            if isinstance(module, through):
                holding.add(id(module))
            return True
        found = [visit(child) for child in module.children()]
        if any(found):
            holding.add(id(module))
        return any(found)

    visit(model)
    return holding


def _trace_below(
    name: str, module: nn.Module, holding: set[int], opaque: Mapping[str, str] | None
) -> Iterator[TracedRegion]:
    """The region that ``module`` is the root of, and those below what could not be traced in it."""
    if is_leaf_kind(module) and id(module) not in holding:
        yield _single_call(name, module)
        return
    if id(module) not in holding:
        return
    region = _trace_region(name, module, holding, opaque)
    if region is None:
        for child_name, child in module.named_children():
            yield from _trace_below(join(name, child_name), child, holding, opaque)
        return
    yield region
    for failed in region.failures:
        inner = module.get_submodule(failed)
        for child_name, child in inner.named_children():
            yield from _trace_below(join(name, f"{failed}.{child_name}"), child, holding, opaque)


def _trace_region(
    name: str, module: nn.Module, holding: set[int], opaque: Mapping[str, str] | None
) -> TracedRegion | None:
    was_training = {id(part): part.training for part in module.modules()}
    failures: dict[str, str] = {}
    if opaque is not None:
        prefix = f"{name}." if name else ""
        opaque = {inner.removeprefix(prefix): why for inner, why in opaque.items() if inner.startswith(prefix)}
    try:
        module.eval()
        evaluation = _trace(module, holding, failures, opaque)
        module.train()
        training = _trace(module, holding, failures, opaque)
    finally:
        for part in module.modules():
            part.training = was_training[id(part)]
    if evaluation is None and training is None:
        return None
    if evaluation is None or training is None:
        half = f"{name or 'the model'} can be traced in {'training' if evaluation is None else 'evaluation'} mode only"
        return TracedRegion(name, evaluation or training, None, failures, half)  # type: ignore[arg-type]
    return TracedRegion(name, evaluation, None if outline(evaluation) == outline(training) else training, failures)


def _trace(
    root: nn.Module, holding: set[int], failures: dict[str, str], opaque: Mapping[str, str] | None
) -> fx.Graph | None:
    """One graph of ``root``; what becomes a leaf because it cannot be traced is added to ``failures``."""
    arguments = _defaults(root)
    make: Any = ConvTracer if opaque is None else functools.partial(FaithfulTracer, opaque=opaque)
    graph: fx.Graph
    try:
        graph = make(holding).trace(root, arguments)
        return graph
    except Exception:  # whatever the model's code raises on symbolic values
        pass
    functions, modules = _timm_lists()
    lenient = make(holding, functions=functions, leaf_kinds=modules, lenient=True)
    try:
        graph = lenient.trace(root, arguments)
    except Exception:
        return None
    failures.update(lenient.failures)
    return graph


def _defaults(root: nn.Module) -> dict[str, Any] | None:
    """Values for the arguments of forward that have defaults, so that ``if mask is None`` goes the usual way."""
    parameters = inspect.signature(root.forward).parameters.values()
    values = {p.name: p.default for p in parameters if p.default is not p.empty}
    return values or None


def _timm_lists() -> tuple[tuple[Callable[..., Any], ...], tuple[type[nn.Module], ...]]:
    """Functions and modules that timm says cannot be traced; empty while timm is not imported."""
    if "timm" not in sys.modules:
        return (), ()
    layers: Any = importlib.import_module("timm.layers")
    return tuple(layers.get_notrace_functions()), tuple(layers.get_notrace_modules())


def outline(graph: fx.Graph) -> list[tuple[str, ...]]:
    """What the nodes of a graph do, in order: two traces of the same path have the same."""
    return [(node.op, str(node.target), str(node.args), str(node.kwargs)) for node in graph.nodes]


def _single_call(name: str, conv: nn.Module) -> TracedRegion:
    """The region of a convolution whose parents cannot be traced: a call of it and nothing more."""
    graph = fx.Graph()
    call = graph.call_module("", (graph.placeholder("x"),))
    call.meta[OUTPUT_OF] = [""]
    graph.output(call)
    return TracedRegion(name, graph, None)


def follow(graph: fx.Graph, node: fx.Node, root: nn.Module) -> tuple[str | None, str | None]:
    """Names of the norm and of the activation that come right after ``node``, where they do."""
    norm: str | None = None
    for _ in range(2):
        users = list(node.users)
        if len(users) != 1:
            return norm, None
        node = users[0]
        name = _callee(node, root)
        if name is None:
            return norm, None
        if "norm" in name.lower() and norm is None:
            norm = name
            if name.endswith("Act2d"):  # timm's norms that end in an activation of their own
                activation = getattr(root.get_submodule(str(node.target)), "act", None)
                return norm, None if isinstance(activation, nn.Identity) else type(activation).__name__
            continue
        return norm, name if name.lower() in _ACTIVATIONS else None
    return norm, None


def _callee(node: fx.Node, root: nn.Module) -> str | None:
    if node.op == "call_module":
        return type(root.get_submodule(str(node.target))).__name__
    if node.op == "call_function":
        return getattr(node.target, "__name__", None)
    return str(node.target) if node.op == "call_method" else None


_ACTIVATIONS = frozenset(
    name.lower()
    for name in (
        *torch.nn.modules.activation.__all__,
        *("Swish", "HardSwish", "HardSigmoid", "HardMish", "GELUTanh", "QuickGELU", "relu_", "hard_sigmoid"),
    )
)
