"""Writing what a command has made of a model, and telling what was done."""

from __future__ import annotations

import argparse

from torch import nn

from ..files import save
from ..report import report
from ..sources import Source
from . import arguments
from .output import print_json, progress, show


def write_model(parsed: argparse.Namespace, model: nn.Module, source: Source | None) -> None:
    """Write a converted model where ``--out`` says and its report where ``--report`` does, and print the report."""
    made = report(model)
    with progress(f"writing {parsed.out}"):
        save(model, parsed.out, source, overwrite=parsed.force)
        arguments.write_report(parsed, made)
    if parsed.json:
        print_json(made.to_dict())
    else:
        show(made)
        show(f"written to {parsed.out}")
