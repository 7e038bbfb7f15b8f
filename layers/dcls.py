"""Dilated convolution with learnable spacings (Khalfaoui-Hassani et al. 2023, arXiv 2112.03740 and 2306.00817)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ._base import ConvLayer, parameter_like
from ._geometry import IntOrInts, Padding, conv_nd, effective_size, normalise_padding, pad_widths, per_axis
from .dcls_kernel import VERSIONS, Version, construct_kernel, position_bounds
from .dcls_start import start_from_kernel

torch.fx.wrap("dcls_conv")

GAUSS_START = 0.23
"""SIG of a new layer: a standard deviation of half a pixel."""

MAX_DENSE_KERNEL = 2**31
"""Numbers in the kernel that is built: beyond this there is no convolution to run with it."""

POSITION_STD = 0.5
"""Standard deviation, in pixels, of the positions of a new layer."""


def dcls_conv(
    x: Tensor,
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    bias: Tensor | None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilated_kernel_size: IntOrInts = 7,
    groups: int = 1,
    padding_mode: str = "zeros",
    version: Version = "v1",
    window: IntOrInts | None = None,
) -> Tensor:
    """Build a DCLS kernel and convolve with it, in one, two or three dimensions.

    Args:
        x: (B, C, *size), or (C, *size).
        weight, P, SIG, version: as in `construct_kernel`.
        bias: (O) or None.
        stride, padding, groups, padding_mode: as in ``nn.Conv2d``; ``padding="same"`` with any stride.
        dilated_kernel_size: size of the kernel that is built.
        window: ``padding`` is that of a kernel that spans this many pixels; half of what the kernel is larger is added
            on each side. The kernel's own size by default.
    """
    dims = P.shape[0]
    sizes = per_axis(dilated_kernel_size, dims, "dilated_kernel_size")
    steps = per_axis(stride, dims, "stride")
    kernel = construct_kernel(weight, P, SIG, sizes, version)
    extents = sizes if window is None else per_axis(window, dims, "window")
    growth = [(size - extent) // 2 for size, extent in zip(sizes, extents, strict=True)]
    inner = pad_widths(normalise_padding(padding, dims), extents, steps, x.shape[-dims:])
    widths = [(before + g, after + g) for (before, after), g in zip(inner, growth, strict=True)]
    return conv_nd(x, kernel, bias, steps, widths, (1,) * dims, groups, padding_mode)


class _DclsNd(ConvLayer):
    """Convolution whose kernel is made of few elements at learned, real-valued positions on a larger grid.

    Shape: (B, in_channels, *size) to (B, out_channels, *out), or both without B, as in ``nn.Conv2d``.

    Args:
        in_channels, out_channels, stride, padding, groups, bias, padding_mode: as in ``nn.Conv2d``;
            ``padding="same"`` is allowed with any stride.
        kernel_count: number of elements of each kernel.
        dilated_kernel_size: size of the grid that they lie on.
        version: bump that an element draws: ``"v1"``, a triangle, or ``"gauss"``.
        kernel_size, dilation: what the layer shows to the code around it, and what ``padding`` is meant for: of a
            layer made from a convolution, the convolution's own. The grid extends that window evenly on all sides, and
            the padding grows with it. By default the grid itself and 1.

    Parameters:
        weight (out_channels, in_channels / groups, kernel_count).
        P (D, out_channels, in_channels / groups, kernel_count): positions in pixels relative to ``size // 2``. ``P[d]``
            moves along kernel axis D - 1 - d: in two dimensions ``P[0]`` is x and ``P[1]`` is y.
        SIG, shaped as P, for ``gauss`` only: the standard deviation is ``|SIG| + 0.27`` pixels.
        bias (out_channels) or None.

    Names, shapes and meaning are those of the ``DCLS`` package, whose state dicts load.

    Raises:
        ValueError: for arguments that fit no convolution, an unknown version, or a kernel of more than 2**31 numbers.
    """

    new_parameter_names: ClassVar[tuple[str, ...]] = ("P", "SIG")

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
        shown_size = dilated_kernel_size if kernel_size is None else kernel_size
        super().__init__(in_channels, out_channels, shown_size, stride, padding, dilation, groups, padding_mode)
        self.dilated_kernel_size = per_axis(dilated_kernel_size, self.dims, "dilated_kernel_size")
        self.window = effective_size(self.kernel_size, self.dilation)
        reason = _unfit_sizes(self.dilated_kernel_size, self.window)
        if reason is not None:
            raise ValueError(reason)
        if version not in VERSIONS:
            raise ValueError(f"version must be one of {', '.join(VERSIONS)}, got {version!r}")
        if kernel_count < 1:
            raise ValueError(f"kernel_count must be at least 1, got {kernel_count}")
        dense = out_channels * (in_channels // groups) * math.prod(self.dilated_kernel_size)
        if dense > MAX_DENSE_KERNEL:
            raise ValueError(
                f"dilated_kernel_size {dilated_kernel_size} gives a kernel of {dense:.1e} numbers, more than 2**31"
            )
        self.kernel_count = kernel_count
        self.version: Version = version
        shape = (out_channels, in_channels // groups, kernel_count)
        placement: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(shape, **placement))
        self.P = nn.Parameter(torch.empty((self.dims, *shape), **placement))
        self.SIG = nn.Parameter(torch.empty((self.dims, *shape), **placement)) if version == "gauss" else None
        self.bias = nn.Parameter(torch.empty(out_channels, **placement)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights as ``nn.Conv2d`` with as many taps does, and positions from a normal distribution."""
        if self.weight.is_meta:  # nothing to draw, and slow all the same
            return
        bound = self.weight[0].numel() ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        nn.init.normal_(self.P, std=POSITION_STD)
        self.clamp_positions()
        if self.SIG is not None:
            nn.init.constant_(self.SIG, GAUSS_START)

    @torch.no_grad()
    def clamp_positions(self) -> None:
        """Move elements that have left the grid back to its border; to be called after each optimiser step."""
        for d in range(self.dims):
            self.P[d].clamp_(*position_bounds(self.dilated_kernel_size[self.dims - 1 - d]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # P and SIG have four axes, but are no images: to(memory_format=...) must pass over them.
        def pass_over_format(value: Tensor) -> Tensor:
            return fn(value.flatten(1)).view_as(value) if value.dim() == 4 else fn(value)

        super()._apply(pass_over_format, recurse)  # type: ignore[no-untyped-call]
        return self

    def construct_kernel(self) -> Tensor:
        """The dense kernel (out_channels, in_channels / groups, *dilated_kernel_size)."""
        return construct_kernel(self.weight, self.P, self.SIG, self.dilated_kernel_size, self.version)

    @classmethod
    def unsupported_reason(cls, conv: nn.Module, **options: Any) -> str | None:
        reason = super().unsupported_reason(conv)
        if reason is not None:
            return reason
        source: Any = conv
        if all(size == 1 for size in source.kernel_size):
            return f"a {'x'.join('1' * cls.dims)} kernel has nothing to space"
        sizes = options.get("dilated_kernel_size")
        if sizes is None:
            return None
        window = effective_size(source.kernel_size, source.dilation)
        return _unfit_sizes(per_axis(sizes, cls.dims, "dilated_kernel_size"), window)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Module,
        *,
        generator: torch.Generator | None = None,
        kernel_count: int | None = None,
        dilated_kernel_size: IntOrInts | None = None,
        version: Version = "v1",
    ) -> Self:
        """Make a layer that computes what ``conv`` computes: elements on the conv's own taps, of the same weight.

        Args:
            conv: the convolution; weights are copied.
            generator: a CPU generator for the positions of further elements; the global one by default.
            kernel_count: number of elements; the conv's number of taps by default. More: the others start with weight 0
                at random positions. Fewer: of each kernel the taps of largest magnitude are kept.
            dilated_kernel_size: size of the grid, of the parity of what the conv's kernel spans; see
                `default_dilated_kernel_size`.
            version: ``"v1"`` is exact. A Gaussian is never a point: ``"gauss"`` starts with SIG = 0.001 and the weights
                that fit the conv's kernel best in the least-squares sense.
        """
        source = cls._check_conv(conv, dilated_kernel_size=dilated_kernel_size)
        if dilated_kernel_size is None:
            dilated_kernel_size = default_dilated_kernel_size(source.kernel_size, source.dilation)
        sizes = per_axis(dilated_kernel_size, cls.dims, "dilated_kernel_size")
        count = source.weight[0, 0].numel() if kernel_count is None else kernel_count
        layer = cls(
            source.in_channels,
            source.out_channels,
            count,
            source.stride,
            source.padding,
            sizes,
            source.groups,
            source.bias is not None,
            source.padding_mode,
            version,
            kernel_size=source.kernel_size,
            dilation=source.dilation,
            device="meta",
            dtype=source.weight.dtype,
        )
        start = start_from_kernel(source.weight, source.dilation, sizes, count, version, generator)
        layer.weight = parameter_like(start.weight, source.weight)
        layer.P = nn.Parameter(start.P.to(source.weight))
        if start.SIG is not None:
            layer.SIG = nn.Parameter(start.SIG.to(source.weight))
        if source.bias is not None:
            layer.bias = parameter_like(source.bias.detach().clone(), source.bias)
        return layer.train(source.training)

    def forward(self, input: Tensor) -> Tensor:
        return dcls_conv(
            input,
            self.weight,
            self.P,
            self.SIG,
            self.bias,
            self.stride,
            self.padding,
            self.dilated_kernel_size,
            self.groups,
            self.padding_mode,
            self.version,
            self.window,
        )

    def extra_repr(self) -> str:
        sizes = f"kernel_count={self.kernel_count}, dilated_kernel_size={self.dilated_kernel_size}"
        return f"{super().extra_repr()}, {sizes}, version={self.version!r}"


class Dcls1d(_DclsNd):  # noqa: D101
    __doc__ = _DclsNd.__doc__

    dims = 1


class Dcls2d(_DclsNd):  # noqa: D101
    __doc__ = _DclsNd.__doc__

    dims = 2


class Dcls3d(_DclsNd):  # noqa: D101
    __doc__ = _DclsNd.__doc__

    dims = 3


def _unfit_sizes(sizes: tuple[int, ...], window: tuple[int, ...]) -> str | None:
    """Why a grid of these sizes cannot extend a window evenly, or None if it can."""
    for size, extent in zip(sizes, window, strict=True):
        if size < extent:
            return f"dilated_kernel_size {size} is smaller than the {extent} pixels that the kernel spans"
        if (size - extent) % 2:
            return (
                f"dilated_kernel_size {size} has not the parity of the {extent} pixels that the kernel spans, so "
                f"its centre would move: use {size - 1} or {size + 1}"
            )
    return None


def default_dilated_kernel_size(kernel_size: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """Grid for a conv's kernel: per axis the smallest size of its parity that is at least 7 and twice what it spans.

    An axis with a single tap has nothing to space and keeps size 1.
    """
    sizes = []
    for taps, extent in zip(kernel_size, effective_size(kernel_size, dilation), strict=True):
        size = max(7, 2 * extent)
        sizes.append(1 if taps == 1 else size + (size - extent) % 2)
    return tuple(sizes)
