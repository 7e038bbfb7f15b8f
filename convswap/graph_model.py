"""Converted models as graph modules, for those who go on with other passes of torch.fx."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .carried_report import attach_report, earlier_report
from .errors import ModelError
from .generated_forward import FURTHER_INPUTS, further_inputs
from .layers import ConvLayer
from .layers.hypernet_conv import HypernetConv2d
from .regions import TracedRegion, trace_regions
from .routing import take_constants
from .throwaway import cleared_caches, throwaway_copy, untouched_randomness


class GraphModel(fx.GraphModule):
    """A converted model as one ``torch.fx.GraphModule``, with its hypernets and layers as nodes of their own.

    It has the parts, the parameters and the state-dict keys of the model that it was made from. Where that takes
    another path in training mode there is a graph for each mode: ``train()`` and ``eval()`` exchange them, and
    ``graph`` is the one of the present mode.
    """

    _other_graph: fx.Graph | None

    def __init__(self, root: nn.Module, evaluation: fx.Graph, training: fx.Graph | None, class_name: str) -> None:
        """Make one of the parts of ``root``, in its mode. Without ``training``, both modes have the same graph."""
        present, other = evaluation, training
        if training is not None and root.training:
            present, other = training, evaluation
        super().__init__(root, present, class_name)
        for held in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[held] = copy.copy(root.__dict__[held])
        for graph in (evaluation, training):
            for name in _constants(graph, root):
                self.__dict__[name] = getattr(root, name)
        self.__dict__["_other_graph"] = other

    def train(self, mode: bool = True) -> GraphModel:
        """Set the mode, and the graph of that mode."""
        if mode != self.training and self._other_graph is not None:
            present = self.graph
            self.graph = self._other_graph
            self.__dict__["_other_graph"] = present
        super().train(mode)
        return self

    def graphs(self) -> tuple[fx.Graph, fx.Graph | None]:
        """The graphs of evaluation and of training mode; None for the latter where it is the same."""
        if self._other_graph is None:
            return self.graph, None
        return (self._other_graph, self.graph) if self.training else (self.graph, self._other_graph)

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModel:
        evaluation, training = (None if graph is None else copy.deepcopy(graph) for graph in self.graphs())
        assert evaluation is not None
        made = _assembled(copy.deepcopy(self._parts(), memo), evaluation, training, type(self).__name__)
        memo[id(self)] = made
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        parts = self._parts()
        evaluation, training = (None if graph is None else fx.GraphModule(parts, graph) for graph in self.graphs())
        return _unpickled, (parts, evaluation, training, type(self).__name__)

    def _parts(self) -> nn.Module:
        """A plain module with everything but the graphs."""
        parts = nn.Module()
        own = set(fx.GraphModule(nn.Module(), fx.Graph()).__dict__) - set(parts.__dict__)
        parts.__dict__.update({name: value for name, value in self.__dict__.items() if name not in {*own, *_OURS}})
        return parts


_OURS = ("_other_graph", "_graph", "_code", "_lineno_map", "_prologue_start")


def as_graph_model(model: nn.Module) -> GraphModel:
    """A converted model as a graph module that shares all parts and tensors with it.

    Raises:
        ModelError: if the code around a converted layer cannot be traced, or the model is a single layer.
    """
    if isinstance(model, ConvLayer) and not isinstance(model, HypernetConv2d):
        raise ModelError("the model is a single layer, and a graph of it would be a call of it and nothing else")
    with untouched_randomness(), cleared_caches(model):
        copied = throwaway_copy(model, FakeTensorMode(allow_non_fake_inputs=True))
        regions = trace_regions(copied, through=HypernetConv2d)
    region = _whole(model, regions)
    for graph in region.graphs():
        take_constants(graph, copied, model)
        graph._tracer_cls = None  # pickles name the tracer, and ours wants arguments
    made = GraphModel(model, region.evaluation, region.training, type(model).__name__)
    made.__dict__[FURTHER_INPUTS] = further_inputs(model)
    report = earlier_report(model)
    if report is not None:
        attach_report(made, report)
    return made


def _whole(model: nn.Module, regions: list[TracedRegion]) -> TracedRegion:
    """The region that is the whole model, with all layers of ours in it.

    Raises:
        ModelError: if there is none.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, ConvLayer)]
    if not regions or regions[0].name:
        raise ModelError(f"{type(model).__name__} cannot be traced as a whole, so there is no graph of it")
    for part, reason in regions[0].failures.items():
        inside = [name for name in layers if name == part or name.startswith(f"{part}.")]
        if inside:
            raise ModelError(
                f"{type(model).__name__} cannot be made one graph, because {part!r} with {inside[0]!r} in it cannot be "
                f"traced ({reason})"
            )
    return regions[0]


def _constants(graph: fx.Graph | None, root: nn.Module) -> set[str]:
    """Names of plain attributes of ``root`` that a graph reads: tensors that its code holds."""
    reads = {str(node.target) for node in graph.nodes if node.op == "get_attr"} if graph is not None else set()
    return {name for name in reads if name in root.__dict__}


def _assembled(parts: nn.Module, evaluation: fx.Graph, training: fx.Graph | None, class_name: str) -> GraphModel:
    made = GraphModel(parts, evaluation, training, class_name)
    made.__dict__.update({name: value for name, value in parts.__dict__.items() if name not in made.__dict__})
    for name, value in parts.__dict__.items():  # hooks and the like
        if name in _MODULE_STATE and name not in ("_modules", "_parameters", "_buffers"):
            made.__dict__[name] = value
    return made


_MODULE_STATE = frozenset(nn.Module().__dict__)


def _unpickled(
    parts: nn.Module, evaluation: fx.GraphModule, training: fx.GraphModule | None, class_name: str
) -> GraphModel:
    return _assembled(parts, evaluation.graph, None if training is None else training.graph, class_name)
