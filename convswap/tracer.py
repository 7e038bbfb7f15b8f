"""Symbolic tracing of modules, only as deep as convolutions lie."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import fx, nn

from .inplace import latest
from .modules import MODULE_STATE

OUTPUT_OF, INPUT_OF = "convswap_output_of", "convswap_input_of"
"""Where the ``meta`` of a node names the modules, traced through or not, that return its value, or are given it."""


class ConvTracer(fx.Tracer):
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
        tidy_placeholders(graph)
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
        given = _first_argument(m, args, kwargs)
        if isinstance(given, fx.Proxy):
            latest(given.node, self.root).meta.setdefault(INPUT_OF, []).append(name)
        result = self._call_module(m, forward, args, kwargs)
        if isinstance(result, fx.Proxy):
            latest(result.node, self.root).meta.setdefault(OUTPUT_OF, []).append(name)
        return result

    def _call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not self.lenient:
            return self._go_through(m, forward, args, kwargs)
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            if id(m) in self.holding:  # on timm's list, yet with convolutions below it
                self.failures.setdefault(name, "its library says that it cannot be traced")
            return super().call_module(m, forward, args, kwargs)
        before = len(self.graph.nodes)
        depth = len(self.module_stack)
        try:
            return self._go_through(m, forward, args, kwargs)
        except Exception as error:
            self._forget_nodes(len(self.graph.nodes) - before)
            while len(self.module_stack) > depth:
                self.module_stack.popitem(last=True)
            for inner in [failed for failed in self.failures if failed.startswith(f"{name}.")]:
                del self.failures[inner]
            self.failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self.holding.discard(id(m))
            return super().call_module(m, forward, args, kwargs)

    def _go_through(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return super().call_module(m, forward, args, kwargs)

    def _module_getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        self._proxies = parameter_proxy_cache
        return super()._module_getattr(attr, attr_val, parameter_proxy_cache)  # type: ignore[misc]

    def _forget_nodes(self, count: int) -> None:
        for node in list(reversed(self.graph.nodes))[:count]:
            self.graph.erase_node(node)
            for cached in [key for key, proxy in self._proxies.items() if proxy.node is node]:
                del self._proxies[cached]


def tidy_placeholders(graph: fx.Graph) -> None:
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


class FaithfulTracer(ConvTracer):
    """A tracer whose graph is run in the place of the code: what the graph would not do as the code does is an error.

    That is code that changes the gradient or autocast mode, draws random numbers, or sets attributes; and modules that
    are ``opaque``, of which the names and reasons are given. Buffers are read when the graph runs.
    """

    proxy_buffer_attributes = True

    def __init__(self, holding: set[int], opaque: Mapping[str, str], **options: Any) -> None:
        super().__init__(holding, **options)
        self.opaque = opaque
        self._modes: Any = None

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        if "forward" in root.__dict__:
            raise RuntimeError("its forward was replaced on the instance")
        for name, value in (concrete_args or {}).items():
            if value is not None and not isinstance(value, bool | int | float | str | torch.dtype | torch.device):
                raise RuntimeError(f"its forward has a default that a graph cannot hold: {name}={value!r}")
        with torch.enable_grad(), _unchanged(root):
            self._modes = _modes()
            graph = super().trace(root, concrete_args)
        _renew_constants(graph)
        return graph

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if self._modes is not None and _modes() != self._modes:
            raise RuntimeError("its code changes the gradient or autocast mode, which a graph does not keep")
        return super().create_node(*args, **kwargs)

    def _go_through(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super()._go_through(m, forward, args, kwargs)
        if name in self.opaque:
            raise RuntimeError(self.opaque[name])
        with _unchanged(m):
            return super()._go_through(m, forward, args, kwargs)


def opaque_modules(model: nn.Module) -> dict[str, str]:
    """Names of the modules that a graph must call and not go through, because more than their forward runs, and why."""
    found = {}
    for name, module in model.named_modules():
        if "forward" in module.__dict__:
            found[name] = "its forward was replaced on the instance"
        elif any(module.__dict__.get(hooks) for hooks in _HOOKS):
            found[name] = "it has hooks, which a graph would not run"
    return found


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _modes() -> tuple[bool, ...]:
    autocast = (torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Make sure that the code of ``module`` sets no attributes of it and draws no random numbers.

    Attributes are put back.

    Raises:
        RuntimeError: if it does.
    """
    holders = (module.__dict__, module._buffers)
    before = [_values(holder) for holder in holders]
    numbers = torch.get_rng_state(), random.getstate()
    changed = []
    try:
        yield
    finally:
        for holder, old in zip(holders, before, strict=True):
            new = _values(holder)
            for name in {*old, *new}:
                if name not in old:
                    del holder[name]
                elif not _same(old[name], new.get(name)):
                    holder[name] = old[name]
                else:
                    continue
                changed.append(name)
    if changed:
        raise RuntimeError(f"its forward sets {', '.join(sorted(changed))}, which a graph would not do")
    if not torch.equal(torch.get_rng_state(), numbers[0]) or random.getstate() != numbers[1]:
        raise RuntimeError("its forward draws random numbers that a graph would not draw again")


def _values(holder: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in holder.items()
        if name not in MODULE_STATE and not name.startswith("_tensor_constant")
    }


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and isinstance(one, bool | int | float | str) and one == other)


def _renew_constants(graph: fx.Graph) -> None:
    """Let each run of ``graph`` begin with fresh copies of the tensors that its code makes: it may change them."""
    first = next(node for node in graph.nodes if node.op != "placeholder")
    fresh: dict[str, fx.Node] = {}
    for node in [n for n in graph.nodes if n.op == "get_attr" and str(n.target).startswith("_tensor_constant")]:
        if str(node.target) not in fresh:
            with graph.inserting_before(first):
                read = graph.get_attr(str(node.target))
                fresh[str(node.target)] = graph.call_method("clone", (read,))
        node.replace_all_uses_with(fresh[str(node.target)])
        graph.erase_node(node)


def _first_argument(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the first parameter of a module's forward is given."""
    if args or not kwargs:
        return args[0] if args else None
    with suppress(TypeError, ValueError):
        return kwargs.get(next(iter(inspect.signature(module.forward).parameters), ""))
    return None
