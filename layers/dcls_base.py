"""What all layers with learned positions have in common, whatever their elements look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ._base import Conv, UsesKernels, making_parameters
from .dcls_bounds import gathered
from .dcls_formula import Formula
from .frozen import frozen_conv
from .reverted import Lost, parameter_of, reverted_conv

ROUNDING = 1e-10
"""Part of a kernel's norm that is no more than rounding. Elements that stand on taps leave nothing beside them."""


class DclsLayer(UsesKernels):
    """Base of the layers whose kernel is drawn from elements of ``weight`` at learned positions ``P``.

    Several layers may hold the same ``P`` (the same ``nn.Parameter``), as the blocks of a stage do in the paper.
    """

    weight: nn.Parameter
    P: nn.Parameter
    bias: nn.Parameter | None
    window: tuple[int, ...]
    """Number of pixels that the kernel which ``padding`` is meant for spans on each axis."""

    formula: Formula = "auto"
    """Which way to compute the convolution, to be set on a layer that is not to choose by itself. See `Formula`."""

    def __init__(self, in_channels: int, out_channels: int, *geometry: Any) -> None:
        if min(in_channels, out_channels) < 1:
            raise ValueError(f"in_channels and out_channels must be at least 1, got {in_channels} and {out_channels}")
        super().__init__(in_channels, out_channels, *geometry)

    @classmethod
    def unsupported_reason(cls, conv: nn.Module, **options: Any) -> str | None:
        reason = super().unsupported_reason(conv)
        if reason is not None:
            return reason
        source: Any = conv
        channels = source.in_channels, source.out_channels
        return None if min(channels) >= 1 else f"it has {channels[0]} input and {channels[1]} output channels"

    def construct_kernel(self) -> Tensor:
        """The dense kernel (out_channels, in_channels / groups, *kernel) that the layer convolves with."""
        raise NotImplementedError

    def clamp_positions(self) -> None:
        """Move elements that have left the grid back to its border; to be called after each optimiser step.

        See also `clamp_after_step`.
        """
        raise NotImplementedError

    def kernel_dilation(self) -> tuple[int, ...]:
        """The dilation that the dense kernel is used with."""
        return (1,) * self.dims

    def freeze(self) -> Conv:
        """The plain convolution that this layer is at present: an ``nn.ConvNd`` with the dense kernel.

        Its padding is larger than the layer's by what the grid extends the window on each side. With
        ``padding="same"`` and a stride, which ``nn.ConvNd`` does not have, it is a subclass of our own. Nothing is
        shared with the layer. Of a layer that is sharded, as by FSDP, each process gets the whole convolution; all of
        them must call this.
        """
        with making_parameters():
            whole = gathered(self)
            bias = whole.bias
            conv = frozen_conv(
                nn.Parameter(whole.construct_kernel(), self.weight.requires_grad),
                None if bias is None else nn.Parameter(bias.clone(), bias.requires_grad),
                self.stride,
                self.padding,
                self.kernel_dilation(),
                self.groups,
                self.padding_mode,
                self.window,
            )
        return conv.train(self.training)

    def revert(self) -> Conv:
        """The plain convolution with the geometry that this layer shows, and what of its kernel lies on those taps.

        Of all kernels of that size it has the one nearest to the layer's. A layer made from a convolution shows that
        one's geometry. Nothing is shared with the layer; see `lost_by_reverting`.
        """
        with making_parameters():
            whole = gathered(self)
            kernel = whole.construct_kernel()
            kernel = kernel[self._on_taps(kernel)].contiguous()
            bias = None if whole.bias is None else parameter_of(whole.bias, whole.bias)
            return reverted_conv(self, parameter_of(kernel, whole.weight), bias)

    def lost_by_reverting(self) -> Lost:
        """What `revert` leaves out: the positions, and what the layer's kernel has beside the convolution's taps."""
        learned = "positions" if getattr(self, "SIG", None) is None else "positions and widths"
        words = f"the learned {learned} of its elements"
        with torch.no_grad():
            kernel = gathered(self).construct_kernel()
            if kernel.is_meta:
                return Lost((words,), "approximate")
            kernel = kernel.detach().to("cpu", torch.float64, copy=True)  # some devices have no float64
            whole = kernel.norm().item()
            kernel[self._on_taps(kernel)] = 0
        outside = kernel.norm().item()
        error = outside / whole if whole > 0 else outside
        if error:
            words += ", and what of its kernel is beside the convolution's taps"
        return Lost((words,), "exact" if error <= ROUNDING else "approximate", error)

    def _on_taps(self, kernel: Tensor) -> tuple[slice, ...]:
        """Where in the dense kernel the taps of one with the geometry that the layer shows are."""
        taps = [slice(None), slice(None)]
        for axis, size in enumerate(kernel.shape[2:]):
            step = self.dilation[axis] // self.kernel_dilation()[axis]  # dense axes are dilated as the layer is
            span = step * (self.kernel_size[axis] - 1) + 1
            first = (size - span) // 2
            taps.append(slice(first, first + span, step))
        return tuple(taps)

    def extra_repr(self) -> str:
        forced = "" if self.formula == "auto" else f", formula={self.formula!r}"
        return super().extra_repr() + forced

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Parameters of four and five axes are no images here: to(memory_format=...) must pass over them.
        def pass_over_format(value: Tensor) -> Tensor:
            return fn(value.flatten(1)).view_as(value) if value.dim() >= 4 else fn(value)

        return super()._apply(pass_over_format, recurse)
