"""The functional form of dilated convolution with learnable spacings."""

from __future__ import annotations

from torch import Tensor

from ._geometry import IntOrInts, Padding, effective_size, normalise_padding, per_axis
from .dcls_formula import Formula, depthwise_conv, depthwise_pays, is_depthwise, sparse_conv, sparse_pays
from .dcls_kernel import Version, construct_kernel
from .frozen import grown_conv, grown_widths


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
    dense_dilation: IntOrInts = 1,
    flat_dim: int | None = None,
    least_sigma: float | None = None,
    formula: Formula = "auto",
) -> Tensor:
    """Build a DCLS kernel and convolve with it, in one, two or three dimensions.

    Args:
        x: (B, C, *size), or (C, *size). The result is channels_last where it is.
        weight, P, SIG, version, least_sigma: as in `construct_kernel`. The convolution has the dense axes of
            ``weight``, then those that P moves along.
        bias: (O) or None.
        stride, padding, groups, padding_mode: as in ``nn.Conv2d``; ``padding="same"`` with any stride.
        dilated_kernel_size: size of the kernel that is built, along the axes that P moves along.
        window: ``padding`` is that of a kernel that spans this many pixels; half of what the kernel is larger is added
            on each side. What the kernel itself spans by default.
        dense_dilation: dilation of the dense axes.
        flat_dim: for elements on one axis, none dense: convolve in two dimensions with a kernel (size, 1) for 0 or
            (1, size) for 1.
        formula: which way to compute it, see `Formula`. ``"depthwise"`` takes a group for each channel, in one or two
            dimensions, and no dense axes that are dilated; ``"sparse"`` in addition no dense axes at all, and the
            versions ``v0`` or ``v1``.

    Raises:
        ValueError: if shapes do not fit, a version or formula is unknown, or the formula does not fit the rest.
    """
    spaced, dense = P.shape[0], tuple(weight.shape[2:-1])
    sizes = per_axis(dilated_kernel_size, spaced, "dilated_kernel_size")
    taps, dilation = (*dense, *sizes), (*per_axis(dense_dilation, len(dense), "dense_dilation"), *(1,) * spaced)
    if flat_dim is not None:
        taps, dilation = flat_kernel_size(taps, flat_dim), (1, 1)
    dims = len(taps)
    if x.dim() not in (dims + 1, dims + 2):
        raise ValueError(f"the input must have {dims + 1} or {dims + 2} axes, got {tuple(x.shape)}")
    steps, amounts = per_axis(stride, dims, "stride"), normalise_padding(padding, dims)
    extents = effective_size(taps, dilation)
    before = extents if window is None else per_axis(window, dims, "window")
    widths = grown_widths(amounts, before, extents, steps, x.shape[-dims:])
    possible = _possible(x, taps, dilation, groups, sparse=SIG is None and not dense)
    if formula == "auto":
        formula = _fastest(x, weight, taps, steps, widths, possible)
    elif formula not in possible:
        raise ValueError(f"formula must be one of auto, {', '.join(possible)} here, got {formula!r}")
    if formula == "sparse":
        return sparse_conv(x, weight, P, bias, taps, version, steps, widths, padding_mode)
    kernel = construct_kernel(weight, P, SIG, sizes, version, least_sigma).reshape(*weight.shape[:2], *taps)
    if formula == "depthwise":
        return depthwise_conv(x, kernel, bias, steps, widths, padding_mode)
    return grown_conv(x, kernel, bias, steps, amounts, dilation, groups, padding_mode, before)


def _possible(
    x: Tensor, taps: tuple[int, ...], dilation: tuple[int, ...], groups: int, sparse: bool
) -> tuple[Formula, ...]:
    if not is_depthwise(x, taps, dilation, groups):
        return ("dense",)
    return ("dense", "depthwise", "sparse") if sparse else ("dense", "depthwise")


def _fastest(
    x: Tensor,
    weight: Tensor,
    taps: tuple[int, ...],
    stride: tuple[int, ...],
    widths: list[tuple[int, int]],
    possible: tuple[Formula, ...],
) -> Formula:
    if "sparse" in possible and sparse_pays(x, weight, taps, stride, widths):
        return "sparse"
    return "depthwise" if "depthwise" in possible and depthwise_pays(x, weight, taps) else "dense"


def flat_kernel_size(sizes: tuple[int, ...], flat_dim: int) -> tuple[int, int]:
    """(size, 1) or (1, size).

    Raises:
        ValueError: unless there is one size and ``flat_dim`` is 0 or 1.
    """
    if len(sizes) != 1 or flat_dim not in (0, 1):
        raise ValueError(f"flat_dim must be 0 or 1 and the kernel have one axis, got flat_dim={flat_dim}, size {sizes}")
    return (sizes[0], 1) if flat_dim == 0 else (1, sizes[0])
