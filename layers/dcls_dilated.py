"""The first form of learnable spacings: a dilated convolution whose taps can leave their places (arXiv 2112.03740)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ._base import parameter_like
from ._geometry import IntOrInts, Padding, effective_size, normalise_padding, pad, pad_widths, per_axis
from .dcls_base import DclsLayer
from .dcls_bounds import clamp_between
from .dcls_dilated_kernel import construct_dilated_kernel, position_scale, taps_on_grid
from .dcls_formula import Formula, depthwise_conv, depthwise_pays, is_depthwise
from .dcls_sampled import sampled_conv, sampling_is_cheaper
from .dcls_sparse import dcls_gather_conv2d, gather_wins
from .frozen import grown_conv
from .ops._load import use_kernels

torch.fx.wrap("dcls_dilated_conv")


def dcls_dilated_conv(
    x: Tensor,
    weight: Tensor,
    P: Tensor,
    bias: Tensor | None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    gain: float = 1.0,
    formula: Formula = "auto",
) -> Tensor:
    """Convolve with the kernel of `construct_dilated_kernel`, in one, two or three dimensions.

    Args:
        x: (B, C, *size), or (C, *size). The result is channels_last where it is.
        weight, P, gain: as in `construct_dilated_kernel`.
        bias: (O) or None.
        stride, padding, dilation, groups, padding_mode: as in ``nn.Conv2d``; ``padding="same"`` with any stride.
        formula: ``"dense"`` builds the kernel; ``"depthwise"`` does so for `large_depthwise_conv2d`, in one or two
            dimensions with a group for each channel; ``"sparse"`` interpolates the image instead, which is for
            positions that all output channels share; ``"auto"`` is the cheapest. They give the same.

    Raises:
        ValueError: if shapes do not fit, or the formula is unknown or does not fit the rest.
    """
    dims = weight.dim() - 2
    shared = P.dim() == dims + 2
    channels = weight.shape[1] * groups
    if x.dim() not in (dims + 1, dims + 2) or x.shape[-dims - 1] != channels:
        raise ValueError(
            f"input must be (B, {channels}, *size) or ({channels}, *size), with {dims} sizes, for this weight and "
            f"groups, got {tuple(x.shape)}"
        )
    steps, amounts = per_axis(stride, dims, "stride"), normalise_padding(padding, dims)
    window = effective_size(weight.shape[2:], per_axis(dilation, dims, "dilation"))
    taps, outputs = math.prod(weight.shape[2:]), weight.shape[0] // groups
    ones = (1,) * dims
    depthwise = is_depthwise(x, window, ones, groups)
    possible = ("dense", *(("depthwise",) if depthwise else ()), *(("sparse",) if shared else ()))
    if formula == "auto":
        formula = "depthwise" if depthwise and depthwise_pays(x, weight.flatten(2), window) else "dense"
        if shared and _gathering_pays(x, window, taps, outputs):
            formula = "sparse"
    elif formula not in possible:
        raise ValueError(f"formula must be one of auto, {', '.join(possible)} here, got {formula!r}")
    widths = pad_widths(amounts, window, steps, x.shape[-dims:])
    if formula == "sparse":
        values, places, _ = taps_on_grid(weight, P, dilation, gain)
        values = values.to(weight.dtype)
        if dims == 1 or not use_kernels(x):
            return sampled_conv(x, values, places, bias, steps, amounts, window, groups, padding_mode)
        batched = pad(x if x.dim() == 4 else x.unsqueeze(0), widths if padding_mode != "zeros" else [], padding_mode)
        around = [width for pair in widths for width in pair] if padding_mode == "zeros" else [0] * 4
        options = window, range(dims), False, steps, around, groups
        y = dcls_gather_conv2d(batched, values, places.unsqueeze(1), bias, *options)
        return y if x.dim() == 4 else y.squeeze(0)
    kernel = construct_dilated_kernel(weight, P, dilation, gain)
    if formula == "dense":
        return grown_conv(x, kernel, bias, steps, amounts, ones, groups, padding_mode, window)
    return depthwise_conv(x, kernel, bias, steps, widths, padding_mode)


def _gathering_pays(x: Tensor, window: tuple[int, ...], taps: int, outputs: int) -> bool:
    if len(window) == 2 and use_kernels(x):
        return gather_wins(x, taps, window, outputs)
    return sampling_is_cheaper(window, taps, outputs)


class _DclsDilatedNd(DclsLayer):
    """Dilated convolution whose taps have learned, real-valued positions within what the dilated kernel spans.

    Shape: (B, in_channels, *size) to (B, out_channels, *out), or both without B, as in ``nn.Conv2d``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            ``nn.Conv2d``; ``padding="same"`` is allowed with any stride.
        gain: a tap moves by ``P * gain * sqrt(n)`` pixels, n being the number of entries of ``P[0]``.
        shared_positions: whether all output channels have the same positions.

    Parameters:
        weight (out_channels, in_channels / groups, *kernel_size).
        P (D, out_channels, in_channels / groups, *kernel_size), or without out_channels if shared: ``P[d]`` moves taps
            along kernel axis d from where the dilated convolution has them. It starts normal, with a standard
            deviation of half the dilation in pixels; along an axis of dilation 1 at 0, so that with dilation 1 a new
            layer is an ``nn.Conv2d``.
        bias (out_channels) or None.

    Raises:
        ValueError: for arguments that fit no convolution, or a gain that is not positive and finite.
    """

    new_parameter_names: ClassVar[tuple[str, ...]] = ("P",)

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
        padding_mode: str = "zeros",
        *,
        gain: float = 1.0,
        shared_positions: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        if not 0 < gain < math.inf:
            raise ValueError(f"gain must be a number above 0, got {gain}")
        self.gain, self.shared_positions = gain, shared_positions
        self.window = effective_size(self.kernel_size, self.dilation)
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        placement: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(shape, **placement))
        self.P = nn.Parameter(torch.empty((self.dims, *shape[int(shared_positions) :]), **placement))
        self.bias = nn.Parameter(torch.empty(out_channels, **placement)) if bias else None
        self.reset_parameters()
        self._want_kernels()

    def reset_parameters(self) -> None:
        """Draw weights as ``nn.Conv2d`` does, and the positions anew."""
        if self.weight.is_meta:  # nothing to draw, and slow all the same
            return
        bound = self.weight[0].numel() ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        scale = position_scale(self.P, self.gain)
        for d, step in enumerate(self.dilation):
            nn.init.normal_(self.P[d], std=0.0 if step == 1 else 0.5 * step / scale)
        self.clamp_positions()

    @torch.no_grad()
    def clamp_positions(self) -> None:
        # A little inside, so that rounding puts none beyond the border, where it would have no gradient.
        scale = position_scale(self.P, self.gain) * (1 + 2 * torch.finfo(self.P.dtype).eps)
        axes = [
            torch.arange(taps, dtype=torch.float64, device=self.P.device) * step
            for taps, step in zip(self.kernel_size, self.dilation, strict=True)
        ]
        places = torch.stack(torch.meshgrid(axes, indexing="ij"))  # (D, *kernel_size)
        last = places.amax(tuple(range(1, places.dim())), keepdim=True)
        shape = (self.dims, *(1,) * (self.P.dim() - places.dim()), *self.kernel_size)
        clamp_between(self.P, (-places / scale).view(shape), ((last - places) / scale).view(shape))

    def construct_kernel(self) -> Tensor:
        return construct_dilated_kernel(self.weight, self.P, self.dilation, self.gain)

    @classmethod
    def unsupported_reason(cls, conv: nn.Module, **options: Any) -> str | None:
        reason = super().unsupported_reason(conv)
        if reason is not None:
            return reason
        source: Any = conv
        if all(size == 1 for size in source.kernel_size):
            return f"a {'×'.join('1' * cls.dims)}{'-tap' * (cls.dims == 1)} kernel has nothing to space"
        return None

    @classmethod
    def from_conv(
        cls,
        conv: nn.Module,
        *,
        generator: torch.Generator | None = None,
        gain: float = 1.0,
        shared_positions: bool = False,
    ) -> Self:
        """Make a layer that computes what ``conv`` computes, with each tap where it is.

        Args:
            conv: the convolution; weights are copied.
            generator: not drawn from: nothing is random.
            gain, shared_positions: as in the constructor.
        """
        source = cls._check_conv(conv)
        layer = cls(
            source.in_channels,
            source.out_channels,
            source.kernel_size,
            source.stride,
            source.padding,
            source.dilation,
            source.groups,
            source.bias is not None,
            source.padding_mode,
            gain=gain,
            shared_positions=shared_positions,
            device="meta",
            dtype=source.weight.dtype,
        )
        layer.weight = parameter_like(
            source.weight.detach().clone(memory_format=torch.contiguous_format), source.weight
        )
        layer.P = nn.Parameter(source.weight.new_zeros(layer.P.shape))
        if source.bias is not None:
            layer.bias = parameter_like(source.bias.detach().clone(), source.bias)
        layer._want_kernels()
        return layer.train(source.training)

    def forward(self, input: Tensor) -> Tensor:
        return dcls_dilated_conv(
            input,
            self.weight,
            self.P,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.padding_mode,
            self.gain,
            self.formula,
        )

    def extra_repr(self) -> str:
        shared = ", shared_positions=True" if self.shared_positions else ""
        return f"{super().extra_repr()}, gain={self.gain}{shared}"


class DclsDilated1d(_DclsDilatedNd):  # noqa: D101
    __doc__ = _DclsDilatedNd.__doc__

    dims = 1


class DclsDilated2d(_DclsDilatedNd):  # noqa: D101
    __doc__ = _DclsDilatedNd.__doc__

    dims = 2
