"""Convolution of an image that is extrapolated by as many pixels as it is padded (Gupta and Ramani 1978)."""

from __future__ import annotations

from typing import Any

import torch

from ._geometry import IntOrInts, Padding
from .padding_free import PaddingFreeConv2d


class ExtrapolatedConv2d(PaddingFreeConv2d):
    """A `PaddingFreeConv2d` whose order is, on each side, the number of pixels that the image is padded there.

    Gupta and Ramani, 1978: a side padded by p pixels continues the polynomial of degree p through the p + 1 pixels
    next to it: a straight line for 3x3 kernels, a parabola for 5x5. Gradients flow through the padding as well.

    Shape, parameters and the other arguments are those of `PaddingFreeConv2d`. An axis that is padded by p must have
    p + 1 pixels. The gain of noise at the outermost pixel is 3, 17 and 111 for p = 1, 2 and 3.

    Raises:
        ValueError: as `PaddingFreeConv2d`.
    """

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
        train_edge_kernel: bool = False,
        keep_img_grad_at_invalid: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry: Any = in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        super().__init__(
            *geometry,
            order="padding",
            train_edge_kernel=train_edge_kernel,
            keep_img_grad_at_invalid=keep_img_grad_at_invalid,
            device=device,
            dtype=dtype,
        )
