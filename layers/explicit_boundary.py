"""Convolution with a kernel for each distance to the interior of the image (Innamorati et al. 2018)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._geometry import IntOrInts, Padding, memory_format
from .bordered import BorderedConv, copied
from .explicit_boundary_conv import boundary_distances, explicit_boundary_conv2d
from .reverted import all_zero

torch.fx.wrap("explicit_boundary_conv2d")


class ExplicitBoundaryConv2d(BorderedConv):
    """Convolution with a kernel and bias of its own for each signed distance of the window to the interior.

    "Learning on the Edge: Explicit Boundary Handling in CNNs" (Innamorati et al. 2018, arXiv 1805.03106); see
    `explicit_boundary_conv2d` for what a distance is. Only the distances (0, 0) are the interior (the published code
    takes its kernel wherever the two are equal). With zeros beneath, a layer made from a convolution that is padded by
    zeros computes the same to begin with.

    Without a stride, ``torch.export`` and ``torch.compile`` take images of any size that leaves at least two outputs
    of each axis in the interior. With a stride, how many outputs are at the border depends on the size: there
    ``torch.export`` takes images of one size, and ``torch.compile`` compiles anew for each remainder.

    Shape: (B, in_channels, H, W) to (B, out_channels, Ho, Wo), or both without B, as in ``nn.Conv2d``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in ``nn.Conv2d``;
            ``padding="same"`` is allowed with any stride.

    Parameters:
        weight (out_channels, in_channels / groups, kh, kw) and bias (out_channels) or None, of the interior.
        boundary_weight (n * out_channels, in_channels / groups, kh, kw) and boundary_bias (n * out_channels): kernel i
            is that of the distances ``boundary_distances[i]`` and lies at ``[i * out_channels : (i + 1) *
            out_channels]``. They start as copies of weight and bias; None where n is 0, without padding, and a bias
            where there is none in the interior. With a stride, or on images too small for an interior, not all occur.

    Raises:
        ValueError: for arguments that fit no convolution.
    """

    dims = 2
    new_parameter_names: ClassVar[tuple[str, ...]] = ("boundary_weight", "boundary_bias")

    boundary_weight: nn.Parameter | None
    boundary_bias: nn.Parameter | None

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
        geometry: Any = in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        super().__init__(*geometry, device=device, dtype=dtype)
        self.boundary_weight = self.boundary_bias = None
        self._start_from_kernel()

    @property
    def boundary_distances(self) -> list[tuple[int, int]]:
        """The (vertical, horizontal) distances that have kernels of their own, in the order of the parameters."""
        return boundary_distances(self.kernel_size, self.padding, self.dilation)

    def _start_from_kernel(self) -> None:
        """A copy of weight and bias for each distance."""
        count = len(self.boundary_distances)

        def repeated(interior: Tensor | None, into: nn.Parameter | None) -> nn.Parameter | None:
            if not count or interior is None:
                return None
            start = interior.detach().repeat(count, *(1,) * (interior.dim() - 1))
            return copied(start.contiguous(memory_format=memory_format(interior)), into)

        self.boundary_weight = repeated(self.weight, self.boundary_weight)
        self.boundary_bias = repeated(self.bias, self.boundary_bias)

    def _pads_alike(self) -> bool:
        weight, bias = self.boundary_weight, self.boundary_bias
        differences = [] if weight is None else [weight.view(-1, *self.weight.shape) - self.weight]
        if bias is not None and self.bias is not None:
            differences.append(bias.view(-1, *self.bias.shape) - self.bias)
        return self.replaced_padding_mode == "zeros" and all_zero(*differences)

    def forward(self, input: Tensor) -> Tensor:
        return explicit_boundary_conv2d(
            input,
            self.weight,
            self.bias,
            self.boundary_weight,
            self.boundary_bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
