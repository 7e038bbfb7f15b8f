"""Finding convolutions whose surroundings take another path when they are of another class."""

from __future__ import annotations

from typing import Any

from torch import nn

from .conv_classes import CONVS
from .layers import ConvLayer
from .regions import TracedRegion, outline, trace_regions
from .replacing import put_in_place


def sites_asked_for_their_type(model: nn.Module, regions: list[TracedRegion]) -> set[str]:
    """Names of convolutions in whose place another kind of module changes the path that the code takes.

    ``model`` is a throwaway copy, like that which gave ``regions``.
    """
    convs = {
        name: module for name, module in model.named_modules() if isinstance(module, CONVS) and module is not model
    }
    if _outlines(_trace_with(model, convs)) == _outlines(regions):
        return set()
    return {name for name, conv in convs.items() if _outlines(_trace_with(model, {name: conv})) != _outlines(regions)}


def _trace_with(model: nn.Module, convs: dict[str, Any]) -> list[TracedRegion]:
    """The regions of ``model`` with stand-ins for ``convs``, which are put back afterwards."""
    stand_ins = {id(conv): _StandIn(conv) for conv in convs.values()}
    put_in_place(model, dict(stand_ins))
    try:
        return trace_regions(model)
    finally:
        put_in_place(model, {id(stand_ins[id(conv)]): conv for conv in convs.values()})


class _StandIn(ConvLayer):
    """What the code around a convolution sees of a layer in its place: the geometry, but another class."""

    def __init__(self, conv: Any) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({name: value for name, value in conv.__dict__.items() if not name.startswith("_")})
        self._parameters = conv._parameters


def _outlines(regions: list[TracedRegion]) -> list[tuple[str, list[list[tuple[str, str]]], list[str]]]:
    return [(r.name, [outline(graph) for graph in r.graphs()], list(r.failures)) for r in regions]
