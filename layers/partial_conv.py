"""Convolution of what there is to see: partial convolution (Liu et al. 2018, arXiv 1811.11718 and 1804.07723)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .bordered import BorderedConv
from .partial_convolution import partial_conv2d
from .reverted import Lost

torch.fx.wrap("partial_conv2d")


class PartialConv2d(BorderedConv):
    """Convolution whose outputs at the border are scaled up by the part of their window that lies outside the image.

    ``y = (weight * input) taps / valid + bias`` with ``valid`` the number of taps on the image ("Partial Convolution
    based Padding", Liu et al. 2018, arXiv 1811.11718, eq. 3 and 4); with a mask, on pixels of the image that are not
    masked out ("Image Inpainting for Irregular Holes Using Partial Convolutions", Liu et al. 2018, arXiv 1804.07723,
    eq. 1). Outputs that see none are 0.

    Shape: (B, in_channels, H, W) to (B, out_channels, Ho, Wo), or both without B, as in ``nn.Conv2d``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in ``nn.Conv2d``;
            ``padding="same"`` is allowed with any stride.

    Parameters:
        weight (out_channels, in_channels / groups, kh, kw) and bias (out_channels) or None.

    Raises:
        ValueError: for arguments that fit no convolution.
    """

    dims = 2

    def forward(
        self, input: Tensor, mask: Tensor | None = None, return_mask: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Convolve what the mask leaves.

        Args:
            input: (B, in_channels, H, W), or (in_channels, H, W).
            mask: 0 (or False) where the input is not to be seen: (B or 1, 1 or in_channels, H, W), or (H, W); without
                the first axis for an input without batch. All is seen by default.
            return_mask: return the mask of the result too, for a partial convolution that follows.

        Returns:
            (B, out_channels, Ho, Wo), or without B; with ``return_mask`` a pair of that and the mask (B or 1, 1 or
            out_channels, Ho, Wo) in the dtype of ``mask``, which is 1 where an output has seen anything.
        """
        result: Tensor | tuple[Tensor, Tensor] = partial_conv2d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, mask, return_mask
        )
        return result

    def lost_by_reverting(self) -> Lost:
        """What `revert` leaves out: also that the layer can be given a mask. The fidelity is that without one."""
        lost = super().lost_by_reverting()
        return replace(lost, words=(*lost.words, "that it can be given a mask, and return that of its result"))
