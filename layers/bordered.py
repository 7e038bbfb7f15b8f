"""What the layers have in common that treat the border of the image in a way of their own."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ._base import Conv, ConvLayer, making_parameters, parameter_like
from ._geometry import IntOrInts, Padding, effective_size, pad_widths
from .dcls_bounds import gathered
from .reverted import Lost, parameter_of, reverted_conv


class BorderedConv(ConvLayer):
    """Base of the layers that are a convolution but for the outputs at the border.

    An output is at the border if its window, from its first tap to its last, crosses the border of the image; all
    others, the interior ones, are those of the plain convolution. There is no argument ``padding_mode``: what replaces
    it is what makes these layers. The attribute is there, and says what lies beneath.

    Parameters:
        weight (out_channels, in_channels / groups, *kernel_size) and bias (out_channels) or None: drawn as, and from a
        convolution the same numbers as, those of ``nn.ConvNd``.

    Raises:
        ValueError: for arguments that fit no convolution, or no channels at all.
    """

    beneath: ClassVar[str] = "zeros"
    """The attribute ``padding_mode`` of the layers of this class."""

    replaced_padding_mode: str = "zeros"
    """The ``padding_mode`` of the convolution that the layer was made from; what `revert` goes back to."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: Padding = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if min(in_channels, out_channels) < 1:
            raise ValueError(f"in_channels and out_channels must be at least 1, got {in_channels} and {out_channels}")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, "zeros")
        self.padding_mode = self.beneath
        self.replaced_padding_mode = "zeros"
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self._draw_kernel()

    def _draw_kernel(self) -> None:
        """Draw weight and bias as ``nn.ConvNd`` does."""
        if self.weight.is_meta:  # nothing to draw, and slow all the same
            return
        bound = self.weight[0].numel() ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def reset_parameters(self) -> None:
        """Draw weight and bias as ``nn.ConvNd`` does; what the layer has besides starts from them."""
        self._draw_kernel()
        self._start_from_kernel()

    def _start_from_kernel(self) -> None:
        """Set the parameters that a plain convolution does not have to where they start, beside weight and bias."""

    @classmethod
    def unsupported_reason(cls, conv: nn.Module, **options: Any) -> str | None:
        reason = super().unsupported_reason(conv, **options)
        if reason is not None:
            return reason
        source: Any = conv
        channels = source.in_channels, source.out_channels
        return None if min(channels) >= 1 else f"it has {channels[0]} input and {channels[1]} output channels"

    @classmethod
    def from_conv(cls, conv: nn.Module, *, generator: torch.Generator | None = None, **options: Any) -> Self:
        """Make a layer whose interior outputs are those of ``conv``.

        Args:
            conv: the convolution; weights are copied. Of its padding only the widths are kept, whatever fills it.
            generator: as for every layer. Nothing that starts here is random.
            options: keyword arguments of the constructor.

        Raises:
            ValueError: where `unsupported_reason` gives a reason.
        """
        source = cls._check_conv(conv, **options)
        layer = cls(
            source.in_channels,
            source.out_channels,
            source.kernel_size,
            stride=source.stride,
            padding=source.padding,
            dilation=source.dilation,
            groups=source.groups,
            bias=source.bias is not None,
            device="meta",
            dtype=source.weight.dtype,
            **options,
        )
        with making_parameters():  # copies keep the memory format
            layer.weight = parameter_like(source.weight.clone(), source.weight)
            if source.bias is not None:
                layer.bias = parameter_like(source.bias.clone(), source.bias)
            layer._start_from_kernel()
        layer.replaced_padding_mode = source.padding_mode
        return layer.train(source.training)

    def revert(self) -> Conv:
        """The plain convolution with this weight and bias, and the padding that the layer has replaced.

        Nothing is shared with the layer.
        """
        with making_parameters():
            whole = gathered(self)
            bias = None if whole.bias is None else parameter_of(whole.bias, whole.bias)
            return reverted_conv(self, parameter_of(whole.weight, whole.weight), bias, self.replaced_padding_mode)

    def lost_by_reverting(self) -> Lost:
        """What `revert` leaves out: how outputs at the border are computed, and the parameters that are for those."""
        if self._pads_nothing():
            return Lost()
        words = f"its own treatment of the border, where the convolution pads ({self.replaced_padding_mode})"
        further = ("the kernel (and bias) that it has for outputs there",) if self.new_parameters() else ()
        return Lost((words, *further), "exact" if self._pads_alike() else "interior")

    def _pads_nothing(self) -> bool:
        """Whether there is no border, for images of any size."""
        window = effective_size(self.kernel_size, self.dilation)
        return not any(map(any, pad_widths(self.padding, window, self.stride, (1,) * self.dims)))

    def _pads_alike(self) -> bool:
        """Whether outputs at the border are, at present, what the padding that was replaced would give."""
        return False


def copied(value: Tensor, into: nn.Parameter | None = None) -> nn.Parameter:
    """A parameter of its own that starts as ``value`` and trains: ``into``, if that is one on the same device.

    On the meta device it must have the dtype and the strides of ``value`` too: what a layer is built with there is
    none that anything else holds, and goes by the constructor's defaults.

    To be called outside of inference mode, where a parameter that was made in it can be neither changed nor trained.
    """
    alike = into is not None and (into.dtype, into.stride()) == (value.dtype, value.stride())
    if into is None or into.device != value.device or into.is_inference() or (value.is_meta and not alike):
        return nn.Parameter(value.detach().clone())
    with torch.no_grad():
        into.copy_(value)
    return into
