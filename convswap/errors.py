"""What convswap raises and warns of on purpose. The messages are written for the person who reads them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType


class ConvswapError(Exception):
    """Base of every error raised on purpose."""


class ModelError(ConvswapError):
    """The model cannot be worked on as it is: wrapped, compiled, scripted, or impossible to copy."""


class PatternError(ConvswapError):
    """A ``where`` pattern is malformed or matches no convolution."""


class NothingToSwapError(ConvswapError):
    """Every convolution would be kept; ``reasons`` says how many for which reason."""

    def __init__(self, message: str, reasons: Mapping[str, int] = MappingProxyType({})) -> None:
        super().__init__(message)
        self.reasons = reasons


class UnknownNameError(ConvswapError):
    """There is no target, option or model of this name."""


class OptionError(ConvswapError):
    """The value of an option is not allowed."""


class GuideError(ConvswapError):
    """A value cannot guide a convolution: it is not there, not yet, or depends on the convolution itself."""


class VerificationError(ConvswapError):
    """A converted layer does not compute what its fidelity promises."""


class FileError(ConvswapError):
    """A file cannot be read or written, or does not hold what it should."""


class CheckpointMismatchError(FileError):
    """A checkpoint's tensors do not fit the model."""


class GrowthWarning(UserWarning):
    """Activations of a converted model are much larger than those of the original."""


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names most like ``name``, best first."""
    known = list(names)
    exact_case = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if exact_case:
        return exact_case
    by_lower = {candidate.lower(): candidate for candidate in known}
    return [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.5)]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """``" Did you mean …?"`` with the names most like ``name``, or nothing if none is."""
    matches = nearest(name, names)
    return f" Did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""
