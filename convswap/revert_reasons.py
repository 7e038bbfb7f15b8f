"""What layers revert to, or why they do not."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .conv_classes import CONVS
from .freeze_reasons import attached, own_code
from .layers import ConvLayer, DclsLayer, GuidedLayer
from .layers.reverted import Lost
from .own_calls import OwnCalls, may_be_masked, reason_in_calls

MOST_BESIDE_TAPS = {"gauss": 0.01}
"""Largest part of a DCLS kernel's norm that may be lost, by version. A Gaussian is never a point: one that stands on a
tap draws on its neighbours too, some tenths of a percent. Of other versions it must be nothing."""


def reversion_of(layer: nn.Module, calls: OwnCalls | None = None) -> tuple[nn.Module, Lost] | str:
    """The convolution that a layer reverts to and what is lost, or in words why it is kept.

    Args:
        layer: the layer.
        calls: of it in the model's own code, see `own_calls`; None if there is no telling, or it takes its input alone.
    """
    reason = attached(layer)
    if reason is not None:
        return reason
    lost = lost_by(layer, calls)
    reason = _beside_taps(layer, lost)
    if reason is not None:
        return reason
    conv, reason = reverted_or_reason(layer, calls)
    return str(reason) if conv is None else (conv, lost)


def reverted_or_reason(layer: nn.Module, calls: OwnCalls | None = None) -> tuple[nn.Module | None, str | None]:
    """The convolution that a layer reverts to, whatever is lost; or None, and why there is none."""
    made: Any = layer
    called = reason_in_calls(calls)
    if called is not None:
        return None, called
    if not callable(getattr(layer, "revert", None)):
        if isinstance(layer, GuidedLayer):
            return None, "its kernels are handed in at each call"
        return None, (
            f"a {type(layer).__name__} has no method revert() that would make a plain convolution of it: see "
            "convswap.targets.Target"
        )
    reason = own_code(layer, "revert")
    if reason is not None:
        return None, reason
    try:
        conv: nn.Module = made.revert()
    except ValueError as error:
        return None, str(error)
    if not isinstance(conv, CONVS):
        return None, f"its revert() makes a {type(conv).__name__}, and no convolution of torch's"
    if isinstance(layer, ConvLayer):
        return conv, None
    with torch.inference_mode(False):
        return copy.deepcopy(conv), None  # layers of others may hand out a part of theirs


def lost_by(layer: nn.Module, calls: OwnCalls | None = None) -> Lost:
    """What is lost when a layer is reverted; ``calls`` as in `reversion_of`."""
    own = getattr(layer, "lost_by_reverting", None)
    if callable(own):
        made = own()
        if isinstance(made, Lost):
            return replace(made, fidelity="approximate") if may_be_masked(layer, calls) else made
    return Lost((f"what a {type(layer).__name__} has besides a convolution's weight and bias",), "approximate")


def _beside_taps(layer: nn.Module, lost: Lost) -> str | None:
    if not isinstance(layer, DclsLayer) or lost.fidelity == "exact" or lost.kernel_error is None:
        return None
    if not math.isfinite(lost.kernel_error):
        return "its weights or positions are not finite, so what of its kernel is on the taps cannot be told"
    if lost.kernel_error <= MOST_BESIDE_TAPS.get(getattr(layer, "version", ""), 0):
        return None
    taps = "×".join(map(str, layer.kernel_size))
    spread = "" if max(layer.dilation) == 1 else f", spread by a dilation of {'×'.join(map(str, layer.dilation))},"
    return (
        f"its positions have moved, and {100 * lost.kernel_error:.2g} % of its kernel (in the Euclidean norm) is "
        f"beside the {taps} taps{spread} of a convolution: freeze makes one of the whole kernel, which is larger, and "
        "the layer's own revert() one that leaves this out"
    )
