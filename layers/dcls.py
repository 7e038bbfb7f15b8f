"""Dilated convolution with learnable spacings (Khalfaoui-Hassani et al. 2023, arXiv 2112.03740 and 2306.00817)."""

from __future__ import annotations

import torch

from ._geometry import IntOrInts, Padding
from .dcls_grid import default_dilated_kernel_size
from .dcls_kernel import Version
from .dcls_spaced import SpacedLayer

__all__ = ["Dcls1d", "Dcls2d", "Dcls3d", "default_dilated_kernel_size"]


class _DclsNd(SpacedLayer):
    """Convolution whose kernel is made of few elements at learned, real-valued positions on a larger grid.

    Shape: (B, in_channels, *size) to (B, out_channels, *out), or both without B, as in ``nn.Conv2d``.

    Args:
        in_channels, out_channels, stride, padding, groups, bias, padding_mode: as in ``nn.Conv2d``;
            ``padding="same"`` is allowed with any stride.
        kernel_count: number of elements of each kernel.
        dilated_kernel_size: size of the grid that they lie on.
        version: bump that an element draws: ``"v0"`` and ``"v1"``, a triangle; ``"max"``, a triangle of learned width;
            ``"gauss"``. See `construct_kernel`.
        kernel_size, dilation: what the layer shows to the code around it, and what ``padding`` is meant for: of a
            layer made from a convolution, the convolution's own. The grid extends that window evenly on all sides, and
            the padding grows with it. By default the grid itself and 1.

    Parameters:
        weight (out_channels, in_channels / groups, kernel_count).
        P (D, out_channels, in_channels / groups, kernel_count): positions in pixels relative to ``size // 2``. ``P[d]``
            moves along kernel axis D - 1 - d: in two dimensions ``P[0]`` is x and ``P[1]`` is y. With ``v0`` they are
            (y, x), in three dimensions (z, x, y).
        SIG, shaped as P, for ``max`` and ``gauss`` only: the width is ``|SIG| + 1`` or ``|SIG| + 0.27`` pixels.
        bias (out_channels) or None.

    Names, shapes and meaning are those of the ``DCLS`` package, whose state dicts load; those for a rectangular grid
    through `from_dcls`.

    Raises:
        ValueError: for arguments that fit no convolution, an unknown version, or a kernel of more than 2**31 numbers.
    """

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
        *,
        kernel_size: IntOrInts | None = None,
        dilation: IntOrInts = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
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
            None,
            kernel_size,
            dilation,
            device,
            dtype,
        )


class Dcls1d(_DclsNd):  # noqa: D101
    __doc__ = _DclsNd.__doc__

    dims = spaced = 1


class Dcls2d(_DclsNd):  # noqa: D101
    __doc__ = _DclsNd.__doc__

    dims = spaced = 2


class Dcls3d(_DclsNd):  # noqa: D101
    __doc__ = _DclsNd.__doc__

    dims = spaced = 3
