"""Finding convolutions whose surroundings take another path when they are of another class."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from .conv_classes import CONVS
from .layers import ConvLayer
from .regions import TracedRegion, outline, trace_regions
from .replacing import put_in_place
from .throwaway import untouched_randomness


def sites_asked_for_their_type(
    traced: nn.Module, regions: list[TracedRegion], another: Callable[[], nn.Module]
) -> set[str]:
    """Names of convolutions in whose place another kind of module changes the path that the code takes.

    Args:
        traced: the throwaway copy that gave ``regions``.
        regions: its regions.
        another: makes a fresh throwaway copy of the same model.
    """
    everything = _convs(traced)
    if _outlines(_trace_with(traced, everything)) == _outlines(regions):
        return set()

    def path(names: Iterable[str]) -> object:
        """The path through a fresh copy with stand-ins for these, always from the same random state."""
        with untouched_randomness():
            model = another()
            return _outlines(_trace_with(model, {name: _convs(model)[name] for name in names}))

    usual = path(())
    if usual != path(()) or usual == path(everything):  # the path differs by itself, or did so by the first copy's past
        return set()
    return {name for name in everything if path((name,)) != usual}


def _convs(model: nn.Module) -> dict[str, nn.Module]:
    return {n: module for n, module in model.named_modules() if isinstance(module, CONVS) and module is not model}


def _trace_with(model: nn.Module, convs: dict[str, nn.Module]) -> list[TracedRegion]:
    """The regions of ``model`` with stand-ins for ``convs``, which are put back afterwards."""
    stand_ins = {id(conv): _StandIn(conv) for conv in convs.values()}
    try:
        put_in_place(model, dict(stand_ins))
        return trace_regions(model)
    finally:
        put_in_place(model, {id(stand_ins[id(conv)]): conv for conv in convs.values()})


class _StandIn(ConvLayer):
    """What the code around a convolution sees of a layer in its place: the geometry, but another class."""

    def __init__(self, conv: Any) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({name: value for name, value in conv.__dict__.items() if name not in self.__dict__})
        self._parameters = conv._parameters


def _outlines(regions: list[TracedRegion]) -> list[tuple[str, list[list[tuple[str, ...]]], list[str]]]:
    return [(r.name, [outline(graph) for graph in r.graphs()], list(r.failures)) for r in regions]
