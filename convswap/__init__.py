"""Replace the convolutions of a trained model by other layers, keeping its function."""

from .convert import apply, convert, convert_
from .diff import diff
from .errors import ConvswapError
from .files import load, save
from .parameters import new_parameters, param_groups
from .plan import Swap, plan
from .report import report
from .targets import register
from .trace import trace
from .verify import verify

__version__ = "0.1.0"

__all__ = [
    "ConvswapError",
    "Swap",
    "apply",
    "convert",
    "convert_",
    "diff",
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
