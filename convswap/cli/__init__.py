"""The command line: ``convswap plan | convert | diff | report | targets | doctor``."""

from .main import main

__all__ = ["main"]
