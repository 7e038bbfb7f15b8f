"""Putting together what tracing, measuring and looking at a model tell of each of its convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize

from .conv_classes import CONVS, TRANSPOSED, Conv
from .layers import ConvLayer
from .measure import PLACEMENT_ATTRIBUTES, Measurement
from .regions import TracedRegion, follow
from .sites import ConvSite, OtherConv, hooks_of


@dataclass(frozen=True)
class _Place:
    region: str
    node: str
    next_norm: str | None
    next_activation: str | None
    training_only: bool


def conv_like(model: nn.Module) -> dict[str, nn.Module]:
    """Convolutions, and layers of ours that stand in the place of one, by their first qualified names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (*CONVS, ConvLayer))}


def make_sites(
    model: nn.Module,
    regions: list[TracedRegion],
    measurement: Measurement,
    type_dependent: set[str],
    ordered: bool,
) -> tuple[ConvSite, ...]:
    """The sites of all convolutions, in order of execution as far as it is known.

    Layers of ours count in that order: what comes after one is not the network's first convolution.

    Args:
        model: the model itself.
        regions: what a copy of it was traced in.
        measurement: what a pass showed; if it stopped early, its calls are the first ones.
        type_dependent: names of the convolutions that are asked for their class.
        ordered: whether the order is known of all.
    """
    everything = conv_like(model)
    convs: dict[str, Any] = {name: module for name, module in everything.items() if isinstance(module, CONVS)}
    places = _places(model, regions)
    aliases = _aliases(model, convs)
    tied = _tied(model, convs)
    graph_reads = _graph_reads(regions)
    ours = {name: type(module).__name__ for name, module in model.named_modules() if isinstance(module, ConvLayer)}
    sites = []
    for index, name in enumerate(_execution_order(everything, places, measurement)):
        if name not in convs:
            continue
        place = places.get(name)
        conv = convs[name]
        reads = {f"{alias}.{parameter}" for alias in (name, *aliases[name]) for parameter in conv._parameters}
        reader = measurement.readers.get(name)
        if reader is None and reads & graph_reads:
            reader = place.region if place else ""
        site = ConvSite(
            name=name,
            module=conv,
            index=index,
            region=place.region if place else _innermost_region(name, regions),
            node=place.node if place else None,
            calls=tuple(measurement.calls.get(name, ())),
            batch=measurement.batch,
            aliases=aliases[name],
            tied=tied[name],
            read_outside=reader,
            hooked=hooks_of(conv),
            parametrised=parametrize.is_parametrized(conv),
            type_dependent=name in type_dependent,
            ordered=ordered or name in measurement.calls,
            inside=next((kind for owner, kind in ours.items() if name.startswith(f"{owner}.")), None),
        )
        if place is not None:
            site = replace(
                site,
                next_norm=place.next_norm,
                next_activation=place.next_activation,
                training_only=place.training_only,
            )
        sites.append(site)
    return tuple(sites)


def other_convs(model: nn.Module, measurement: Measurement) -> tuple[OtherConv, ...]:
    """Convolutions that are no sites: transposed ones, and functions called by a module's own code."""
    found = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, TRANSPOSED):
            found.append(OtherConv(name, kind, "transposed convolutions are not converted"))
        elif f"{type(module).__module__}.{kind}" == "timm.layers.cond_conv2d.CondConv2d":
            found.append(OtherConv(name, kind, "its kernels are mixed for each sample already"))
        elif name in measurement.functional and not isinstance(module, ConvLayer):
            function = measurement.functional[name]
            reason = f"it calls torch.nn.functional.{function} itself, and has no convolution module to replace"
            found.append(OtherConv(name, kind, reason))
    return tuple(found)


def _places(model: nn.Module, regions: list[TracedRegion]) -> dict[str, _Place]:
    """Where each convolution (by its first name) is first called."""
    first_names = {id(module): name for name, module in model.named_modules()}
    places: dict[str, _Place] = {}
    for region in regions:
        root = model.get_submodule(region.name)
        for graph in region.graphs():
            for node in graph.nodes:
                if node.op != "call_module":
                    continue
                name = first_names[id(root.get_submodule(str(node.target)))]
                if name not in places:
                    training_only = graph is region.training
                    places[name] = _Place(region.name, node.name, *follow(graph, node, root), training_only)
    return places


def _execution_order(
    convs: Mapping[str, nn.Module], places: Mapping[str, _Place], measurement: Measurement
) -> list[str]:
    """Names in the order the forward pass ran them, then as the graphs have them, then as they are registered."""
    ordered = dict.fromkeys((*measurement.calls, *places, *convs))
    return [name for name in ordered if name in convs]


def _innermost_region(name: str, regions: list[TracedRegion]) -> str:
    around = [r.name for r in regions if not r.name or name == r.name or name.startswith(f"{r.name}.")]
    return max(around, key=len, default="")


def _aliases(model: nn.Module, convs: Mapping[str, Conv]) -> dict[str, tuple[str, ...]]:
    names: dict[int, list[str]] = {id(conv): [] for conv in convs.values()}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in names:
            names[id(module)].append(name)
    return {name: tuple(alias for alias in names[id(conv)] if alias != name) for name, conv in convs.items()}


def _tied(model: nn.Module, convs: Mapping[str, Conv]) -> dict[str, tuple[str, ...]]:
    """Names of parameters of other modules that are the same tensors as the convolution's."""
    holders: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter_name, parameter in module._parameters.items():
            if parameter is not None:
                full = f"{name}.{parameter_name}" if name else parameter_name
                holders.setdefault(id(parameter), []).append((full, module))
    return {
        name: tuple(
            other
            for parameter in conv._parameters.values()
            if parameter is not None
            for other, module in holders[id(parameter)]
            if module is not conv
        )
        for name, conv in convs.items()
    }


def _graph_reads(regions: list[TracedRegion]) -> set[str]:
    """Qualified names of all tensors whose numbers or shapes the traced code reads."""
    return {
        f"{region.name}.{node.target}" if region.name else str(node.target)
        for region in regions
        for graph in region.graphs()
        for node in graph.nodes
        if node.op == "get_attr" and not all(_asks_where_it_is(user) for user in node.users)
    }


def _asks_where_it_is(node: fx.Node) -> bool:
    """Whether a node asks a tensor no more than what the new layer's weight would answer likewise."""
    return node.op == "call_function" and node.target is getattr and node.args[1] in PLACEMENT_ATTRIBUTES
