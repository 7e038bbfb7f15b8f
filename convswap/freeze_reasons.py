"""Why a layer cannot be frozen to a plain convolution."""

from __future__ import annotations

from collections.abc import Container

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

from .freeze_report import FreezeMode
from .layers import ConvLayer, DclsLayer, GuidedLayer, HypernetConv2d
from .layers.attended import AttendedConv
from .sites import hooks_of

_LIBRARY = ConvLayer.__module__.rpartition(".")[0]


def reason_against(name: str, layer: nn.Module, mode: FreezeMode, known: Container[str]) -> str | None:
    """Why a layer cannot be frozen, or None.

    Args:
        name, layer: of the layer.
        mode: see `freeze`.
        known: names of the layers whose mean attention is known.
    """
    attached = _attached(layer)
    if attached is not None:
        return attached
    if isinstance(layer, DclsLayer | AttendedConv):
        own = own_forward(layer)
        if own is not None:
            return own
        if isinstance(layer, DclsLayer):
            return None
        if mode == "exact":
            return "its kernel depends on its input: the mode 'mean' freezes it at its mean attention over data"
        return None if name in known else "the data did not reach it, so its mean attention is unknown"
    if isinstance(layer, HypernetConv2d):
        return "its kernels are generated from " + (
            "its input" if layer.guide is None else f"the guide {layer.guide!r}"
        )
    if isinstance(layer, GuidedLayer):
        return "its kernels are handed in at each call"
    return "its kernels depend on its input"


def own_forward(layer: nn.Module) -> str | None:
    """What to say of a layer of a class that computes something else than ours, which its ``freeze`` knows nothing of.

    None if its class has our ``forward``, or together with its own, or after it, its own ``freeze``.
    """
    for kind in type(layer).__mro__:
        if "freeze" in vars(kind):
            return None
        if "forward" in vars(kind):
            if kind.__module__.startswith(f"{_LIBRARY}."):
                return None
            return f"{kind.__qualname__} has a forward of its own: give it a freeze that matches"
    return None


def _attached(layer: nn.Module) -> str | None:
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
