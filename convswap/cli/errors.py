"""Errors of the command line alone."""

from __future__ import annotations

from ..errors import ConvswapError


class UsageError(ConvswapError):
    """The command line is wrong in itself, whatever the files and the model hold."""


class OutputError(ConvswapError):
    """What was asked for cannot be printed."""
