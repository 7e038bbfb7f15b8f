"""Comparing tensors, and the parts of them that layers promise something about."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .conv_classes import padding_widths, plain_on_meta
from .errors import VerificationError
from .layers._geometry import effective_size, split_outputs
from .targets.base import Fidelity
from .verification import EXACT_LIMITS, LayerCheck


def check_layer(name: str, conv: Any, fidelity: Fidelity, x: Tensor, expected: Tensor, actual: Tensor) -> LayerCheck:
    """Compare what a layer gives to what its convolution does, where it promises to give the same.

    Args:
        name: the layer's.
        conv: the convolution.
        fidelity: what the layer promises.
        x: the input of both.
        expected: what the convolution gives.
        actual: what the layer gives.

    Raises:
        VerificationError: if the shapes differ.
    """
    if expected.shape != actual.shape:
        raise VerificationError(
            f"{name}: the convolution gives shape {tuple(expected.shape)}, the new layer {tuple(actual.shape)}"
        )
    outputs = expected.numel()
    if fidelity == "interior":
        expected, actual = interior(conv, x, expected), interior(conv, x, actual)
    compared = int(expected.isfinite().sum()) / outputs if outputs else 0.0
    _, error = compare_tensors(expected, actual)
    limit = None
    if fidelity in ("exact", "interior"):
        limit = EXACT_LIMITS.get(expected.dtype, 4 * torch.finfo(expected.dtype).eps)
    passed = error < float("inf") and (limit is None or error <= limit)
    return LayerCheck(name, fidelity, error, limit, passed, compared)


def of_all_calls(checks: Sequence[LayerCheck], outputs: Sequence[int]) -> LayerCheck:
    """The check of a layer from those of its calls, which have so many outputs: the greatest error counts."""
    compared = sum(round(check.compared * number) for check, number in zip(checks, outputs, strict=True))
    worst = max(checks, key=lambda check: check.relative_error)
    return replace(worst, compared=compared / max(sum(outputs), 1))


def interior(conv: Any, x: Tensor, output: Tensor) -> Tensor:
    """The part of ``output`` whose windows, first tap to last, lie wholly in ``x``."""
    plain = plain_on_meta(conv)
    dims = len(plain.kernel_size)
    size, outputs = x.shape[-dims:], output.shape[-dims:]
    window, widths = effective_size(plain.kernel_size, plain.dilation), padding_widths(plain, size)
    for axis, own in enumerate(zip(size, widths, window, plain.stride, outputs, strict=True), start=-dims):
        split = split_outputs(*own)
        output = output.narrow(axis, split.low, split.interior)
    return output


class Outputs(NamedTuple):
    """How far the results of two models are apart; None where there are no finite numbers to compare."""

    difference: float | None
    relative_error: float | None
    same_shapes: bool


def compare_outputs(expected: Any, actual: Any) -> Outputs:
    """`compare_tensors` for all floating-point tensors of nested results; nothing is compared if shapes differ.

    Raises:
        VerificationError: if there are more results on one side.
    """
    ours, theirs = tree_leaves(actual), tree_leaves(expected)
    if len(ours) != len(theirs):
        raise VerificationError(f"the original gives {len(theirs)} outputs, the converted model {len(ours)}")
    pairs = [(e, a) for e, a in zip(theirs, ours, strict=True) if isinstance(e, Tensor) and e.is_floating_point()]
    if any(e.shape != a.shape for e, a in pairs):
        return Outputs(None, None, same_shapes=False)
    compared = [compare_tensors(e, a) for e, a in pairs if e.isfinite().any()]
    return Outputs(max((d for d, _ in compared), default=None), max((r for _, r in compared), default=None), True)


def compare_tensors(expected: Tensor, actual: Tensor) -> tuple[float, float]:
    """Greatest difference, infinite for NaN, and that divided by the greatest magnitude of ``expected``."""
    finite = expected.isfinite()  # where the original overflows there is nothing to compare with
    if not finite.any():
        return 0.0, 0.0
    wide = torch.promote_types(expected.dtype, torch.float32)
    kept = expected[finite].to(wide)
    difference = (actual[finite].to(wide) - kept).abs().nan_to_num(nan=float("inf")).max().item()
    magnitude = kept.abs().max().item()
    return difference, difference / magnitude if magnitude > 0 else difference


def magnitude(output: Any) -> float | None:
    """Greatest magnitude in ``output``, infinite for NaN; None for what is no tensor or has no numbers."""
    if not isinstance(output, Tensor) or not output.numel():
        return None
    low, high = (value.item() for value in torch.aminmax(output.detach()))
    greatest = max(-low, high)
    return greatest if greatest == greatest else float("inf")


def greatest_growth(before: list[float | None], after: list[float | None]) -> float | None:
    """By how much magnitudes have grown, call by call, at most; see `LayerCheck`."""
    growths = [
        min(new / old, sys.float_info.max)
        for old, new in zip(before, after, strict=False)
        if old is not None and new is not None and 0 < old < float("inf")
    ]
    return max(growths, default=None)
