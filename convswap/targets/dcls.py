"""Dilated convolution with learnable spacings as a target (Khalfaoui-Hassani et al. 2023, arXiv 2112.03740)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..conv_classes import Conv, padding_widths
from ..errors import OptionError
from ..formatting import sizes
from ..layers import Dcls1d, Dcls2d, Dcls3d
from ..layers._geometry import effective_size
from ..layers.dcls_grid import default_dilated_kernel_size
from ..layers.dcls_shared import layers_with_shared_positions
from ..sites import ConvSite
from .base import Fidelity, Target

_LAYERS: dict[int, Any] = {1: Dcls1d, 2: Dcls2d, 3: Dcls3d}


@dataclass(frozen=True)
class DclsOptions:
    """Options of ``to="dcls"``.

    Attributes:
        kernel_count: elements of each kernel; by default as many as the conv has taps.
        dilated_kernel_size: size of the grid they move on; by default, per axis, the smallest size of the kernel's
            parity that is at least 7 and twice what the kernel spans (axes with a single tap stay as they are).
        version: bump that an element draws: ``"v1"`` (bilinear interpolation), ``"v0"`` (the same, not normalised) and
            ``"max"`` (a triangle of learned width) are exact, ``"gauss"`` is approximate.
        share_positions: which layers have their positions (and widths) in common, as one ``nn.Parameter``, among those
            of one rule, kernel shape and dilation: ``"none"``; ``"stage"``, those with outputs of the same resolution,
            as published; ``"group"``, all; or a function that gives a `ConvSite` a label, equal for those that share,
            or None. Of a rule with a function, reports and recipes have ``"group"``.
        max_kernel_bytes: convolutions whose dense kernel, which is built in each forward pass, would take more are
            kept; None for no limit.
    """

    kernel_count: int | None = None
    dilated_kernel_size: int | tuple[int, ...] | None = None
    version: Literal["v0", "v1", "max", "gauss"] = "v1"
    share_positions: Literal["none", "stage", "group"] | Callable[[ConvSite], Hashable] = "none"
    max_kernel_bytes: int | None = 2**28

    def __post_init__(self) -> None:
        if self.kernel_count is not None and self.kernel_count < 1:
            raise ValueError(f"kernel_count must be at least 1, got {self.kernel_count}")
        sizes = self.dilated_kernel_size
        if sizes is not None and min((sizes,) if isinstance(sizes, int) else sizes, default=0) < 1:
            raise ValueError(f"dilated_kernel_size must be at least 1, got {sizes}")
        if self.max_kernel_bytes is not None and self.max_kernel_bytes < 1:
            raise ValueError(f"max_kernel_bytes must be at least 1, got {self.max_kernel_bytes}")


class Dcls(Target):
    """A kernel of few elements at learned positions on a larger grid."""

    name = "dcls"
    summary = "few kernel elements at learned positions on a larger grid"
    options = DclsOptions

    def resolve(self, site: ConvSite, options: DclsOptions) -> DclsOptions:
        conv = site.module
        sizes = options.dilated_kernel_size
        if sizes is None:
            sizes = default_dilated_kernel_size(tuple(conv.kernel_size), tuple(conv.dilation))
        return replace(
            options,
            kernel_count=options.kernel_count or math.prod(conv.kernel_size),
            dilated_kernel_size=(sizes,) * site.dims if isinstance(sizes, int) else tuple(sizes),
            share_positions="group" if callable(options.share_positions) else options.share_positions,
        )

    def unsupported_reason(self, site: ConvSite, options: DclsOptions) -> str | None:
        sizes = options.dilated_kernel_size
        if isinstance(sizes, tuple) and len(sizes) != site.dims:
            return f"dilated_kernel_size {sizes} has {len(sizes)} numbers for a convolution of {site.dims} axes"
        layer = _LAYERS[site.dims]
        reason: str | None = layer.unsupported_reason(site.plain, dilated_kernel_size=sizes)
        if reason is None:
            reason = self._size_reason(site, options)
        if reason is None and site.plain.padding_mode in ("reflect", "circular"):
            reason = self._padding_reason(site, options)
        if reason is None and options.share_positions == "stage" and not site.calls:
            reason = (
                'share_positions="stage" goes by the size of its output, which is unknown: give example_inputs that '
                "reach it, or share_positions another way"
            )
        return reason

    def _size_reason(self, site: ConvSite, options: DclsOptions) -> str | None:
        """The kernel is built whole in each forward pass, and kept for the backward pass."""
        weight = site.plain.weight
        grid: Any = self.resolve(site, options).dilated_kernel_size
        needed = weight.shape[0] * weight.shape[1] * math.prod(grid) * weight.element_size()
        if options.max_kernel_bytes is None or needed <= options.max_kernel_bytes:
            return None
        shape = "×".join(map(str, (*weight.shape[:2], *grid)))
        taken, limit = sizes(needed, options.max_kernel_bytes)
        return (
            f"its kernel of {shape} numbers would take {taken}, built anew in each forward pass, and "
            f"max_kernel_bytes is {limit}: choose a smaller dilated_kernel_size, or raise "
            "max_kernel_bytes"
        )

    def _padding_reason(self, site: ConvSite, options: DclsOptions) -> str | None:
        """Reflect and circular padding cannot be wider than the map that it is taken from."""
        conv = site.plain
        if not site.calls:
            return (
                f"its {conv.padding_mode} padding grows with the kernel and must stay smaller than the map, whose "
                "size is unknown: give example_inputs"
            )
        sizes: Any = self.resolve(site, options).dilated_kernel_size
        window = effective_size(tuple(conv.kernel_size), tuple(conv.dilation))
        limit_off = conv.padding_mode == "reflect"
        for call in site.calls:
            maps = call.input_shape[-site.dims :]
            widths = padding_widths(conv, maps)
            for (_, after), size, extent, pixels in zip(widths, sizes, window, maps, strict=True):
                grown = after + (size - extent) // 2
                if grown > pixels - limit_off:
                    return (
                        f"its {conv.padding_mode} padding would grow to {grown} pixels, too wide for a map of "
                        f"{pixels}: choose a smaller dilated_kernel_size"
                    )
        return None

    def fidelity(self, site: ConvSite, options: DclsOptions) -> Fidelity:
        fewer = options.kernel_count is not None and options.kernel_count < math.prod(site.module.kernel_size)
        return "approximate" if fewer or options.version == "gauss" else "exact"

    def compared_kernels(self, conv: Conv, layer: nn.Module) -> tuple[Tensor, Tensor]:
        assert isinstance(layer, Dcls1d | Dcls2d | Dcls3d)
        drawn = layer.construct_kernel()
        window = effective_size(tuple(conv.kernel_size), tuple(conv.dilation))
        middle = [
            slice(start := (size - extent) // 2, start + extent, spacing)
            for size, extent, spacing in zip(drawn.shape[2:], window, conv.dilation, strict=True)
        ]
        on_grid = torch.zeros_like(drawn)
        on_grid[:, :, *middle] = conv.weight
        return on_grid, drawn

    def group(self, site: ConvSite, options: DclsOptions) -> Hashable:
        share = options.share_positions
        if share == "none":
            return None
        label: Hashable = None
        if callable(share):
            try:
                label = share(site)
            except Exception as error:
                raise OptionError(
                    f"the function given as share_positions failed for {site.name or 'the model'}: "
                    f"{type(error).__name__}: {error}"
                ) from error
            if label is None:
                return None
        elif share == "stage":
            label = frozenset(call.output_shape[-site.dims :] for call in site.calls)
        return label, tuple(site.module.weight.shape), tuple(site.module.dilation)

    def build_group(
        self, convs: Sequence[Conv], options: DclsOptions, generator: torch.Generator | None
    ) -> Sequence[nn.Module]:
        layers: list[nn.Module] = layers_with_shared_positions(
            _LAYERS[len(convs[0].kernel_size)],
            convs,
            generator=generator,
            kernel_count=options.kernel_count,
            dilated_kernel_size=options.dilated_kernel_size,
            version=options.version,
        )
        return layers

    def build(self, conv: Conv, options: DclsOptions, generator: torch.Generator | None) -> nn.Module:
        layer: nn.Module = _LAYERS[len(conv.kernel_size)].from_conv(
            conv,
            generator=generator,
            kernel_count=options.kernel_count,
            dilated_kernel_size=options.dilated_kernel_size,
            version=options.version,
        )
        return layer
