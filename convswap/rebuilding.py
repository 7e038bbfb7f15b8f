"""Carrying out a recipe on a model itself, stage by stage, to be filled with weights afterwards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from .convert import recipe_steps
from .errors import FileError
from .freezing import freezable, plain_layer
from .layers import HypernetConv2d
from .plan import Step
from .recipe import Recipe
from .replacing import put_in_place
from .revert_edits import call_without_guides, restorer, take_back
from .reverting import revertible
from .rewrite import build_layers, plain_outline


class Rebuilding:
    """A model whose convolutions are being replaced, and how to put all of it back.

    Attributes:
        model: the model as it is now: itself, or what has taken its place if it was a single convolution.
    """

    def __init__(self, model: nn.Module) -> None:
        """Change nothing yet."""
        self.model = model
        self._undoing: list[Callable[[], None]] = []

    def carry_out(self, stage: Recipe, trust_source: bool, room: int, path: str) -> tuple[Step, ...]:
        """Do what the steps of one stage of a recipe say.

        Args:
            stage: of the recipe.
            trust_source: whether functions that it names may be imported.
            room: numbers that there are in the file, of which the new layers cannot have more.
            path: the file, for messages.

        Returns:
            The steps for this model.

        Raises:
            FileError: if the layers would be larger than the file.
            ConvswapError: if the recipe does not fit the model.
        """
        steps, _ = recipe_steps(stage, self.model, trust_source)
        swaps = [step for step in steps if step.action == "swap"]
        plain = {step.name: step for step in stage.steps if step.plain}
        outlines = {
            step.site.name: plain_outline(step, plain[step.site.name].reverted)
            for step in swaps
            if step.site.name in plain
        }
        wanted = sum(step.cost_after.parameters for step in swaps if step.site.name not in plain)
        wanted += sum(parameter.numel() for conv in outlines.values() for parameter in conv.parameters())
        if wanted > room:
            raise FileError(
                f"{path} does not fit {type(self.model).__name__}: there its recipe asks for {wanted} parameters of "
                "new layers alone, more than the file holds"
            )
        for step in swaps:
            if step.site.name in outlines:
                outlines[step.site.name].to_empty(device=step.site.module.weight.device)
        made = build_layers(steps, {step.name: step.seed for step in stage.steps}, outlines)
        self._put([(step.site.module, made[id(step.site.module)]) for step in swaps])
        own = [step for step in stage.steps if step.target is None]
        frozen = [freezable(self.model, step.name) for step in own if step.frozen]
        names = [step.name for step in own if step.reverted]
        reverted = [(layer, conv) for layer, conv, _ in revertible(self.model, names)]
        guided = {id(layer): conv for layer, conv in reverted if isinstance(layer, HypernetConv2d)}
        if guided:
            self._undoing.append(restorer(self.model))
            call_without_guides(self.model, guided)
        self._put([*((layer, plain_layer(layer)) for layer in frozen), *reverted])
        take_back(self.model, guided.values())
        return steps

    def undo(self) -> None:
        """Put everything back."""
        for step in reversed(self._undoing):
            step()

    def _put(self, pairs: list[tuple[Any, nn.Module]]) -> None:
        for old, new in pairs:
            self._undoing.append(partial(self._replace, new, old))
        whole = {id(old): new for old, new in pairs}
        if id(self.model) in whole:
            self.model = whole.pop(id(self.model))
        put_in_place(self.model, whole)

    def _replace(self, old: nn.Module, new: nn.Module) -> None:
        if old is self.model:
            self.model = new
        else:
            put_in_place(self.model, {id(old): new})
