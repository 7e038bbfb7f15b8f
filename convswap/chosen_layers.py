"""Which layers of a model are to be turned into plain convolutions."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from .conv_classes import CONVS
from .errors import NothingToSwapError
from .layers import ConvLayer
from .modules import within
from .plain_report import KeptLayer
from .sites import ConvSite
from .where import Where, matching


def nothing_to(verb: str, model: nn.Module, kept: Sequence[KeptLayer]) -> NothingToSwapError:
    """The error where all chosen layers are kept, with the reasons of the first."""
    lines = "".join(f"\n  {layer.name or 'the model'}: {layer.reason}" for layer in kept[:8])
    return NothingToSwapError(f"nothing to {verb}: {type(model).__name__} has no layer that can be{lines}")


def chosen_layers(model: nn.Module, where: Where, verb: str, others: Collection[str] = ()) -> dict[str, nn.Module]:
    """The layers of ours that ``where`` chooses, by their first names; those that are parts of others left out.

    Args:
        model: the model.
        where: as for `freeze`.
        verb: what is to be done to them, for the message.
        others: names of layers that are none of ours, and that conversions put there.

    Raises:
        NothingToSwapError: if there are none at all.
        PatternError: if a pattern matches none.
    """

    def is_layer(name: str, module: nn.Module) -> bool:
        return isinstance(module, ConvLayer) or (name in others and not isinstance(module, CONVS))

    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not within(name, found) and any(is_layer(own, module) for own in names[id(module)]):
            found[name] = module
    if not found:
        raise NothingToSwapError(f"nothing to {verb}: {type(model).__name__} has no layer of convswap's")
    sites = [
        ConvSite(name, layer, index, aliases=tuple(other for other in names[id(layer)] if other != name))  # type: ignore[arg-type]
        for index, (name, layer) in enumerate(found.items())
    ]
    plain = {
        name: type(module).__name__
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, CONVS) and not within(name, found)
    }
    wanted = matching(where, sites, plain, what="layers")
    return {name: layer for name, layer in found.items() if name in wanted}
