"""Whether a model is being exported, when all must consist of torch's own operations."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """As ``torch.compiler.is_exporting``, which the compiler of torch 2.11 takes to be always true.

    What that function returns is read itself, so that compiled code does not run as exported code has to.
    """
    flag: bool = torch.compiler._is_exporting_flag
    return flag
