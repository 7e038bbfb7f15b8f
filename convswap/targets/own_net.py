"""Nets of the user's own in layers: calling what makes them, and what can be told of them before they are used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..factories import called, resolve_factory
from ..layers.own_net import uncached
from ..throwaway import untouched_randomness

NetFactory = Callable[[int, int], nn.Module]

SIZES = (16, 24)
"""Pixels on each axis of what a net is tried on."""


@dataclass(frozen=True)
class OwnNet:
    """An option that a user's net is made by, as messages are to speak of it.

    Attributes:
        option: its name.
        channels: name of the first argument of the function that makes the net; the second is ``hidden``.
        read: what the net reads.
        dims: number of axes that this has besides those of samples and channels.
        shapes: what the net must make of it, where ``{hidden}`` is the number of features.
        axes: how many axes that may have, 2 among them; any number from 2 on if None.
    """

    option: str
    channels: str
    read: str
    dims: int
    shapes: str
    axes: tuple[int, ...] | None = None

    def guarded(self, factory: NetFactory | str) -> NetFactory:
        """``factory``, or the function of this name, as a function that says whose the errors are.

        Raises:
            ConvswapError: if there is no function of this name.
        """
        function = resolve_factory(factory) if isinstance(factory, str) else factory

        def make(channels: int, hidden: int) -> nn.Module:
            try:
                return _make(uncached(function), channels, hidden)
            except (Exception, SystemExit) as error:
                raise ValueError(
                    f"its {self.option}, {called(function)}, failed with {self.channels}={channels} and "
                    f"hidden={hidden} ({type(error).__name__}: {error})"
                ) from error

        return make

    def check_features(self, net: nn.Module, factory: NetFactory | str, channels: int, like: Tensor) -> None:
        """Make sure that ``net`` gives as many features as the linear map that follows it takes.

        It is tried on zeros. Where it cannot take those, or the number of features goes by the size of what it reads,
        nothing can be told.

        Args:
            net: the user's own, on any device.
            factory: what made it, for the message.
            channels: of what it reads.
            like: the weight of the map that takes the features, (numbers, hidden).

        Raises:
            ValueError: if it gives another number, or something else.
        """
        images = [like.new_zeros(2, channels, *(size,) * self.dims) for size in SIZES]
        features = _features(net, images)
        if not features:
            return
        axes, others = map(_axes, features)
        possible = axes[0] >= 2 if self.axes is None else axes[0] in self.axes
        if possible and axes != others:
            return
        hidden = like.shape[1]
        if not possible or axes[1] != hidden:
            made = tuple(features[0].shape) if isinstance(features[0], Tensor) else f"a {type(features[0]).__name__}"
            raise ValueError(
                f"its {self.option}, {called(factory)}, makes {made} of {self.read} {tuple(images[0].shape)}, and must "
                f"make features of shape {self.shapes.format(hidden=hidden)}, as hidden is {hidden}"
            )


def _make(factory: NetFactory, channels: int, hidden: int) -> nn.Module:
    if torch.get_default_device().type != "meta":
        return factory(channels, hidden)
    with untouched_randomness():  # a plan draws nothing
        try:
            return factory(channels, hidden)
        except Exception:  # perhaps only because there are no numbers on the meta device
            with torch.device("cpu"):
                return factory(channels, hidden)


@torch.no_grad()
def _features(net: nn.Module, images: list[Tensor]) -> list[Any]:
    """What ``net`` makes of the images; nothing if it fails. It is run in evaluation mode, and left as it is."""
    try:
        with untouched_randomness():
            trial = copy.deepcopy(net).eval()
            return [trial(image) for image in images]
    except Exception:
        return []


def _axes(value: Any) -> tuple[int, int | None]:
    """The number of a tensor's axes, and the size of axis 1."""
    dims = value.dim() if isinstance(value, Tensor) else 0
    return dims, value.shape[1] if dims > 1 else None
