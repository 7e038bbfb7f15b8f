"""Copies of models with reverted layers, whose forward hands no guide to what is a convolution again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from .layers.hypernet_conv import HypernetConv2d
from .plain_copies import copy_with_convs, fit_in
from .replacing import put_in_place
from .revert_edits import call_without_guides, take_back
from .rewrite import copy_with


def copy_with_reverted(model: nn.Module, layers: Mapping[str, nn.Module], convs: Mapping[str, Any]) -> nn.Module:
    """A copy of ``model`` with ``convs`` in the places of its ``layers``, by name.

    Raises:
        ModelError: if the model cannot be copied, or its class was changed after it was converted.
    """
    guided = any(isinstance(layer, HypernetConv2d) for layer in layers.values())
    if not guided:
        return copy_with_convs(model, layers, convs)
    if not any(isinstance(module, fx.GraphModule) for module in model.modules()):
        made = copy_with_convs(model, layers, convs)
    else:  # whose copies look for the parts of layers that their graphs call
        fit_in(model, layers, convs)
        made = copy_with(model, {})
        placed = {id(made.get_submodule(name)): conv for name, conv in convs.items()}
        if id(made) in placed:
            return convs[""]  # type: ignore[no-any-return]
        call_without_guides(made, placed)
        put_in_place(made, placed)
    take_back(made, convs.values())
    return made
