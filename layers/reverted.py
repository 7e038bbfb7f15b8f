"""The plain convolutions that layers revert to, and what is lost with the layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ._base import Conv, ConvLayer
from ._geometry import effective_size
from .frozen import frozen_conv


@dataclass(frozen=True)
class Lost:
    """What a layer has that the convolution which its ``revert`` makes has not.

    Attributes:
        words: each thing in words; empty if there is nothing.
        fidelity: how far the convolution computes what the layer does at present, fed with the same: ``exact``;
            ``interior``, but for outputs whose window crosses the border; ``approximate``, not in general.
        kernel_error: of a layer that has one kernel for all inputs, the norm of what of that is lost, relative to its
            own; None for other layers, and on the meta device.
    """

    words: tuple[str, ...] = ()
    fidelity: Literal["exact", "interior", "approximate"] = "exact"
    kernel_error: float | None = None


def reverted_conv(
    layer: ConvLayer, weight: nn.Parameter, bias: nn.Parameter | None, padding_mode: str | None = None
) -> Conv:
    """A convolution with the geometry and the mode of ``layer``.

    An ``nn.ConvNd``; with ``padding="same"`` and a stride, which that does not have, a subclass of our own.

    Args:
        layer: of that geometry.
        weight: (out_channels, in_channels / groups, *kernel_size).
        bias: (out_channels) or None.
        padding_mode: that of the layer by default.
    """
    conv = frozen_conv(
        weight,
        bias,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.padding_mode if padding_mode is None else padding_mode,
        effective_size(layer.kernel_size, layer.dilation),
    )
    return conv.train(layer.training)


def parameter_of(value: Tensor, *originals: Tensor) -> nn.Parameter:
    """A parameter with a copy of ``value``, in the dtype of the first of ``originals``; it trains if one of them does.

    To be called outside of inference mode: what is made in it could never be trained.
    """
    copied = value.detach().to(originals[0].dtype, copy=True)
    return nn.Parameter(copied, requires_grad=any(original.requires_grad for original in originals))


def all_zero(*tensors: Tensor) -> bool:
    """Whether there are zeros in them and nothing else. What is on the meta device has no numbers, and is not."""
    return not any(tensor.is_meta or bool(torch.count_nonzero(tensor.detach())) for tensor in tensors)
