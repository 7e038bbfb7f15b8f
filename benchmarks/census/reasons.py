"""Reasons and errors in few words."""

from __future__ import annotations

import re


def in_words(error: Exception) -> str:
    """The first line of what an exception says."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def in_general(reason: str) -> str:
    """A reason without names and large numbers, which are of one convolution: ``it is …, not 1×1``."""
    general = re.sub(r"(?<!\w)'[^']*'(?!\w)(?<!'reflect')(?<!'replicate')(?<!'circular')", "…", reason)
    general = re.sub(r"groups=(?!1\b)\d+", "groups=…", general)
    general = re.sub(r"\d+(?:×\d+)+", lambda size: size[0] if set(size[0].split("×")) == {"1"} else "…", general)
    general = re.sub(r"(?<![\w.×-])\d[\d.]*(?: (?:[KMGT]i)?B| [kMGT](?= numbers))(?!\w)", "…", general)
    return re.sub(r"(?<![\w.×-])(?![0123](?!\d))\d+(?:\.\d+)?(?![\w×])", "…", general)
