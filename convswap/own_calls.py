"""How a model's own code calls the layers in it: with their input alone, or with more."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .generated_forward import guided_forward
from .layers import PartialConv2d
from .regions import trace_regions
from .revert_edits import call_without_guides
from .throwaway import cleared_caches, throwaway_copy, untouched_randomness


@dataclass(frozen=True)
class OwnCalls:
    """What traced code shows of the calls of a layer.

    Attributes:
        further: names of the arguments that it is handed besides its input, in order.
        seen: whether there is a call of it at all.
    """

    further: tuple[str, ...] = ()
    seen: bool = False


def own_calls(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, OwnCalls]:
    """How the code of ``model`` calls those of ``layers``, by name, that can be handed more than their input.

    Guides that conversions hand in do not count.

    Raises:
        ModelError: if the model cannot be copied.
    """
    wanted = {name: layer for name, layer in layers.items() if name and len(_arguments(layer)) > 1}
    if not wanted:
        return {}
    further: dict[int, dict[str, None]] = {}
    with untouched_randomness(), cleared_caches(model):
        copied = throwaway_copy(model, FakeTensorMode(allow_non_fake_inputs=True))
        copies = {name: copied.get_submodule(name) for name in wanted}
        _undo_routes(copied, {id(layer) for layer in copies.values()})
        for region in trace_regions(copied):
            root = copied.get_submodule(region.name)
            for node in (node for graph in region.graphs() for node in graph.nodes if node.op == "call_module"):
                if node.target:  # what is called without a name is a region of its own, whose caller is unknown
                    layer = root.get_submodule(str(node.target))
                    further.setdefault(id(layer), {}).update(dict.fromkeys(_handed(layer, node)))
    return {name: OwnCalls(tuple(further.get(id(one), ())), id(one) in further) for name, one in copies.items()}


def reason_in_calls(calls: OwnCalls | None) -> str | None:
    """Why a layer that is called so cannot become a plain convolution, or None."""
    if calls is None or not calls.further:
        return None
    names = " and ".join(calls.further)
    return (
        f"the model's own code hands it {names} besides its input, which a plain convolution does not take: let that "
        "code call it with its input alone first"
    )


def may_be_masked(layer: nn.Module, calls: OwnCalls | None) -> bool:
    """Whether code that cannot be traced may hand ``layer`` a mask."""
    return isinstance(layer, PartialConv2d) and not (calls is not None and calls.seen)


def _arguments(layer: nn.Module) -> list[str]:
    return list(inspect.signature(layer.forward).parameters)


def _handed(layer: nn.Module, node: fx.Node) -> list[str]:
    """The arguments of a call but the first."""
    names = _arguments(layer)
    positional = [name for name, _ in zip(names[1:], node.args[1:], strict=False)]
    return [*positional, *(name for name in node.kwargs if name != names[0])]


def _undo_routes(copied: nn.Module, layers: set[int]) -> None:
    """Let the code of a throwaway copy hand in what it did before guides were routed to ``layers``."""
    for module in copied.modules():
        changed = guided_forward(module)
        if changed is not None and type(module) is changed.subclass:
            module.__class__ = changed.base
    call_without_guides(copied, layers)
