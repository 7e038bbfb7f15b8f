"""The command line: ``convswap plan | convert | freeze | diff | report | targets | build | doctor``."""

from .main import main

__all__ = ["main"]
