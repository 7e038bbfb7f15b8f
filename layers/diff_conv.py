"""Padding-free convolution as users of the published package know it (Leng and Thiyagalingam 2022)."""

from __future__ import annotations

import warnings
from typing import Any, Self

import torch
from torch import Tensor, nn

from ._geometry import IntOrInts, Padding, per_axis
from .padding_free import PaddingFreeConv2d
from .padding_free_conv import padding_free_conv2d

torch.fx.wrap("_same_conv2d")

_PUBLISHED_NAMES = {
    "inter_layer.weight": "weight",
    "inter_layer.bias": "bias",
    "edge_layer.weight": "edge_weight",
    "edge_layer.bias": "edge_bias",
}


class DiffConv2d:
    """Convolution of images with given kernels, as the published class of this name has it, for kernels of any size.

    Args:
        kernel_size: one number, or (kh, kw).

    Raises:
        ValueError: if it is less than 1.
    """

    def __init__(self, kernel_size: IntOrInts) -> None:
        self.kernel_size = per_axis(kernel_size, 2, "kernel_size")
        if min(self.kernel_size) < 1:
            raise ValueError(f"kernel_size must be at least 1, got {self.kernel_size}")

    def __repr__(self) -> str:
        return f"DiffConv2d(kernel_size={self.kernel_size})"

    def conv2d(
        self,
        img: Tensor,
        kernel: Tensor,
        groups: int = 1,
        keep_img_grad_at_invalid: bool = True,
        edge_kernel: Tensor | None = None,
        optimized_for: str = "memory",
    ) -> Tensor:
        """`padding_free_conv2d` to an image of the same size, with the order ``kernel_size - 1``.

        Args:
            img: (B, C, H, W), or (C, H, W).
            kernel: (O, C / groups, *kernel_size).
            groups: as in ``F.conv2d``.
            keep_img_grad_at_invalid: whether outputs at the border pass gradients to the image.
            edge_kernel: the kernel of the outputs at the border, of the same shape; ``kernel`` by default.
            optimized_for: ``"speed"`` or ``"memory"``; there is one way to compute it.

        Returns:
            (B, O, H, W), or (O, H, W).

        Raises:
            ValueError: for a kernel of another size or another ``optimized_for``, and as `padding_free_conv2d`.
        """
        _check_optimized_for(optimized_for)
        return _same_conv2d(img, kernel, self.kernel_size, groups, keep_img_grad_at_invalid, edge_kernel)


class DiffConv2dLayer(PaddingFreeConv2d):
    """A `PaddingFreeConv2d` with the arguments of the published layer, which loads what that saved.

    Its order is ``kernel_size - 1`` and its padding "same", for kernels of any size. State dicts may have the
    published names, ``inter_layer.weight``, ``inter_layer.bias``, ``edge_layer.weight`` and ``edge_layer.bias``; those
    that it makes have the names of `PaddingFreeConv2d`.

    Shape: (B, in_channels, H, W) to (B, out_channels, H, W), or both without B.

    Args:
        in_channels, out_channels, kernel_size, groups, bias: as in ``nn.Conv2d``.
        keep_img_grad_at_invalid, train_edge_kernel: as in `PaddingFreeConv2d`.
        optimized_for: ``"speed"`` or ``"memory"``; there is one way to compute it.
        stride, padding, dilation: as in `PaddingFreeConv2d`; the published layer has none.

    Raises:
        ValueError: as `PaddingFreeConv2d`, and for another ``optimized_for``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        groups: int = 1,
        bias: bool = True,
        keep_img_grad_at_invalid: bool = True,
        train_edge_kernel: bool = False,
        optimized_for: str = "memory",
        *,
        stride: IntOrInts = 1,
        padding: Padding = "same",
        dilation: IntOrInts = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_optimized_for(optimized_for)
        geometry: Any = in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        super().__init__(
            *geometry,
            train_edge_kernel=train_edge_kernel,
            keep_img_grad_at_invalid=keep_img_grad_at_invalid,
            device=device,
            dtype=dtype,
        )

    @classmethod
    def from_conv(cls, conv: nn.Module, *, generator: torch.Generator | None = None, **options: Any) -> Self:
        _check_optimized_for(options.pop("optimized_for", "memory"))  # here, as a warning names who called
        return super().from_conv(conv, generator=generator, **options)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for published, own in _PUBLISHED_NAMES.items():
            wanted = getattr(self, own) is not None
            if wanted and prefix + published in state_dict and prefix + own not in state_dict:
                state_dict[prefix + own] = state_dict.pop(prefix + published)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _same_conv2d(
    img: Tensor,
    kernel: Tensor,
    kernel_size: tuple[int, ...],
    groups: int,
    keep_img_grad_at_invalid: bool,
    edge_kernel: Tensor | None,
) -> Tensor:
    if tuple(kernel.shape[2:]) != kernel_size:
        raise ValueError(f"the kernel must have {kernel_size} taps, got shape {tuple(kernel.shape)}")
    return padding_free_conv2d(
        img,
        kernel,
        padding="same",
        groups=groups,
        edge_weight=edge_kernel,
        keep_img_grad_at_invalid=keep_img_grad_at_invalid,
    )


def _check_optimized_for(value: str) -> None:
    if value not in ("speed", "memory"):
        raise ValueError(f"optimized_for must be 'speed' or 'memory', got {value!r}")
    if value != "memory":
        warnings.warn(
            f"optimized_for={value!r} has no effect: there is one way to compute it, which is both fast and small",
            stacklevel=3,
        )
