"""The first form of learnable spacings: a dilated convolution whose taps can leave their places (arXiv 2112.03740)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from ._base import parameter_like
from ._geometry import IntOrInts, Padding, effective_size, normalise_padding, per_axis
from .dcls_base import DclsLayer
from .dcls_grid import position_bounds
from .dcls_kernel import draw_triangles
from .dcls_sampled import sampled_conv, sampling_is_cheaper
from .frozen import grown_conv
from .ops._load import want_kernels

torch.fx.wrap("dcls_dilated_conv")

Formula = Literal["auto", "dense", "sparse"]


def construct_dilated_kernel(weight: Tensor, P: Tensor, dilation: IntOrInts, gain: float = 1.0) -> Tensor:
    """Build the dense kernel of a dilated convolution whose taps have moved.

    Tap (r, c) is at ``(r, c) * dilation + P[:, ..., r, c] * gain * sqrt(n)`` pixels, n being the number of entries of
    ``P[0]``; it is clamped to the grid, of ``dilation * (k - 1) + 1`` pixels, and drawn on it by bilinear
    interpolation. With P = 0 that is the kernel of the dilated convolution.

    Args:
        weight: (O, I, *k), I input channels per group.
        P: (D, O, I, *k), or (D, I, *k) for all output channels alike. ``P[d]`` moves along kernel axis d.
        dilation: number of pixels between taps.

    Returns:
        (O, I, *grid), in the dtype of ``weight``. Computed in single precision at least. At integer positions the
        gradient is the mean of the one-sided derivatives; a position on the border, or beyond, has the one there or 0.

    Raises:
        ValueError: if the shapes do not fit.
    """
    places, sizes = _places(weight, P, dilation, gain)
    if places.dim() == 3:
        places = places.unsqueeze(1).expand(-1, weight.shape[0], -1, -1)
    axes = list(range(len(sizes)))
    return draw_triangles(weight.flatten(2), places, list(sizes), axes, normalise=False, right_slope=False)


def _places(weight: Tensor, P: Tensor, dilation: IntOrInts, gain: float) -> tuple[Tensor, tuple[int, ...]]:
    """Positions of the taps on the grid, ([D, O,] I, taps), relative to ``size // 2``, and the sizes of the grid."""
    taps = tuple(weight.shape[2:])
    dims = len(taps)
    steps = per_axis(dilation, dims, "dilation")
    shapes = (dims, *weight.shape), (dims, *weight.shape[1:])
    if P.shape not in shapes:
        raise ValueError(f"P must have shape {shapes[0]}, or {shapes[1]} if shared, got {tuple(P.shape)}")
    sizes = effective_size(taps, steps)
    moved = P.to(torch.promote_types(weight.dtype, torch.float32)) * position_scale(P, gain)
    places = []
    for axis, (count, step, size) in enumerate(zip(taps, steps, sizes, strict=True)):
        at_rest = torch.arange(count, dtype=moved.dtype, device=P.device) * step - size // 2
        place = moved[axis] + at_rest.view(-1, *(1,) * (dims - 1 - axis))
        low, high = position_bounds(size)
        # The gradient passes at the bounds themselves, where most taps start; that of torch.clamp differs by version.
        within = (place >= low) & (place <= high)
        places.append(torch.where(within, place, place.detach().clamp(low, high)).flatten(-dims))
    return torch.stack(places), sizes


def position_scale(P: Tensor, gain: float) -> float:
    """Pixels that a tap moves per unit of P."""
    return gain * math.sqrt(math.prod(P.shape[1:]))


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
        formula: ``"dense"`` builds the kernel; ``"sparse"`` interpolates the image instead, which is for positions
            that all output channels share; ``"auto"`` is the cheaper. They give the same.
    """
    dims = weight.dim() - 2
    shared = P.dim() == dims + 2
    steps, amounts = per_axis(stride, dims, "stride"), normalise_padding(padding, dims)
    window = effective_size(weight.shape[2:], per_axis(dilation, dims, "dilation"))
    taps, outputs = math.prod(weight.shape[2:]), weight.shape[0] // groups
    if formula == "auto":
        formula = "sparse" if shared and sampling_is_cheaper(window, taps, outputs) else "dense"
    if formula == "dense":
        kernel = construct_dilated_kernel(weight, P, dilation, gain)
        return grown_conv(x, kernel, bias, steps, amounts, (1,) * dims, groups, padding_mode, window)
    if formula != "sparse" or not shared:
        raise ValueError(
            'formula must be "auto", "dense" or, for positions shared by the output channels, "sparse", '
            f"got {formula!r} with P of shape {tuple(P.shape)}"
        )
    places, _ = _places(weight, P, dilation, gain)
    return sampled_conv(x, weight.flatten(2), places, bias, steps, amounts, window, groups, padding_mode)


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
        ValueError: for arguments that fit no convolution, or a gain that is not positive.
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
        if not gain > 0:
            raise ValueError(f"gain must be above 0, got {gain}")
        self.gain, self.shared_positions = gain, shared_positions
        self.window = effective_size(self.kernel_size, self.dilation)
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        placement: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(shape, **placement))
        self.P = nn.Parameter(torch.empty((self.dims, *shape[int(shared_positions) :]), **placement))
        self.bias = nn.Parameter(torch.empty(out_channels, **placement)) if bias else None
        self.reset_parameters()
        want_kernels(self)

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
        for d, (taps, step) in enumerate(zip(self.kernel_size, self.dilation, strict=True)):
            place = torch.arange(taps, dtype=torch.float64, device=self.P.device) * step
            place = place.view(-1, *(1,) * (self.dims - 1 - d))
            low, high = -place / scale, (step * (taps - 1) - place) / scale
            self.P[d].clamp_(low.to(self.P.dtype), high.to(self.P.dtype))

    def construct_kernel(self) -> Tensor:
        return construct_dilated_kernel(self.weight, self.P, self.dilation, self.gain)

    @classmethod
    def unsupported_reason(cls, conv: nn.Module, **options: Any) -> str | None:
        reason = super().unsupported_reason(conv)
        if reason is not None:
            return reason
        source: Any = conv
        if all(size == 1 for size in source.kernel_size):
            return f"a {'x'.join('1' * cls.dims)} kernel has nothing to space"
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
        want_kernels(layer)
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
