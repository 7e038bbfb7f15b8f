"""Gradients compared through the map that carried a convolution's weights over to the layer that took its place.

If f maps a convolution's weights to the layer's parameters, and the model's loss is the same before and after for all
weights W, L_new(f(W)) = L_old(W), then by the chain rule ⟨∂L_old/∂W, D⟩ = ⟨∂L_new/∂f, J_f D⟩ for every direction D.
f is what builds the layer, with the same random start each time, so J_f D is found by building it from W + D, which is
enough where f is affine, and where that does not agree from W ± h D.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convswap.plan import Step
from convswap.rewrite import build_layers

from .magnitudes import number
from .prepared import SEED

Gradients = Mapping[int, Tensor]
"""Of parameters, by their identities; what is missing has no influence on the loss."""

STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
"""h, where D has the root mean square of the weights."""

AGREED = 1e-10
"""How far the slopes may be apart, relative, that need no closer look: a bent map does not come so close by chance."""

SMOOTH = 1e-6
"""How far the quotients of h and h / 2 may be apart, relative: then what they are extrapolated to is far closer."""

NEGLIGIBLE = 1e-8
"""Slopes this much smaller than the steepest of the model are rounding: errors are not relative to less than that."""


def carried_errors(
    steps: Sequence[Step], layers: Mapping[str, nn.Module], old: Gradients, new: Gradients
) -> dict[str, float | None]:
    """How far the slopes of the two losses are apart, along one direction in the weights and bias of each convolution.

    The direction is half the gradient's own, so that there is a slope, and half random.

    Args:
        steps: swaps, of a plan of the original model on the CPU in double precision.
        layers: what was built for each, by its name.
        old: gradients of the convolutions' parameters.
        new: gradients of the layers' parameters.

    Returns:
        By the name of each convolution the difference, relative to the slope; those whose weights are tied to others
        are compared together, under the first one's name. None where the map is not smooth enough to tell; infinite
        for slopes that are no numbers.
    """
    generator = torch.Generator().manual_seed(SEED)
    moves = []
    for unit in _units(steps):
        parameters = {id(p): p for step in unit for p in step.site.module.parameters() if p.requires_grad}
        directions = {key: _direction(p, old.get(key), generator) for key, p in parameters.items()}
        before = sum((old[key] * way).sum().item() for key, way in directions.items() if key in old)
        moves.append((_Move(unit, parameters, directions, layers, new), before))
    steepest = max((abs(before) for _, before in moves), default=0.0)
    return {move.unit[0].site.name: _error(move, before, NEGLIGIBLE * steepest) for move, before in moves}


def _error(move: _Move, before: float, negligible: float) -> float | None:
    def error(after: float) -> float:
        return number((after - before) / max(abs(before), negligible)) if after != before else 0.0

    at_once = error(move.slope(1.0, two_sided=False))
    if at_once <= AGREED:
        return at_once
    for h in STEPS:
        coarse, fine = move.slope(h), move.slope(h / 2)
        if not math.isfinite(coarse) or not math.isfinite(fine):
            return math.inf
        if abs(coarse - fine) <= SMOOTH * max(abs(fine), negligible):
            return error((4 * fine - coarse) / 3)
    return None


def _units(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """The steps one by one, but those with tied weights together."""
    tied = [step for step in steps if step.site.tied]
    yield from ([step] for step in steps if not step.site.tied)
    if tied:
        yield tied


def _direction(parameter: Tensor, gradient: Tensor | None, generator: torch.Generator) -> Tensor:
    size = _rms(parameter) or 1.0
    drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    if gradient is None or _rms(gradient) == 0:
        return size * drawn
    return size * (gradient / _rms(gradient) + drawn) / 2**0.5


def _rms(values: Tensor) -> float:
    return values.detach().square().mean().sqrt().item()


@dataclass(frozen=True)
class _Move:
    """Weights of convolutions on their way along a direction, and what becomes of the layers that are built of them."""

    unit: Sequence[Step]
    parameters: Mapping[int, nn.Parameter]
    directions: Mapping[int, Tensor]
    layers: Mapping[str, nn.Module]
    gradients: Gradients

    def slope(self, h: float, *, two_sided: bool = True) -> float:
        """⟨gradients, J_f D⟩ by a difference, each parameter of the layers counted once."""
        counted: set[int] = set()
        total = 0.0
        for step in self.unit:
            layer = self.layers[step.site.name]
            ahead = self._built(step, h)
            behind = self._built(step, -h) if two_sided else layer
            for name, parameter in layer.named_parameters():
                if id(parameter) in self.gradients and id(parameter) not in counted:
                    counted.add(id(parameter))
                    moved = ahead.get_parameter(name).detach() - behind.get_parameter(name).detach()
                    total += (self.gradients[id(parameter)] * moved).sum().item()
        return total / (2 * h if two_sided else h)

    def _built(self, step: Step, h: float) -> nn.Module:
        with _moved(self.parameters, self.directions, h):
            return build_layers([step], SEED)[id(step.site.module)]


@contextmanager
def _moved(parameters: Mapping[int, nn.Parameter], directions: Mapping[int, Tensor], h: float) -> Iterator[None]:
    """The parameters at another place, and then exactly where they were."""
    held = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.add_(directions[key], alpha=h)
    try:
        yield
    finally:
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(held[key])
