"""DCLS layers whose elements move along one axis of two or three."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ._geometry import IntOrInts, Padding, per_axis
from .dcls_conv import flat_kernel_size
from .dcls_kernel import Version
from .dcls_spaced import SpacedLayer

NORMALISED: tuple[Version, ...] = ("v1", "max", "gauss")


class _DenseAndSpaced(SpacedLayer):
    """Convolution that is dense on its first kernel axes and has elements at learned positions along the last.

    Shape: (B, in_channels, *size) to (B, out_channels, *out), or both without B, as in ``nn.Conv2d``.

    Args:
        in_channels, out_channels, stride, padding, groups, bias, padding_mode: as in ``nn.Conv2d``;
            ``padding="same"`` is allowed with any stride.
        kernel_count: number of elements at each place on the dense axes.
        dense_kernel_size: size of the kernel on the dense axes.
        dilated_kernel_size: size of the grid on the last axis.
        version: ``"v1"``, ``"max"`` or ``"gauss"``. See `construct_kernel`.
        kernel_size, dilation: what the layer shows to the code around it, and what ``padding`` is meant for: of a
            layer made from a convolution, the convolution's own. The grid extends that window evenly, and the padding
            grows with it. By default the kernel's own size and 1. The dense axes are dilated by it.

    Parameters:
        weight (out_channels, in_channels / groups, *dense_kernel_size, kernel_count).
        P (1, *weight.shape): positions in pixels relative to ``dilated_kernel_size // 2``. They start uniform.
        SIG, shaped as P, for ``max`` and ``gauss`` only: the width is ``|SIG|`` + `least_sigma` pixels.
        bias (out_channels) or None.

    Names, shapes and meaning are those published, and so state dicts load.

    Raises:
        ValueError: for arguments that fit no convolution, an unknown version, or a kernel of more than 2**31 numbers.
    """

    spaced = 1
    versions = NORMALISED

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: IntOrInts = 1,
        padding: Padding = 0,
        dense_kernel_size: IntOrInts = 1,
        dilated_kernel_size: IntOrInts = 7,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: Version = "v1",
        *,
        kernel_size: IntOrInts | None = None,
        dilation: IntOrInts = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dense = per_axis(dense_kernel_size, self.dense_axes, "dense_kernel_size")
        super().__init__(
            in_channels,
            out_channels,
            kernel_count,
            stride,
            padding,
            dense,
            dilated_kernel_size,
            groups,
            bias,
            padding_mode,
            version,
            None,
            kernel_size,
            dilation,
            device,
            dtype,
        )

    def _draw_positions(self) -> None:
        nn.init.uniform_(self.P, *self._position_bounds()[0])

    @classmethod
    def _own_arguments(cls, kernel_size: tuple[int, ...]) -> dict[str, Any]:
        return {"dense_kernel_size": kernel_size[: cls.dense_axes]}


class Dcls2_1d(_DenseAndSpaced):  # noqa: D101, N801
    __doc__ = _DenseAndSpaced.__doc__

    dims, dense_axes = 2, 1
    least_sigma = {"max": 1.0, "gauss": 1.0}  # noqa: RUF012  # its published code has 1 where all others have 0.27


class Dcls3_1d(_DenseAndSpaced):  # noqa: D101, N801
    __doc__ = _DenseAndSpaced.__doc__

    dims, dense_axes = 3, 2


class Dcls2dK1d(SpacedLayer):
    """Two-dimensional convolution with a kernel of one row or column, whose elements move along it.

    Shape: (B, in_channels, H, W) to (B, out_channels, H', W'), or both without B.

    Args:
        in_channels, out_channels, stride, padding, groups, bias, padding_mode: as in ``nn.Conv2d``;
            ``padding="same"`` is allowed with any stride.
        kernel_count: number of elements of each kernel.
        dilated_kernel_size: S, size of the grid that they lie on.
        version: as for `Dcls1d`.
        flat_dim: 0 for a kernel (S, 1), 1 for (1, S).
        kernel_size, dilation: two numbers, as for `Dcls2d`.

    Parameters: those of `Dcls1d`. Names, shapes and meaning are those of the ``DCLS`` package, whose state dicts load.

    Raises:
        ValueError: for arguments that fit no convolution, an unknown version, or a kernel of more than 2**31 numbers.
    """

    dims, spaced = 2, 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: IntOrInts = 1,
        padding: Padding = 0,
        dilated_kernel_size: IntOrInts = 7,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: Version = "v1",
        flat_dim: int = 0,
        *,
        kernel_size: IntOrInts | None = None,
        dilation: IntOrInts = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        flat_kernel_size(per_axis(dilated_kernel_size, 1, "dilated_kernel_size"), flat_dim)
        super().__init__(
            in_channels,
            out_channels,
            kernel_count,
            stride,
            padding,
            (),
            dilated_kernel_size,
            groups,
            bias,
            padding_mode,
            version,
            flat_dim,
            kernel_size,
            dilation,
            device,
            dtype,
        )

    @classmethod
    def unsupported_reason(cls, conv: nn.Module, **options: Any) -> str | None:
        size = getattr(conv, "kernel_size", None)
        if isinstance(conv, nn.Conv2d) and 1 not in conv.kernel_size:
            return f"the kernel must have a single row or column, got {size}"
        return super().unsupported_reason(conv, **options)

    @classmethod
    def _spaced_axes(cls, kernel_size: tuple[int, ...]) -> tuple[int, ...]:
        return (0,) if kernel_size[1] == 1 else (1,)

    @classmethod
    def _own_arguments(cls, kernel_size: tuple[int, ...]) -> dict[str, Any]:
        return {"flat_dim": cls._spaced_axes(kernel_size)[0]}
