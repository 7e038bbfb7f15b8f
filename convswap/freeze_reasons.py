"""Why a layer cannot be frozen to a plain convolution."""

from __future__ import annotations

from collections.abc import Container

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

from .freeze_report import FreezeMode
from .layers import (
    ConvLayer,
    ExplicitBoundaryConv2d,
    GuidedLayer,
    HypernetConv2d,
    PartialConv2d,
    RandomPadConv2d,
)
from .layers.attended import AttendedConv
from .sites import hooks_of

_LIBRARY = ConvLayer.__module__.rpartition(".")[0]

_NO_CONVOLUTION: dict[type[ConvLayer], str] = {
    GuidedLayer: "its kernels are handed in at each call",
    RandomPadConv2d: "its padding is drawn anew in each call",
    PartialConv2d: "how it scales an output depends on where that is: at the border, on how many taps are beyond it",
    ExplicitBoundaryConv2d: "it has a kernel for each distance to the border, and a plain convolution has one",
}


def reason_against(name: str, layer: nn.Module, mode: FreezeMode, known: Container[str]) -> str | None:
    """Why a layer cannot be frozen, or None.

    Args:
        name, layer: of the layer.
        mode: see `freeze`.
        known: names of the layers whose mean attention is known.
    """
    found = attached(layer)
    if found is not None:
        return found
    reason = reason_in_itself(layer)
    if reason is not None or not isinstance(layer, AttendedConv):
        return reason
    if mode == "exact":
        return "its kernel depends on its input: the mode 'mean' freezes it at its mean attention over data"
    return None if name in known else "the data did not reach it, so its mean attention is unknown"


def reason_in_itself(layer: nn.Module) -> str | None:
    """Why a layer cannot be frozen, whatever the mode and what is attached to it; or None."""
    if not isinstance(layer, ConvLayer):
        return "it is none of the layers that have a plain convolution to become"
    if not hasattr(layer, "freeze"):
        return _of_kind(layer)
    own = own_code(layer, "freeze")
    if own is None and getattr(layer, "edge_weight", None) is not None:
        return "it has a second kernel for the outputs at the border, and a plain convolution has one"
    return own


def _of_kind(layer: ConvLayer) -> str:
    """What to say of a layer of a kind that has no ``freeze``."""
    if isinstance(layer, HypernetConv2d):
        return "its kernels are generated from " + (
            "its input" if layer.guide is None else f"the guide {layer.guide!r}"
        )
    for kind, reason in _NO_CONVOLUTION.items():
        if isinstance(layer, kind):
            return reason
    return "its kernels depend on its input"


def own_code(layer: nn.Module, method: str) -> str | None:
    """What to say of a layer of a class that computes something else than ours, which ``method`` knows nothing of.

    That is ``freeze`` or ``revert``. None if its class has our ``forward``, or together with its own, or after it, its
    own method.
    """
    for kind in type(layer).__mro__:
        if method in vars(kind):
            return None
        if "forward" in vars(kind):
            if kind.__module__.startswith(f"{_LIBRARY}."):
                return None
            return f"{kind.__qualname__} has a forward of its own: give it a {method} that matches"
    return None


def attached(layer: nn.Module) -> str | None:
    """What is attached to a layer that would be lost with it, and how to remove it."""
    for part in layer.modules():
        if parametrize.is_parametrized(part):
            names = ", ".join(part.parametrizations)  # type: ignore[arg-type]
            return (
                f"its {names} is computed by a parametrisation (such as weight_norm): remove it first, with "
                "torch.nn.utils.parametrize.remove_parametrizations"
            )
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                return f"its {hook._tensor_name} is pruned: make that permanent first, with torch.nn.utils.prune.remove"
            if isinstance(hook, WeightNorm):
                return "it has a weight_norm: remove it first, with torch.nn.utils.remove_weight_norm"
    hooks = [kind for part in layer.modules() if not _left_by_weight_norm(part) for kind in hooks_of(part)]
    if hooks:
        return f"it has hooks that would be lost ({', '.join(dict.fromkeys(hooks))}): remove them first"
    return None


def _left_by_weight_norm(part: nn.Module) -> bool:
    """Whether all hooks of ``part`` are the one that torch forgets when ``parametrizations.weight_norm`` is removed."""
    hooks = [getattr(hook, "hook", hook) for hook in part._load_state_dict_pre_hooks.values()]
    ours = [hook for hook in hooks if getattr(hook, "__module__", None) == "torch.nn.utils.parametrizations"]
    return len(ours) == len(hooks) and set(hooks_of(part)) == {"load-state-dict pre-hook"}
