"""Tracing a model with torch.fx, only as deep as convolutions lie, in as few pieces as possible."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from .conv_classes import CONVS
from .layers import ConvLayer

OUTPUT_OF, INPUT_OF = "convswap_output_of", "convswap_input_of"
"""Where the ``meta`` of a node names the modules, traced through or not, that return its value, or are given it."""


@dataclass
class TracedRegion:
    """A part of a model and its graphs; ``training`` is None where it does not differ from ``evaluation``."""

    name: str
    evaluation: fx.Graph
    training: fx.Graph | None
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether it is the whole model."""
        return not self.name and not self.failures

    def graphs(self) -> tuple[fx.Graph, ...]:
        """The graphs of both modes, evaluation first."""
        return (self.evaluation,) if self.training is None else (self.evaluation, self.training)


def trace_regions(model: nn.Module, through: type[nn.Module] | tuple[()] = ()) -> list[TracedRegion]:
    """Trace ``model``, a throwaway copy, in regions.

    Every module without convolutions is a leaf, and so is every convolution: what happens inside attention, norms and
    losses never matters. A module whose own code cannot be traced becomes a leaf of the graph around it, and its
    children are regions of their own. Both modes are traced, because some models run heads in training mode only.
    Layers of ours of the kind ``through`` are no leaves, but their parts are.
    """
    return list(_trace_below("", model, _modules_with_convs(model, through)))


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


def _trace_below(name: str, module: nn.Module, holding: set[int]) -> Iterator[TracedRegion]:
    """The region that ``module`` is the root of, and those below what could not be traced in it."""
    if is_leaf_kind(module) and id(module) not in holding:
        yield _single_call(name, module)
        return
    if id(module) not in holding:
        return
    region = _trace_region(name, module, holding)
    if region is None:
        for child_name, child in module.named_children():
            yield from _trace_below(_join(name, child_name), child, holding)
        return
    yield region
    for failed in region.failures:
        inner = module.get_submodule(failed)
        for child_name, child in inner.named_children():
            yield from _trace_below(_join(name, f"{failed}.{child_name}"), child, holding)


def _trace_region(name: str, module: nn.Module, holding: set[int]) -> TracedRegion | None:
    was_training = {id(part): part.training for part in module.modules()}
    failures: dict[str, str] = {}
    try:
        module.eval()
        evaluation = _trace(module, holding, failures)
        module.train()
        training = _trace(module, holding, failures)
    finally:
        for part in module.modules():
            part.training = was_training[id(part)]
    if evaluation is None and training is None:
        return None
    if evaluation is None or training is None:
        return TracedRegion(name, evaluation or training, None, failures)  # type: ignore[arg-type]
    return TracedRegion(name, evaluation, None if outline(evaluation) == outline(training) else training, failures)


def _trace(root: nn.Module, holding: set[int], failures: dict[str, str]) -> fx.Graph | None:
    """One graph of ``root``; what becomes a leaf because it cannot be traced is added to ``failures``."""
    arguments = _defaults(root)
    try:
        return _ConvTracer(holding).trace(root, arguments)
    except Exception:  # whatever the model's code raises on symbolic values
        pass
    functions, modules = _timm_lists()
    lenient = _ConvTracer(holding, functions, modules, lenient=True)
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


class _ConvTracer(fx.Tracer):
    """Traces through modules that hold convolutions.

    A lenient one turns a module whose code cannot be traced into a leaf and goes on.
    """

    def __init__(
        self,
        holding: set[int],
        functions: tuple[Callable[..., Any], ...] = (),
        leaf_kinds: tuple[type[nn.Module], ...] = (),
        lenient: bool = False,
    ) -> None:
        super().__init__(autowrap_functions=functions)
        self.holding = set(holding)
        self.leaf_kinds = leaf_kinds
        self.lenient = lenient
        self.failures: dict[str, str] = {}
        self._names: dict[int, str] = {}
        self._proxies: dict[str, fx.Proxy] = {}

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self._names = {id(module): name for name, module in root.named_modules()}
        graph = super().trace(root, concrete_args)
        _tidy_placeholders(graph)
        return graph

    def path_of_module(self, mod: nn.Module) -> str:
        # The inherited method walks all modules at each call, which makes tracing quadratic in depth.
        try:
            return self._names[id(mod)]
        except KeyError:
            raise NameError("module is not installed as a submodule") from None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) not in self.holding or isinstance(m, self.leaf_kinds)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = self.path_of_module(m)
        result = self._call_module(m, forward, args, kwargs)
        for value, role in ((result, OUTPUT_OF), (next(iter((*args, *kwargs.values())), None), INPUT_OF)):
            if isinstance(value, fx.Proxy):
                value.node.meta.setdefault(role, []).append(name)
        return result

    def _call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not self.lenient:
            return super().call_module(m, forward, args, kwargs)
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            if id(m) in self.holding:  # on timm's list, yet with convolutions below it
                self.failures.setdefault(name, "its library says that it cannot be traced")
            return super().call_module(m, forward, args, kwargs)
        before = len(self.graph.nodes)
        depth = len(self.module_stack)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            self._forget_nodes(len(self.graph.nodes) - before)
            while len(self.module_stack) > depth:
                self.module_stack.popitem(last=True)
            for inner in [failed for failed in self.failures if failed.startswith(f"{name}.")]:
                del self.failures[inner]
            self.failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self.holding.discard(id(m))
            return super().call_module(m, forward, args, kwargs)

    def _module_getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        self._proxies = parameter_proxy_cache
        return super()._module_getattr(attr, attr_val, parameter_proxy_cache)  # type: ignore[misc]

    def _forget_nodes(self, count: int) -> None:
        for node in list(reversed(self.graph.nodes))[:count]:
            self.graph.erase_node(node)
            for cached in [key for key, proxy in self._proxies.items() if proxy.node is node]:
                del self._proxies[cached]


def _tidy_placeholders(graph: fx.Graph) -> None:
    """Call the placeholders as the arguments are called, and have those with a default behind the others.

    torch.fx numbers the former, and takes those that are by keyword only for positional ones.
    """
    first_default = None
    for node in [node for node in graph.nodes if node.op == "placeholder"]:
        if node.args:
            node.target = str(node.target).rpartition("_")[0]
            first_default = first_default or node
        elif first_default is not None and not str(node.target).startswith("*"):
            first_default.prepend(node)


def outline(graph: fx.Graph) -> list[tuple[str, str]]:
    """What the nodes of a graph do, in order: two traces of the same path have the same."""
    return [(node.op, str(node.target)) for node in graph.nodes]


def _single_call(name: str, conv: nn.Module) -> TracedRegion:
    """The region of a convolution whose parents cannot be traced: a call of it and nothing more."""
    graph = fx.Graph()
    call = graph.call_module("", (graph.placeholder("x"),))
    call.meta[OUTPUT_OF] = [""]
    graph.output(call)
    return TracedRegion(name, graph, None)


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


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
