"""Converted models as graph modules, for those who go on with other passes of torch.fx."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from .errors import ModelError
from .generated_forward import FURTHER_INPUTS, check_names, further_inputs
from .layers import ConvLayer
from .layers.hypernet_conv import HypernetConv2d
from .modules import MODULE_STATE
from .regions import TracedRegion, trace_regions
from .throwaway import cleared_caches, throwaway_copy, untouched_randomness
from .tracer import opaque_modules


class GraphModel(fx.GraphModule):
    """A converted model as one ``torch.fx.GraphModule``, with its hypernets and layers as nodes of their own.

    It has the parts, the parameters and the state-dict keys of the model that it was made from. Where that takes
    another path in training mode there is a graph for each mode: ``train()`` and ``eval()`` exchange them, and
    ``graph`` is the one of the present mode.
    """

    _other_graph: fx.Graph | None
    _mode_of_graph: bool

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
        self.__dict__.update(_other_graph=other, _mode_of_graph=root.training)

    def train(self, mode: bool = True) -> GraphModel:
        """Set the mode, and the graph of that mode."""
        super().train(mode)
        self._exchange()
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._exchange()  # the mode may have been set without train()
        return super().__call__(*args, **kwargs)

    def graphs(self) -> tuple[fx.Graph, fx.Graph | None]:
        """The graphs of evaluation and of training mode; None for the latter where it is the same."""
        if self._other_graph is None:
            return self.graph, None
        return (self._other_graph, self.graph) if self._mode_of_graph else (self.graph, self._other_graph)

    def set_graphs(self, evaluation: fx.Graph, training: fx.Graph | None) -> None:
        """Run these graphs; without ``training``, both modes have the same."""
        swapped = training is not None and self.training
        self.graph = training if training is not None and swapped else evaluation
        self.__dict__.update(_other_graph=evaluation if swapped else training, _mode_of_graph=self.training)

    def _exchange(self) -> None:
        if self.training == self._mode_of_graph:
            return
        present, other = self.graph, self._other_graph
        self.__dict__["_mode_of_graph"] = self.training
        if other is not None:
            self.graph = other
            self.__dict__["_other_graph"] = present

    def __copy__(self) -> GraphModel:
        evaluation, training = (None if graph is None else copy.deepcopy(graph) for graph in self.graphs())
        assert evaluation is not None
        return _assembled(self._parts(), evaluation, training, type(self).__name__)

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
        own = set(fx.GraphModule(nn.Module(), fx.Graph()).__dict__) - {*parts.__dict__, "meta"}
        parts.__dict__.update({name: value for name, value in self.__dict__.items() if name not in {*own, *_OURS}})
        return parts


_OURS = ("_other_graph", "_mode_of_graph", "_graph", "_code", "_lineno_map", "_prologue_start")


def graphs_of(module: fx.GraphModule) -> tuple[fx.Graph, fx.Graph | None]:
    """The graphs of evaluation and of training mode of any graph module; None for the latter where it is the same."""
    return module.graphs() if isinstance(module, GraphModel) else (module.graph, None)


def set_graphs_of(
    module: fx.GraphModule, evaluation: fx.Graph, training: fx.Graph | None, inputs: tuple[str, ...]
) -> None:
    """Let any graph module run these graphs, whose further ``inputs`` are called so."""
    if isinstance(module, GraphModel):
        module.set_graphs(evaluation, training)
    else:
        module.graph = evaluation
    module.meta[FURTHER_INPUTS] = inputs


def as_graph_model(model: nn.Module) -> GraphModel:
    """A converted model as a graph module that shares all parts and tensors with it.

    Raises:
        ModelError: if the code around a converted layer cannot be traced, the model is a single layer, or its class has
            a ``__call__`` of its own.
    """
    if type(model).__call__ is not nn.Module.__call__ and not isinstance(model, fx.GraphModule):
        raise ModelError(f"{type(model).__name__} has a __call__ of its own, which a graph would not run")
    if isinstance(model, ConvLayer) and not isinstance(model, HypernetConv2d):
        raise ModelError("the model is a single layer, and a graph of it would be a call of it and nothing else")
    with untouched_randomness(), cleared_caches(model):
        copied = throwaway_copy(model, FakeTensorMode(allow_non_fake_inputs=True))
        regions = trace_regions(copied, through=HypernetConv2d, opaque=opaque_modules(model))
    region = _whole(model, regions)
    for graph in region.graphs():
        check_names(graph)
        graph._tracer_cls = None  # pickles name the tracer, and ours wants arguments
    parts = nn.Module()
    parts.__dict__.update({name: model.__dict__[name] for name in MODULE_STATE if name in model.__dict__})
    parts.__dict__.update(constants_of(region, copied, model))
    made = _assembled(parts, region.evaluation, region.training, type(model).__name__)
    made.meta[FURTHER_INPUTS] = further_inputs(model)
    from .carried_report import attach_report, earlier_report

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
    if regions and not regions[0].name and regions[0].half is not None:
        raise ModelError(f"{regions[0].half}, so there is no graph of it")
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


def constants_of(region: TracedRegion, traced: nn.Module, root: nn.Module) -> dict[str, Tensor]:
    """The tensors that tracing found in the code and put on ``traced``, a copy of ``root``, by their names there.

    Raises:
        ModelError: if one has no numbers, because the code computes it from parameters.
    """
    found: dict[str, Tensor] = {}
    for node in (node for graph in region.graphs() for node in graph.nodes):
        name = str(node.target)
        if node.op != "get_attr" or "." in name or name in found or hasattr(root, name):
            continue
        value = getattr(traced, name)
        if isinstance(value, FakeTensor) or value.is_meta:
            raise ModelError(
                f"the forward of {type(root).__name__} makes a tensor that tracing cannot tell the value of"
            )
        found[name] = value.detach().clone()
    return found


def _constants(graph: fx.Graph | None, root: nn.Module) -> set[str]:
    """Names of plain attributes of ``root`` that a graph reads: tensors that its code holds."""
    reads = {str(node.target) for node in graph.nodes if node.op == "get_attr"} if graph is not None else set()
    return {name for name in reads if name in root.__dict__}


def _assembled(parts: nn.Module, evaluation: fx.Graph, training: fx.Graph | None, class_name: str) -> GraphModel:
    made = GraphModel(parts, evaluation, training, class_name)
    made.meta = parts.__dict__.get("meta", {})
    made.__dict__.update({name: value for name, value in parts.__dict__.items() if name not in made.__dict__})
    for name, value in parts.__dict__.items():  # hooks and the like
        if name in MODULE_STATE and name not in ("_modules", "_parameters", "_buffers"):
            made.__dict__[name] = value
    return made


def _unpickled(
    parts: nn.Module, evaluation: fx.GraphModule, training: fx.GraphModule | None, class_name: str
) -> GraphModel:
    return _assembled(parts, evaluation.graph, None if training is None else training.graph, class_name)
