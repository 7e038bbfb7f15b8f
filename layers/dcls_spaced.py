"""The layers whose kernel has a number of elements and a grid size: construction, conversion, published weights."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ._base import parameter_like
from ._geometry import IntOrInts, Padding, effective_size, per_axis
from .dcls_base import DclsLayer
from .dcls_bounds import clamp_between
from .dcls_conv import dcls_conv
from .dcls_grid import default_dilated_kernel_size, position_axes, position_bounds, unfit_sizes
from .dcls_kernel import LEAST_SIGMA, VERSIONS, Version, construct_kernel
from .dcls_published import published_tensors
from .dcls_start import start_from_kernel

torch.fx.wrap("dcls_conv")

SIG_START: dict[Version, float] = {"max": 0.0, "gauss": 0.23}
"""SIG of a new layer. For ``gauss`` it makes a standard deviation of half a pixel."""

MAX_DENSE_KERNEL = 2**31
"""Numbers in the kernel that is built: beyond this there is no convolution to run with it."""

POSITION_STD = 0.5
"""Standard deviation, in pixels, of the positions of a new layer."""


class SpacedLayer(DclsLayer):
    """A layer of ``kernel_count`` elements on a grid of ``dilated_kernel_size``; see its subclasses."""

    new_parameter_names: ClassVar[tuple[str, ...]] = ("P", "SIG")
    spaced: ClassVar[int]
    """Number of axes that elements move along."""
    dense_axes: ClassVar[int] = 0
    """Number of axes, before those, that they do not move along."""
    versions: ClassVar[tuple[Version, ...]] = VERSIONS
    least_sigma: ClassVar[dict[Version, float]] = LEAST_SIGMA

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: IntOrInts,
        padding: Padding,
        dense_kernel_size: tuple[int, ...],
        dilated_kernel_size: IntOrInts,
        groups: int,
        bias: bool,
        padding_mode: str,
        version: Version,
        flat_dim: int | None,
        kernel_size: IntOrInts | None,
        dilation: IntOrInts,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        sizes = per_axis(dilated_kernel_size, self.spaced, "dilated_kernel_size")
        taps = (*dense_kernel_size, *sizes)
        if flat_dim is not None:
            taps = (*sizes, 1) if flat_dim == 0 else (1, *sizes)
        shown_size = taps if kernel_size is None else kernel_size
        super().__init__(in_channels, out_channels, shown_size, stride, padding, dilation, groups, padding_mode)
        self.dense_kernel_size, self.dilated_kernel_size, self.flat_dim = dense_kernel_size, sizes, flat_dim
        self.window = effective_size(self.kernel_size, self.dilation)
        self._check(version, kernel_count, taps)
        self.kernel_count = operator.index(kernel_count)
        self.version: Version = version
        shape = (out_channels, in_channels // groups, *dense_kernel_size, self.kernel_count)
        placement: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(shape, **placement))
        self.P = nn.Parameter(torch.empty((self.spaced, *shape), **placement))
        wide = version in LEAST_SIGMA
        self.SIG = nn.Parameter(torch.empty((self.spaced, *shape), **placement)) if wide else None
        self.bias = nn.Parameter(torch.empty(out_channels, **placement)) if bias else None
        self.reset_parameters()
        self._want_kernels()

    def _check(self, version: str, kernel_count: int, taps: tuple[int, ...]) -> None:
        dense = len(self.dense_kernel_size)
        if self.kernel_size[:dense] != self.dense_kernel_size:
            raise ValueError(
                f"kernel_size {self.kernel_size} must start with dense_kernel_size {self.dense_kernel_size}"
            )
        reason = unfit_sizes(taps[dense:], self.window[dense:])
        if reason is not None:
            raise ValueError(reason)
        if version not in self.versions:
            raise ValueError(f"version must be one of {', '.join(self.versions)}, got {version!r}")
        if not hasattr(kernel_count, "__index__") or kernel_count < 1:
            raise ValueError(f"kernel_count must be a whole number of at least 1, got {kernel_count!r}")
        numbers = self.out_channels * (self.in_channels // self.groups) * math.prod(taps)
        if numbers > MAX_DENSE_KERNEL:
            size = "x".join(map(str, self.dilated_kernel_size))
            raise ValueError(f"dilated_kernel_size {size} gives a kernel of {numbers:.1e} numbers, more than 2**31")

    def reset_parameters(self) -> None:
        """Draw weights as ``nn.Conv2d`` with as many taps does, and the positions anew."""
        if self.weight.is_meta:  # nothing to draw, and slow all the same
            return
        bound = self.weight[0].numel() ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        self._draw_positions()
        if self.SIG is not None:
            nn.init.constant_(self.SIG, SIG_START[self.version])

    def _draw_positions(self) -> None:
        nn.init.normal_(self.P, std=POSITION_STD)
        self.clamp_positions()

    def _position_bounds(self) -> list[tuple[int, int]]:
        """Least and greatest ``P[d]``, for each d."""
        return [position_bounds(self.dilated_kernel_size[axis]) for axis in position_axes(self.version, self.spaced)]

    @torch.no_grad()
    def clamp_positions(self) -> None:
        bounds = self._position_bounds()
        if len(set(bounds)) == 1:
            self.P.clamp_(*bounds[0])
            return
        shape = (-1, *(1,) * (self.P.dim() - 1))
        # Filled on the device: a copy to it would wait for all that it has to do.
        low, high = (
            torch.stack([torch.full((), float(b), device=self.P.device) for b in ends]).view(shape)
            for ends in zip(*bounds, strict=True)
        )
        clamp_between(self.P, low, high)

    def kernel_dilation(self) -> tuple[int, ...]:
        dense = len(self.dense_kernel_size)
        return (*self.dilation[:dense], *(1,) * (self.dims - dense))

    def construct_kernel(self) -> Tensor:
        least = self.least_sigma.get(self.version)
        kernel = construct_kernel(self.weight, self.P, self.SIG, self.dilated_kernel_size, self.version, least)
        return kernel if self.flat_dim is None else kernel.unsqueeze(-1 - self.flat_dim)

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
            self.dilation[: len(self.dense_kernel_size)],
            self.flat_dim,
            self.least_sigma.get(self.version),
            self.formula,
        )

    @classmethod
    def _spaced_axes(cls, kernel_size: tuple[int, ...]) -> tuple[int, ...]:
        """Axes of a conv with this kernel that elements would move along."""
        return tuple(range(cls.dims - cls.spaced, cls.dims))

    @classmethod
    def _own_arguments(cls, kernel_size: tuple[int, ...]) -> dict[str, Any]:
        """Further arguments of the constructor for a conv with this kernel."""
        return {}

    @classmethod
    def unsupported_reason(cls, conv: nn.Module, **options: Any) -> str | None:
        reason = super().unsupported_reason(conv)
        if reason is not None:
            return reason
        source: Any = conv
        axes = cls._spaced_axes(source.kernel_size)
        if all(source.kernel_size[axis] == 1 for axis in axes):
            along = "" if len(axes) == cls.dims else " along the axis that elements would move on"
            size = "×".join(map(str, source.kernel_size)) + "-tap" * (cls.dims == 1)
            return f"a {size} kernel has nothing to space{along}"
        sizes = options.get("dilated_kernel_size")
        if sizes is None:
            return None
        window = effective_size(source.kernel_size, source.dilation)
        return unfit_sizes(per_axis(sizes, cls.spaced, "dilated_kernel_size"), [window[axis] for axis in axes])

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
            kernel_count: number of elements (where there are dense axes, at each place on them); the conv's number of
                taps by default. More: the others start with weight 0 at random positions. Fewer: of each kernel the
                taps of largest magnitude are kept.
            dilated_kernel_size: size of the grid, of the parity of what the conv's kernel spans; see
                `default_dilated_kernel_size`.
            version: ``"v0"``, ``"v1"`` and ``"max"`` are exact. A Gaussian is never a point: ``"gauss"`` starts with
                SIG = 0.001 and the weights that fit the whole of the conv's kernel best in the least-squares sense.
        """
        return cls._from_conv(conv, generator, kernel_count, dilated_kernel_size, version)

    @classmethod
    def _from_conv(
        cls,
        conv: nn.Module,
        generator: torch.Generator | None,
        kernel_count: int | None,
        dilated_kernel_size: IntOrInts | None,
        version: Version,
        ranking: Tensor | None = None,
    ) -> Self:
        """`from_conv`; of fewer elements than taps, those on the largest in ``ranking``, shaped as the weight."""
        source = cls._check_conv(conv, dilated_kernel_size=dilated_kernel_size)
        axes = cls._spaced_axes(source.kernel_size)
        taps, steps = (tuple(values[axis] for axis in axes) for values in (source.kernel_size, source.dilation))
        if dilated_kernel_size is None:
            dilated_kernel_size = default_dilated_kernel_size(taps, steps)
        sizes = per_axis(dilated_kernel_size, cls.spaced, "dilated_kernel_size")
        count = math.prod(taps) if kernel_count is None else kernel_count
        make: Any = cls  # the constructors differ in their further arguments
        layer: Self = make(
            source.in_channels,
            source.out_channels,
            count,
            source.stride,
            source.padding,
            dilated_kernel_size=sizes,
            groups=source.groups,
            bias=source.bias is not None,
            padding_mode=source.padding_mode,
            version=version,
            kernel_size=source.kernel_size,
            dilation=source.dilation,
            device="meta",
            dtype=source.weight.dtype,
            **cls._own_arguments(source.kernel_size),
        )
        kernel = source.weight.reshape(source.weight.shape[0], -1, *taps)  # dense axes as so many more input channels
        least = cls.least_sigma.get(version)
        ranks = None if ranking is None else ranking.reshape(kernel.shape)
        start = start_from_kernel(kernel, steps, sizes, layer.kernel_count, version, generator, least, ranks)
        layer.weight = parameter_like(start.weight.reshape(layer.weight.shape), source.weight)
        layer.P = nn.Parameter(start.P.reshape(layer.P.shape).to(source.weight))
        if start.SIG is not None:
            layer.SIG = nn.Parameter(start.SIG.reshape(layer.P.shape).to(source.weight))
        if source.bias is not None:
            layer.bias = parameter_like(source.bias.detach().clone(), source.bias)
        layer._want_kernels()
        return layer.train(source.training)

    @classmethod
    def from_dcls(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        prefix: str = "",
        dilated_kernel_size: IntOrInts,
        version: Version,
        groups: int = 1,
        stride: IntOrInts = 1,
        padding: Padding = 0,
        padding_mode: str = "zeros",
        **own: Any,
    ) -> Self:
        """Make a layer from what the layer of this name in the ``DCLS`` package saved.

        Channels, dense kernel size, number of elements, bias, dtype and device are read off the tensors. A state dict
        for a square grid can as well be loaded by ``load_state_dict``. On a rectangular one that package counts
        positions from the middle of another axis than they move along; they are shifted, so that the function is the
        same.

        Args:
            state_dict: holds ``weight``, ``P``, ``SIG`` (for ``max`` and ``gauss``) and perhaps ``bias``, each after
                ``prefix``; other names without the prefix may be there. Tensors are copied.
            dilated_kernel_size, version, groups, stride, padding, padding_mode: as the layer was made with.
            own: further arguments of the constructor, as ``flat_dim`` of `Dcls2dK1d`.

        Raises:
            ValueError: if a tensor is missing, unexpected or of a shape that does not fit.
        """
        tensors = published_tensors(state_dict, prefix, cls.spaced, 3 + cls.dense_axes, version in LEAST_SIGMA)
        weight = tensors["weight"]
        if cls.dense_axes:
            own["dense_kernel_size"] = tuple(weight.shape[2:-1])
        make: Any = cls
        layer: Self = make(
            weight.shape[1] * groups,
            weight.shape[0],
            weight.shape[-1],
            stride,
            padding,
            dilated_kernel_size=dilated_kernel_size,
            groups=groups,
            bias="bias" in tensors,
            padding_mode=padding_mode,
            version=version,
            device=weight.device,
            dtype=weight.dtype,
            **own,
        )
        sizes = layer.dilated_kernel_size
        shifts = [sizes[d] // 2 - sizes[axis] // 2 for d, axis in enumerate(position_axes(version, cls.spaced))]
        tensors["P"] = torch.stack([P + shift for P, shift in zip(tensors["P"], shifts, strict=True)])
        layer.load_state_dict(tensors)
        return layer

    def extra_repr(self) -> str:
        parts = [super().extra_repr(), f"kernel_count={self.kernel_count}"]
        if self.dense_kernel_size:
            parts.append(f"dense_kernel_size={self.dense_kernel_size}")
        parts += [f"dilated_kernel_size={self.dilated_kernel_size}", f"version={self.version!r}"]
        if self.flat_dim is not None:
            parts.append(f"flat_dim={self.flat_dim}")
        return ", ".join(parts)
