"""Padding-free convolution: the image is continued beyond its border by polynomials (Leng and Thiyagalingam 2022)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._base import Conv, UsesKernels, making_parameters
from ._geometry import IntOrInts, Padding, effective_size, pad_widths
from .bordered import BorderedConv, copied
from .dcls_bounds import gathered
from .padded import PaddedConv1d, PaddedConv2d, PaddedConv3d
from .padding_free_conv import ConvOrder, padding_free_conv, resolved_order

torch.fx.wrap("padding_free_conv")

_PLAIN: tuple[type[Conv], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PADDED = (PaddedConv1d, PaddedConv2d, PaddedConv3d)


class PaddingFreeConv(UsesKernels, BorderedConv):
    """Base of the layers that continue the image beyond its border by polynomials."""

    beneath = "extrapolate"

    new_parameter_names: ClassVar[tuple[str, ...]] = ("edge_weight", "edge_bias")

    order: ConvOrder
    """Degree of the polynomials, (before, after) for each axis; or ``"padding"``, if that depends on the image."""

    edge_weight: nn.Parameter | None
    edge_bias: nn.Parameter | None

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
        order: ConvOrder | None = None,
        train_edge_kernel: bool = False,
        keep_img_grad_at_invalid: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry: Any = in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        super().__init__(*geometry, device=device, dtype=dtype)
        self.order = self._resolved(order)
        self.train_edge_kernel = train_edge_kernel
        self.keep_img_grad_at_invalid = keep_img_grad_at_invalid
        self.edge_weight = self.edge_bias = None
        self._start_from_kernel()
        self._want_kernels()

    @classmethod
    def unsupported_reason(cls, conv: nn.Module, **options: Any) -> str | None:
        reason = super().unsupported_reason(conv, **options)
        order = options.get("order")
        if reason is not None or order is None:
            return reason
        try:
            resolved_order(order, (1,) * cls.dims, [(0, 0)] * cls.dims)
        except ValueError as error:
            return str(error)
        return None

    def _resolved(self, order: ConvOrder | None) -> ConvOrder:
        same_with_stride = self.padding == "same" and max(self.stride) > 1
        if order == "padding" and same_with_stride:
            return order
        return resolved_order(order, self.kernel_size, self._widths((1,) * self.dims))

    def _widths(self, input_size: tuple[int, ...]) -> list[tuple[int, int]]:
        return pad_widths(self.padding, effective_size(self.kernel_size, self.dilation), self.stride, input_size)

    def _start_from_kernel(self) -> None:
        if self.train_edge_kernel and not self._pads_nothing():
            self.edge_weight = copied(self.weight, self.edge_weight)
            self.edge_bias = None if self.bias is None else copied(self.bias, self.edge_bias)

    def _pads_alike(self) -> bool:
        repeats = self.order == ((0, 0),) * self.dims and self.edge_weight is None
        return repeats and self.replaced_padding_mode == "replicate"

    def forward(self, input: Tensor) -> Tensor:
        return padding_free_conv(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.order,
            self.edge_weight,
            self.keep_img_grad_at_invalid,
            edge_bias=self.edge_bias,
        )

    def freeze(self) -> Conv:
        """The convolution of torch's own operations that computes the same, with an explicit pad in front.

        An ``nn.ConvNd`` itself where one can: without padding, or of order 0 with ``padding_mode="replicate"``; not
        with ``padding="same"`` and a stride. Otherwise a `PaddedConv1d`, `PaddedConv2d` or `PaddedConv3d`. Gradients
        to the image are those of ``keep_img_grad_at_invalid=True``. Nothing is shared with the layer. Of a layer that
        is sharded, as by FSDP, each process gets the whole convolution; all of them must call this.

        Raises:
            ValueError: if there is an edge kernel.
        """
        if self.edge_weight is not None or self.edge_bias is not None:
            raise ValueError(
                "a layer with an edge kernel (train_edge_kernel=True) is no single convolution: outputs at the border "
                "have a kernel of their own. It can be exported as it is"
            )
        with making_parameters():
            whole = gathered(self)
            weight = nn.Parameter(whole.weight.clone(), whole.weight.requires_grad)
            bias = None if whole.bias is None else nn.Parameter(whole.bias.clone(), whole.bias.requires_grad)
            conv = self._without_numbers(bias is not None)
        conv.weight, conv.bias = weight, bias
        return conv.train(self.training)

    def _without_numbers(self, bias: bool) -> Conv:
        channels, steps = (self.in_channels, self.out_channels, self.kernel_size), self.stride
        rest: Any = self.dilation, self.groups, bias
        strided_same = self.padding == "same" and max(steps) > 1
        sides = [] if strided_same else [side for pair in self._widths((1,) * self.dims) for side in pair]
        unpadded, repeated = not any(sides), self.order == ((0, 0),) * self.dims
        if not strided_same and (unpadded or repeated):
            mode = "zeros" if unpadded else "replicate"
            amounts: Any = self.padding
            plain: Any = _PLAIN[self.dims - 1]
            made: Conv = plain(*channels, steps, amounts, *rest, mode, device="meta")
            return made
        return _PADDED[self.dims - 1](*channels, steps, self.padding, *rest, order=self.order, device="meta")

    def extra_repr(self) -> str:
        parts = [super().extra_repr(), f"order={shown_order(self.order)}"]
        if self.train_edge_kernel:
            parts.append("train_edge_kernel=True")
        if not self.keep_img_grad_at_invalid:
            parts.append("keep_img_grad_at_invalid=False")
        return ", ".join(parts)


class _PaddingFreeConvNd(PaddingFreeConv):
    """Convolution of an image that is continued beyond its border by polynomials.

    Leng and Thiyagalingam, "Padding-free Convolution based on Preservation of Differential Characteristics of Kernels",
    2022: at the border the output is that of the nearest full window, its kernel transformed so that it acts as the
    original one would where it belongs. That is the same as extending each side by the polynomial through the
    ``order + 1`` pixels next to it (Lagrange), and convolving without padding. See `padding_free_conv2d`.

    Shape: (B, in_channels, *size) to (B, out_channels, *out), or both without B, as in ``nn.Conv2d``. An axis that is
    padded must have ``order + 1`` pixels.

    The higher the order, the more of a smooth image is continued exactly (polynomials of that degree along each axis),
    and the more noise is amplified. The outermost of p pixels beyond one side has this gain (`noise_gain`); in corners
    the gains of the axes are multiplied::

        order      0     1     2     3     4     6
        p = 1      1     3     7    15    31   127
        p = 2      1     5    17    49   129   769
        p = 3      1     7    31   111   351  2815

    Take the method's own order, ``kernel_size - 1``, to filter smooth images; 1 or 2 for the first layers of a net, or
    throughout one that is trained with it; 0 or 1 for feature maps deep in a trained net, which are far from smooth.
    Dilation takes more padding at the same order, and so amplifies more.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in ``nn.Conv2d``;
            ``padding`` says by how much the image is extended, and ``padding="same"`` is allowed with any stride.
        order: degree of the polynomials: one number, one for each axis, or (before, after) for each; ``"padding"``: as
            many as pixels are added on that side. ``kernel_size - 1`` of each axis by default.
        train_edge_kernel: whether outputs at the border (those whose window crosses it) have a kernel of their own.
        keep_img_grad_at_invalid: whether outputs at the border pass gradients to the image.

    Parameters:
        weight (out_channels, in_channels / groups, *kernel_size) and bias (out_channels) or None: as in ``nn.Conv2d``.
        edge_weight, edge_bias: of the same shapes, for the outputs at the border; they start as copies. None unless
            ``train_edge_kernel``, and without padding.

    Raises:
        ValueError: for arguments that fit no convolution; in the forward, if the image is too small for the kernel or
            the order.
    """


class PaddingFreeConv1d(_PaddingFreeConvNd):  # noqa: D101
    __doc__ = _PaddingFreeConvNd.__doc__

    dims = 1


class PaddingFreeConv2d(_PaddingFreeConvNd):  # noqa: D101
    __doc__ = _PaddingFreeConvNd.__doc__

    dims = 2


class PaddingFreeConv3d(_PaddingFreeConvNd):  # noqa: D101
    __doc__ = _PaddingFreeConvNd.__doc__

    dims = 3


def shown_order(order: Any) -> str:
    """An order as short as it can be said: one number for each axis where its two sides have the same."""
    if isinstance(order, str):
        return repr(order)
    short = all(before == after for before, after in order)
    return str(tuple(before for before, _ in order) if short else order)
