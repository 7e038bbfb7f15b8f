"""Deciding, before anything is changed, whether a value of the network can guide a convolution, and its channels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from .errors import ConvswapError, GuideError, OptionError, did_you_mean
from .further_inputs import Call, with_further_inputs
from .generated_forward import check_names
from .guide_nodes import (
    MODEL_INPUT,
    check_guide,
    first_name,
    further_input,
    guide_in_part,
    guide_node,
    names_of,
    placeholders,
    usable,
)
from .inputs import ExampleInputs, as_call, default_inputs, is_shape, make_inputs
from .regions import TracedRegion
from .routing import routed_parts
from .sites import ConvSite
from .throwaway import cleared_caches, throwaway_copy, untouched_randomness
from .tracer import opaque_modules

Values = dict[fx.Node, Any]


class Guides:
    """The values of a model that convolutions can be guided by. The model is traced when the first one is asked for."""

    def __init__(self, model: nn.Module, example_inputs: ExampleInputs) -> None:
        self._model, self._example_inputs = model, example_inputs

    def channels(self, site: ConvSite, guide: str) -> int | None:
        """Channels of the value that is to guide ``site``, or None if shapes are unknown.

        Raises:
            GuideError: if it cannot guide this convolution, with the names of what could.
            OptionError: if the model has nothing of that name.
        """
        try:
            check_guide(guide)
        except ValueError as error:
            raise OptionError(str(error)) from error
        if site.module is self._model:
            raise GuideError("the model is this convolution alone: it has no other guide than its own input")
        within_whole = guide == MODEL_INPUT or further_input(guide) is not None
        guide = first_name(self._model, guide)
        if not within_whole:
            self._check_name(guide)
        elif guide == MODEL_INPUT and hasattr(self._model, MODEL_INPUT):
            raise GuideError(f"its guide {guide!r} could be the model's input or its module of that name: rename that")
        region = self._region_of(site)
        if region.half is not None:
            raise GuideError(f"{region.half}, so no guide can be routed in it")
        if within_whole and region.name:
            raise GuideError(
                f"its guide is {guide!r}, which can be routed within the whole model's graph only, and it lies in "
                f"{region.name!r}, which is traced on its own{self._instead(site, region)}"
            )
        found: set[int | None] = set()
        for graph in region.graphs():
            check_names(graph)
            for call in self._calls(site, region, graph):
                node = guide_node(graph, call, self._relative(guide, site, region))
                found.add(None if node is None else self._channels(guide, node, call))
        known = found - {None}
        if len(known) > 1:
            raise GuideError(f"its guide {guide!r} has not always the same channels: {sorted(map(str, known))}")
        return next(iter(known), None)

    def _channels(self, guide: str, node: fx.Node, call: fx.Node) -> int | None:
        value, read = self._values.get(node), self._values.get(call.all_input_nodes[0])
        if value is None:
            return None
        if not isinstance(value, Tensor):
            raise GuideError(f"its guide {guide!r} gives a {type(value).__name__}, and no tensor")
        if value.dim() not in (2, 4):
            raise GuideError(
                f"its guide {guide!r} has shape {tuple(value.shape)}, and not (batch, channels, height, width)"
            )
        if not value.is_floating_point():
            raise GuideError(f"its guide {guide!r} is of {value.dtype}, which hypernets cannot read")
        if isinstance(read, Tensor) and read.dim() == 4 and read.shape[0] != value.shape[0]:
            raise GuideError(f"its guide {guide!r} is for {value.shape[0]} samples where its input is {read.shape[0]}")
        return value.shape[1]

    def _relative(self, guide: str, site: ConvSite, region: TracedRegion) -> str:
        relative = guide_in_part(guide, region.name)
        known = {name for graph in region.graphs() for name in _names(graph)}
        if further_input(guide) is None and guide != MODEL_INPUT and relative not in known:
            others = [other.name or "the model" for other in self._regions if guide in _qualified(other)]
            raise GuideError(
                f"its guide {guide!r} lies in another traced part of the model "
                f"({', '.join(others)}){self._instead(site, region)}"
            )
        return relative

    def _instead(self, site: ConvSite, region: TracedRegion) -> str:
        call = next(self._calls(site, region, region.evaluation), None)
        if call is None:
            return ""
        names = [f"{region.name}.{name}" if region.name else name for name in usable(region.evaluation, call)]
        return f": {', '.join(map(repr, names))} could be used" if names else ""

    def _check_name(self, guide: str) -> None:
        known = {name for region in self._regions for name in _qualified(region)}
        if guide not in known:
            modules = {name for name, _ in self._model.named_modules()}
            if guide in modules:
                raise GuideError(f"its guide {guide!r} gives no tensor that the traced code tells apart")
            raise OptionError(f"there is no module, node or input {guide!r} to guide by.{did_you_mean(guide, known)}")

    def _region_of(self, site: ConvSite) -> TracedRegion:
        for region in self._regions:
            if any(True for graph in region.graphs() for _ in self._calls(site, region, graph)):
                return region
        raise GuideError("no traced path leads to it, so no guide can be routed there")

    def _calls(self, site: ConvSite, region: TracedRegion, graph: fx.Graph) -> Iterator[fx.Node]:
        names = set(site.names())
        for node in graph.nodes:
            target = f"{region.name}.{node.target}" if region.name and node.target else region.name or str(node.target)
            if node.op == "call_module" and target in names:
                yield node

    @property
    def _regions(self) -> list[TracedRegion]:
        return self._traced[0]

    @property
    def _values(self) -> Values:
        return self._traced[1]

    @cached_property
    def _traced(self) -> tuple[list[TracedRegion], Values]:
        model, inputs = self._model, self._example_inputs
        with untouched_randomness(), cleared_caches(model):
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            copied = throwaway_copy(model, mode)
            regions = [part.region for part in routed_parts(copied, opaque_modules(model), everything=True)]
            if inputs is None:
                inputs = default_inputs(model)
            values: Values = {}
            for training in (False, True):
                if inputs is not None and (not training or any(region.training for region in regions)):
                    batch = make_inputs(model, inputs, batch=2) if is_shape(inputs) else inputs
                    call = with_further_inputs(model, as_call(batch))
                    _find_values(copied, regions, _by_name(model, call), mode, training, values)
        return regions, values


def _by_name(model: nn.Module, call: Call) -> Call:
    """``call`` with all arguments by name where that is possible."""
    signature = inspect.signature(model.forward)
    if any(p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY) for p in signature.parameters.values()):
        return call
    return (), dict(signature.bind_partial(*call[0], **call[1]).arguments)


def _names(graph: fx.Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op not in ("output", "get_attr"):
            yield node.name
        yield from names_of(node)


def _qualified(region: TracedRegion) -> Iterator[str]:
    for graph in region.graphs():
        for node in graph.nodes:
            if node.op not in ("output", "get_attr"):
                yield node.name
            for name in names_of(node):
                yield ".".join(filter(None, (region.name, name)))


def _find_values(
    model: nn.Module, regions: list[TracedRegion], call: tuple[Any, Any], mode: Any, training: bool, values: Values
) -> None:
    """Add the values in the graphs of one mode, as far as a pass over fake tensors gets."""
    args, kwargs = tree_map_only(Tensor, mode.from_tensor, call)
    model.train(training)
    runs: list[tuple[fx.Graph, nn.Module, Any]] = []
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(mode)
        stack.enter_context(_suppressed())
        with _watched_inputs(model, regions, training, runs.append):
            if not regions[0].name:  # the whole model's graph also where its own class lacks a further input
                runs.append((_of_mode(regions[0], training), model, (args, kwargs)))
            if any(region.name for region in regions):
                with _suppressed():
                    model(*args, **kwargs)
        for graph, root, (given, named) in runs:
            with _suppressed():
                _Values(root, graph, values).run(*_placeholder_values(graph, root, given, named))


def _of_mode(region: TracedRegion, training: bool) -> fx.Graph:
    return region.training if training and region.training is not None else region.evaluation


@contextmanager
def _watched_inputs(
    model: nn.Module, regions: list[TracedRegion], training: bool, note: Callable[[Any], None]
) -> Iterator[None]:
    """Tell ``note`` what the parts that are regions of their own are called with, once each."""
    handles = []
    for region in regions:
        if not region.name:
            continue
        graph, seen = _of_mode(region, training), set[int]()

        def hook(root: nn.Module, args: Any, kwargs: Any, graph: fx.Graph = graph, seen: set[int] = seen) -> None:
            if id(root) not in seen:
                seen.add(id(root))
                note((graph, root, (args, kwargs)))

        part = model.get_submodule(region.name)
        handles.append(part.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _placeholder_values(graph: fx.Graph, root: nn.Module, args: Any, kwargs: Any) -> list[Any]:
    """What the placeholders of ``graph`` stand for when ``root`` is called with these arguments."""
    names = [str(node.target) for node in placeholders(graph)]
    signature = inspect.signature(root.forward)
    further = {name: value for name, value in kwargs.items() if name in names and name not in signature.parameters}
    bound = signature.bind(*args, **{name: value for name, value in kwargs.items() if name not in further})
    bound.apply_defaults()
    values = {**bound.arguments, **further}
    return [values[name] for name in names if not name.startswith("*")]


class _Values(fx.Interpreter):
    """Runs a graph and notes the values of its nodes."""

    def __init__(self, root: nn.Module, graph: fx.Graph, values: Values) -> None:
        super().__init__(root, graph=graph, garbage_collect_values=False)
        self.values = values

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


@contextmanager
def _suppressed() -> Iterator[None]:
    """Go on whatever the model's code raises: what is not reached has no known shape."""
    try:
        yield
    except ConvswapError:
        raise
    except Exception:
        return
