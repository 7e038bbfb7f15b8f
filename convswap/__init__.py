"""Replace the convolutions of a trained model by other layers, keeping its function."""

import sys as _sys
from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING, Any

from . import layers as layers  # at once, as programs that torch has exported need the ops

if TYPE_CHECKING:  # what `_HOMES` says
    from .attention_statistics import attention_statistics
    from .choice import Swap
    from .convert import apply, convert, convert_
    from .diff import diff
    from .errors import ConvswapError
    from .files import load, save
    from .freezing import freeze
    from .parameters import new_parameters, param_groups
    from .plan import plan
    from .report import report
    from .reverting import revert
    from .rules import read_rules
    from .targets import register
    from .temperature import TemperatureSchedule
    from .trace import trace
    from .verify import verify

__version__ = "0.1.0"

__all__ = [
    "ConvswapError",
    "Swap",
    "TemperatureSchedule",
    "apply",
    "attention_statistics",
    "convert",
    "convert_",
    "diff",
    "freeze",
    "load",
    "new_parameters",
    "param_groups",
    "plan",
    "read_rules",
    "register",
    "report",
    "revert",
    "save",
    "trace",
    "verify",
]

_HOMES = {
    "ConvswapError": "errors",
    "Swap": "choice",
    "TemperatureSchedule": "temperature",
    "apply": "convert",
    "attention_statistics": "attention_statistics",
    "convert": "convert",
    "convert_": "convert",
    "diff": "diff",
    "freeze": "freezing",
    "load": "files",
    "new_parameters": "parameters",
    "param_groups": "parameters",
    "plan": "plan",
    "read_rules": "rules",
    "register": "targets",
    "report": "report",
    "revert": "reverting",
    "save": "files",
    "trace": "trace",
    "verify": "verify",
}
"""The module that each name comes from, which is imported when the name is asked for: ``import convswap`` is quick."""


class _Package(_ModuleType):
    """A package whose functions hide the modules of the same names, whichever of them is imported first.

    They are looked up in their modules each time, so that what a test puts there for a while does not stay here.
    """

    def __getattr__(self, name: str) -> Any:
        if name in _HOMES:
            return getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)
        if name.isidentifier() and not name.startswith("_") and _find_spec(f"{__name__}.{name}") is not None:
            return _import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, _ModuleType)):  # which importing a module would set
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


_sys.modules[__name__].__class__ = _Package
