"""Replace the convolutions of a trained model by other layers, keeping its function."""

from .attention_statistics import attention_statistics
from .convert import apply, convert, convert_
from .diff import diff
from .errors import ConvswapError
from .files import load, save
from .freezing import freeze
from .parameters import new_parameters, param_groups
from .plan import Swap, plan
from .report import report
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
    "register",
    "report",
    "save",
    "trace",
    "verify",
]
