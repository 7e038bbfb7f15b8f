"""How far the kernels of layers that approximate a convolution are from its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .conv_classes import plain_conv
from .plan import Step
from .targets import get_target


@dataclass(frozen=True)
class KernelError:
    """The distance of a layer's kernel, as it started, from that of its convolution.

    Attributes:
        norm: of the difference, in the Frobenius norm.
        relative: that, divided by the norm of the convolution's kernel; not divided if that is zero.
    """

    norm: float
    relative: float


def kernel_errors(steps: Sequence[Step], layers: Mapping[int, nn.Module]) -> dict[str, KernelError]:
    """The kernel errors of the steps whose layers approximate, by name.

    Args:
        steps: of a plan.
        layers: what was built, by the identity of the convolution that each takes the place of.
    """
    return {
        step.site.name: error
        for step in steps
        if step.fidelity == "approximate" and (error := kernel_error(step, layers[id(step.site.module)])) is not None
    }


@torch.no_grad()
def kernel_error(step: Step, layer: nn.Module) -> KernelError | None:
    """The kernel error of a step that swaps, or None if there are no kernels to compare, or no numbers in them."""
    conv = plain_conv(step.site.module)
    if conv.weight.is_meta:
        return None
    kernels = get_target(str(step.target)).compared_kernels(conv, layer)
    return None if kernels is None else _distance(*kernels)


def _distance(original: Tensor, made: Tensor) -> KernelError:
    wide, other = (kernel.cpu().to(torch.float64) for kernel in (original, made))  # some devices have no float64
    norm, scale = (value.norm().item() for value in (other - wide, wide))
    return KernelError(norm, norm / scale if scale > 0 else norm)
