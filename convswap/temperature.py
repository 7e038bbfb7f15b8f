"""The temperature of attentions, lowered while a model trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .errors import ConvswapError, OptionError
from .layers.attention import Tempered, check_precision, checked_count, checked_temperature


class TemperatureSchedule:
    """Lowers the temperature of a model's attentions linearly, epoch by epoch, as schedulers of torch do with rates.

    In epoch e = 1, 2, … it is ``T(e) = start - (start - end) * (min(e, epochs) - 1) / (epochs - 1)`` (Chen et al. 2020,
    arXiv 1912.03458, section 3.2): near-uniform attention lets all kernels train at first. ``step`` is to be called
    after every epoch. A schedule of one epoch is at ``end`` at once.

    Temperatures are buffers, filled in place: nothing is compiled anew, and they are part of the model's state dict. To
    resume, load the states of the model and of a new schedule, as with a scheduler of torch.

    Args:
        model: a model with dynamic or omni-dimensional dynamic convolutions; it may be wrapped or compiled.
        start: temperature of the first epoch.
        end: temperature of epoch ``epochs`` and all after it.
        epochs: number of epochs until then, at least 1.
        last_epoch: index of the last epoch that is over, from 0; -1 for none. Makes a schedule that goes on from there.

    Attributes:
        start, end, epochs: as given.
        last_epoch: index, from 0, of the epoch that the temperature is for.

    Raises:
        ConvswapError: if the model has no layer with a temperature.
        OptionError: for temperatures that are not positive and finite, in the precision of the model too, or numbers of
            epochs that cannot be.
    """

    start: float
    end: float
    epochs: int
    last_epoch: int

    def __init__(
        self, model: nn.Module, start: float = 30.0, end: float = 1.0, epochs: int = 10, last_epoch: int = -1
    ) -> None:
        if not isinstance(model, nn.Module):
            raise OptionError(f"model must be an nn.Module, got {type(model).__name__}")
        state = _checked({"start": start, "end": end, "epochs": epochs, "last_epoch": last_epoch}, _attentions(model))
        self.model = model
        self.__dict__.update(state)
        self.step()

    def step(self) -> None:
        """Go on to the next epoch, and set its temperature."""
        self.last_epoch += 1
        self._set()

    def get_last_temperature(self) -> float:
        """The temperature that was set last."""
        if self.last_epoch + 1 >= self.epochs:
            return self.end
        return self.start - (self.start - self.end) * self.last_epoch / (self.epochs - 1)

    def state_dict(self) -> dict[str, Any]:
        """All there is to the schedule but the model."""
        return {name: value for name, value in self.__dict__.items() if name != "model"}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where the schedule was that `state_dict` is of, and set the temperature of that epoch.

        Raises:
            ConvswapError: if that is not the state of such a schedule, or cannot be this model's; nothing is changed.
        """
        if set(state_dict) != set(self.state_dict()):
            raise ConvswapError(
                f"the state of a TemperatureSchedule has {', '.join(self.state_dict())}; this has "
                f"{', '.join(map(str, state_dict)) or 'nothing'}"
            )
        self.__dict__.update(_checked(state_dict, _attentions(self.model), least_epoch=0))
        self._set()

    def _set(self) -> None:
        attentions = _attentions(self.model)
        _checked(self.state_dict(), attentions)  # the model may be of another precision since
        for attention in attentions:
            attention.temperature.fill_(self.get_last_temperature())

    def __repr__(self) -> str:
        return (
            f"TemperatureSchedule(start={self.start}, end={self.end}, epochs={self.epochs}, "
            f"last_epoch={self.last_epoch})"
        )


def _attentions(model: nn.Module) -> list[Tempered]:
    """All that have a temperature.

    Raises:
        ConvswapError: if there is none.
    """
    found = [module for module in model.modules() if isinstance(module, Tempered)]
    if not found:
        raise ConvswapError(
            f"{type(model).__name__} has no layer whose attention has a temperature: convert it to dynamic or odconv "
            "first (the sigmoids of condconv have none)"
        )
    return found


def _checked(state: Mapping[str, Any], attentions: list[Tempered], least_epoch: int = -1) -> dict[str, Any]:
    """The state of a schedule, with temperatures as floats.

    Raises:
        OptionError: if there cannot be such a schedule for these attentions.
    """
    checked = dict(state)
    try:
        for name in ("start", "end"):
            checked[name] = checked_temperature(state[name], name)
            for dtype in {attention.temperature.dtype for attention in attentions}:
                check_precision(checked[name], name, dtype)
        checked["epochs"] = checked_count(state["epochs"], "epochs", 1)
        checked["last_epoch"] = checked_count(state["last_epoch"], "last_epoch", least_epoch)
    except (TypeError, ValueError) as error:
        raise OptionError(str(error)) from error
    return checked
