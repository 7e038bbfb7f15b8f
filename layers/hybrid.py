"""An autoencoder of images whose convolutions predict their kernels (Keep-up-sharma, Dynamic-Layers)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .hybrid_dense import HybridDense
from .patch_dynamic import PatchDynamicConv2d, PatchOrder

__all__ = ["Autoencoder", "Decoder", "Encoder", "HybridDense", "PatchDynamicConv2d"]


class Encoder(nn.Module):
    """One `PatchDynamicConv2d` that sees each patch of an image once.

    Shape: (B, channels, H, W) to (B, code, H // patch, W // patch).

    Args:
        channels: of the image.
        code: channels of the result.
        patch: side of a patch in pixels, and the step to the next.
        hidden, similar_conv, patch_order, device, dtype: as in `PatchDynamicConv2d`.

    Modules:
        c1: ``PatchDynamicConv2d(channels, code, patch, stride=patch)``.
    """

    def __init__(
        self,
        channels: int = 3,
        code: int = 4,
        patch: int = 8,
        *,
        hidden: int = 16,
        similar_conv: bool = True,
        patch_order: PatchOrder = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.c1 = PatchDynamicConv2d(
            channels,
            code,
            patch,
            stride=patch,
            hidden=hidden,
            similar_conv=similar_conv,
            patch_order=patch_order,
            device=device,
            dtype=dtype,
        )

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.c1(input)
        return y


class Decoder(nn.Module):
    """One `PatchDynamicConv2d` with a 2x2 kernel, whose channels are then laid out as the pixels of patches.

    Shape: (B, code, h, w) to (B, channels, h * patch, w * patch).

    Args:
        channels: of the image.
        code: channels of the input.
        patch: side of the patch of pixels that each pixel of the input becomes.
        hidden, similar_conv, patch_order, device, dtype: as in `PatchDynamicConv2d`.

    Modules:
        c1: ``PatchDynamicConv2d(code, channels * patch**2, 2, padding="same")``.
        shuffle: ``nn.PixelShuffle(patch)``.
    """

    def __init__(
        self,
        channels: int = 3,
        code: int = 4,
        patch: int = 8,
        *,
        hidden: int = 16,
        similar_conv: bool = True,
        patch_order: PatchOrder = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.c1 = PatchDynamicConv2d(
            code,
            channels * patch**2,
            2,
            padding="same",
            hidden=hidden,
            similar_conv=similar_conv,
            patch_order=patch_order,
            device=device,
            dtype=dtype,
        )
        self.shuffle = nn.PixelShuffle(patch)

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.shuffle(self.c1(input))
        return y


class Autoencoder(nn.Module):
    """An `Encoder` and a `Decoder`.

    Shape: (B, channels, H, W) to the same, for H and W that are multiples of ``patch`` (else to what is left of them).
    There are ``code / (channels * patch**2)`` times as many numbers in between.

    Args:
        channels: of the image.
        code: channels in between.
        patch: pixels that one in between stands for, in each direction.
        hidden, similar_conv, patch_order, device, dtype: as in `PatchDynamicConv2d`.

    Modules:
        encoder, decoder.
    """

    def __init__(
        self,
        channels: int = 3,
        code: int = 4,
        patch: int = 8,
        *,
        hidden: int = 16,
        similar_conv: bool = True,
        patch_order: PatchOrder = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(
            channels,
            code,
            patch,
            hidden=hidden,
            similar_conv=similar_conv,
            patch_order=patch_order,
            device=device,
            dtype=dtype,
        )
        self.decoder = Decoder(
            channels,
            code,
            patch,
            hidden=hidden,
            similar_conv=similar_conv,
            patch_order=patch_order,
            device=device,
            dtype=dtype,
        )

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.decoder(self.encoder(input))
        return y
