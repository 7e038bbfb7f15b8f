"""How far convolutions are from the layers that they have taken the places of, over data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .attention_batches import BatchRunner, watching
from .errors import ConvswapError
from .further_inputs import without_further_inputs
from .modules import evaluation_mode
from .plain_report import Distance


@dataclass(frozen=True)
class Measured:
    """What was measured; without data nothing.

    Attributes:
        layers: how far each convolution is from the layer that it was, by name, of those that the data reached.
        output: how far the model's output is from what it was.
        samples: of the data.
    """

    layers: Mapping[str, Distance] = field(default_factory=dict)
    output: Distance | None = None
    samples: int = 0


def measured(
    runner: BatchRunner,
    model: nn.Module,
    made: nn.Module,
    layers: Mapping[str, nn.Module],
    convs: Mapping[str, nn.Module],
) -> Measured:
    """How far convolutions are from the layers that they were, and the model's output from what it was.

    Args:
        runner: runs ``model`` over the data.
        model: with the layers.
        made: with the convolutions.
        layers, convs: by name.

    Raises:
        ConvswapError: if a model does not run.
    """
    distances: dict[str, _Distances] = {}
    at_output = _Distances()

    def compare(name: str, input: Tensor, output: Tensor) -> None:
        if output.numel():
            distances.setdefault(name, _Distances()).add(output, convs[name](input))

    def each(call: Any, output: Any) -> None:
        torch.set_rng_state(runner.random_state)  # both see the same random numbers, if they draw any
        try:
            args, kwargs = without_further_inputs(model, call, made)
            actual = made(*args, **kwargs)
        except Exception as error:  # whatever the code around the layers raises
            raise ConvswapError(
                f"the code around a layer does not work with the convolution that it has become: {error}"
            ) from error
        for one, other in zip(tree_leaves(output), tree_leaves(actual), strict=True):
            if isinstance(one, Tensor) and one.is_floating_point():
                at_output.add(one, other)

    with evaluation_mode(made), watching(layers, compare):
        runner.run(each)
    layers_apart = {name: found.result() for name, found in distances.items()}
    return Measured(layers_apart, at_output.result(), runner.samples)


class _Distances:
    """Adds up how far tensors are from others, batch by batch."""

    def __init__(self) -> None:
        self.greatest = self.magnitude = self.differences = self.values = 0.0
        self.compared = False

    def add(self, expected: Tensor, actual: Tensor) -> None:
        if expected.shape != actual.shape:
            self.greatest = self.differences = math.inf
            self.compared = True
            return
        if not expected.numel():
            return
        wide = torch.promote_types(expected.dtype, torch.float32)
        finite = expected.isfinite()  # where it overflows there is nothing to compare with
        self.compared |= bool(finite.any())
        expected, actual = (torch.where(finite, value, 0).to(wide) for value in (expected, actual))
        difference = (actual - expected).nan_to_num(nan=math.inf)
        self.greatest = max(self.greatest, difference.abs().max().item())
        self.magnitude = max(self.magnitude, expected.abs().max().item())
        self.differences = math.hypot(self.differences, difference.norm().item())
        self.values = math.hypot(self.values, expected.norm().item())

    def result(self) -> Distance:
        if not self.compared:
            return Distance(math.inf, math.inf, compared=False)
        return Distance(
            self.greatest / self.magnitude if self.magnitude else self.greatest,
            self.differences / self.values if self.values else self.differences,
        )
