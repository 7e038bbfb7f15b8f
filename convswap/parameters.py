"""Telling apart the parameters that a conversion added from those that it carried over, and how to train them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from .errors import ConvswapError, ModelError
from .layers import ConvLayer, DclsLayer

POSITION_RATE = 5.0
"""Learning rate of positions, relative to that of all else, as published (arXiv 2112.03740)."""


def new_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of ``model`` that plain convolutions do not have, by qualified name.

    What several layers share is there once, by its first name.

    To train those alone: ``model.requires_grad_(False)``, then set ``requires_grad`` on these again.
    """
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, module in model.named_modules():
        if isinstance(module, ConvLayer):
            for own, parameter in module.new_parameters().items():
                found.setdefault(id(parameter), (f"{name}.{own}" if name else own, parameter))
    return dict(found.values())


def param_groups(model: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Parameters in groups for an optimiser, with the published recipe for DCLS layers (arXiv 2112.03740).

    Positions (``P``) learn ``5 * lr`` and have no weight decay, widths (``SIG``) have no weight decay. Of the rest, as
    in timm, what has at most one axis (norms, biases), is called ``bias``, or is named by ``model.no_weight_decay``
    has none either. Where ``torch.nn.utils.parametrize`` computes positions or widths, what it computes them from
    counts as such. Positions still have to be clamped after each step, see `convswap.layers.clamp_after_step`.

    Args:
        model: any model; before it is wrapped, if it has ``no_weight_decay``: names, or a method that returns them.
        lr: learning rate of all but positions.
        weight_decay: of the rest.

    Returns:
        Dicts with ``params``, ``lr``, ``weight_decay`` and ``name``, of parameters that require gradients only, each
        parameter once, and no group empty. Schedulers that set learning rates themselves, such as ``OneCycleLR``, need
        them by group: ``max_lr=[group["lr"] for group in groups]``.

    Raises:
        ModelError: if a parameter has no shape yet, because its module is lazy.
        ConvswapError: if ``no_weight_decay`` gives something other than names.
    """
    positions, widths = (_of_dcls_layers(model, name) for name in ("P", "SIG"))
    exempt = _exempt(model)
    groups: dict[str, dict[str, Any]] = {
        "decay": {"params": [], "lr": lr, "weight_decay": weight_decay},
        "no decay": {"params": [], "lr": lr, "weight_decay": 0.0},
        "positions": {"params": [], "lr": POSITION_RATE * lr, "weight_decay": 0.0},
        "widths": {"params": [], "lr": lr, "weight_decay": 0.0},
    }
    for names, parameter in _named_once(model):
        if nn.parameter.is_lazy(parameter):
            raise ModelError(f"{names[0]} has no shape yet, because its module is lazy: run a forward pass first")
        if id(parameter) in positions:
            kind = "positions"
        elif id(parameter) in widths:
            kind = "widths"
        elif parameter.dim() <= 1 or any(name in exempt or name.split(".")[-1] == "bias" for name in names):
            kind = "no decay"
        else:
            kind = "decay"
        groups[kind]["params"].append(parameter)
    return [{**group, "name": name} for name, group in groups.items() if group["params"]]


def _of_dcls_layers(model: nn.Module, name: str) -> set[int]:
    """Identities of the parameters that DCLS layers hold by this name, or compute it from."""
    found: set[int] = set()
    for module in model.modules():
        if not isinstance(module, DclsLayer):
            continue
        if parametrize.is_parametrized(module, name):
            computed: Any = module.parametrizations
            found.update(map(id, computed[name]._parameters.values()))  # original, or original0, original1 and so on
        else:
            found.add(id(module._parameters.get(name)))
    return found


def _exempt(model: nn.Module) -> set[str]:
    """The names that ``model.no_weight_decay`` gives, if it has it."""
    given: Any = getattr(model, "no_weight_decay", ())
    names = given() if callable(given) else given
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ConvswapError(f"{type(model).__name__}.no_weight_decay must give a set of names, got {names!r}")
    return set(names)


def _named_once(model: nn.Module) -> Iterator[tuple[list[str], nn.Parameter]]:
    """Each parameter that requires gradients, with all of its names."""
    found: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            found.setdefault(id(parameter), ([], parameter))[0].append(name)
    yield from found.values()
