"""Hypernets of the user's own: calling what makes them, and what can be told of them before they are used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..factories import called, resolve_factory
from ..throwaway import untouched_randomness

SIZES = ((16, 16), (24, 24))
"""Of the guides that a hypernet is tried on."""


def guarded(hypernet: Callable[[int, int], nn.Module] | str) -> Callable[[int, int], nn.Module]:
    """The function ``hypernet``, or the one of this name, as a function that says whose the errors are.

    Raises:
        ConvswapError: if there is no function of this name.
    """
    factory = resolve_factory(hypernet) if isinstance(hypernet, str) else hypernet

    def make(guide_channels: int, hidden: int) -> nn.Module:
        try:
            return _make(factory, guide_channels, hidden)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"its hypernet, {called(hypernet)}, failed with guide_channels={guide_channels} and hidden={hidden} "
                f"({type(error).__name__}: {error})"
            ) from error

    return make


def _make(factory: Callable[[int, int], nn.Module], guide_channels: int, hidden: int) -> nn.Module:
    if torch.get_default_device().type != "meta":
        return factory(guide_channels, hidden)
    with untouched_randomness():  # a plan draws nothing
        try:
            return factory(guide_channels, hidden)
        except Exception:  # perhaps only because there are no numbers on the meta device
            with torch.device("cpu"):
                return factory(guide_channels, hidden)


def check_features(generator: Any, hypernet: Callable[[int, int], nn.Module] | str) -> None:
    """Make sure that the user's own net in ``generator`` gives as many features as the last map takes.

    It is tried on guides of zeros. Where it cannot take those, or the number of features goes by the guide's size,
    nothing can be told.

    Args:
        generator: a hypernet with a body, on any device.
        hypernet: what made the body, for the message.

    Raises:
        ValueError: if it gives another number, or something else.
    """
    guides = [generator.expand.weight.new_zeros(2, generator.guide_channels, *size) for size in SIZES]
    features = _features(generator.body, guides)
    if not features:
        return
    axes, others = map(_axes, features)
    if axes[0] in (2, 4) and axes != others:
        return
    hidden = generator.hidden
    if axes not in ((2, hidden), (4, hidden)):
        made = tuple(features[0].shape) if isinstance(features[0], Tensor) else f"a {type(features[0]).__name__}"
        raise ValueError(
            f"its hypernet, {called(hypernet)}, makes {made} of a guide {tuple(guides[0].shape)}, and must make "
            f"features of shape (B, {hidden}) or (B, {hidden}, h, w), as hidden is {hidden}"
        )


@torch.no_grad()
def _features(body: nn.Module, guides: list[Tensor]) -> list[Any]:
    """What ``body`` makes of the guides; nothing if it fails. It is run in evaluation mode, and left as it is."""
    try:
        with untouched_randomness():
            trial = copy.deepcopy(body).eval()
            return [trial(guide) for guide in guides]
    except Exception:
        return []


def _axes(value: Any) -> tuple[int, int | None]:
    """The number of a tensor's axes, and the size of axis 1."""
    dims = value.dim() if isinstance(value, Tensor) else 0
    return dims, value.shape[1] if dims > 1 else None
