"""The functional form of partial convolution: what is not in the image, or is masked out, does not count."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from ._geometry import IntOrInts, Padding, conv_nd, is_channels_last, memory_format, pad, stored_as
from .border_geometry import BorderConv
from .border_geometry2d import resolve_border_conv2d

torch.fx.wrap("partial_conv2d")


@overload
def partial_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    mask: Tensor | None = None,
    return_mask: Literal[False] = False,
) -> Tensor: ...


@overload
def partial_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    mask: Tensor | None = None,
    return_mask: bool = False,
) -> Any: ...


def partial_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    mask: Tensor | None = None,
    return_mask: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve what there is to see, scaled as if there were as much everywhere.

    ``y = (weight * input) taps / valid + bias``, where ``valid`` is how many of the window's ``taps`` numbers lie in
    the image ("Partial Convolution based Padding", Liu et al. 2018, arXiv 1811.11718, eq. 3 and 4) and, with a mask,
    are not masked out ("Image Inpainting for Irregular Holes Using Partial Convolutions", Liu et al. 2018, arXiv
    1804.07723, eq. 1). Outputs that see none are 0, without bias. What is masked out has no influence at all, be it NaN
    or infinite, and no gradient. Numbers are counted in single precision, whatever that of the input.

    Args:
        input: (B, C, H, W), or (C, H, W). The result is channels_last where it is.
        weight: (O, C / groups, kh, kw), cross-correlated as in ``F.conv2d``.
        bias: (O) or None.
        stride, dilation, groups: as in ``F.conv2d``.
        padding: pixels that do not count around the image: one number, two, ``"valid"``, or ``"same"`` with any stride,
            then as TensorFlow does.
        mask: of any dtype, 0 (or False) where the input is not to be seen: (B or 1, 1 or C, H, W), or (H, W); (1 or C,
            H, W) for an input without batch. Of a mask with C channels those of a group are counted together.
        return_mask: return where outputs have seen anything, too.

    Returns:
        (B, O, Ho, Wo), or (O, Ho, Wo). With ``return_mask`` a pair of that and the mask of the result, of ones and
        zeros in the dtype of ``mask`` (of the input without one): (B or 1, 1 or O, Ho, Wo), with O where ``mask`` has
        C > 1 channels; without the first axis if the input has no batch. A convolution that follows can take it.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, a number is out of range, or the kernel is larger
            than the padded input.
    """
    conv = resolve_border_conv2d(input, weight, bias, stride, padding, dilation, groups)
    seen = None if mask is None else _batched_mask(mask, input, conv.image)
    if seen is None and not any(before or after for before, after in conv.widths):
        part, image, late_bias, early_bias = None, conv.image, None, conv.bias
    else:
        part = _part_of_image(conv) if seen is None else _part_of_mask(conv, seen)
        image = conv.image if seen is None else torch.where(seen, conv.image, 0)
        late_bias, early_bias = conv.bias, None
    y = conv_nd(image, conv.weight, early_bias, conv.stride, conv.widths, conv.dilation, groups)
    if part is not None:
        y = _scaled(y, part, late_bias, sees_all=seen is None and _all_see_something(conv))
    if is_channels_last(conv.image):
        y = stored_as(y, memory_format(conv.image))
    unbatched = input.dim() == 3
    y = y.squeeze(0) if unbatched else y
    if not return_mask:
        return y
    if part is None:
        part = torch.ones(1, 1, *y.shape[-2:], device=y.device)
    result = (part != 0).to(input.dtype if mask is None else mask.dtype)
    if seen is not None and seen.shape[1] > 1:
        result = result.repeat_interleave(weight.shape[0] // result.shape[1], 1)
    return y, result.squeeze(0) if unbatched else result


def _batched_mask(mask: Tensor, input: Tensor, image: Tensor) -> Tensor:
    """Where the image is to be seen: (B or 1, 1 or C, H, W)."""
    given = mask
    if mask.dim() == 2:
        mask = mask[None, None]
    elif mask.dim() == 3 and input.dim() == 3:
        mask = mask.unsqueeze(0)
    batch, channels, height, width = image.shape
    if (
        mask.dim() != 4
        or mask.shape[2:] != (height, width)
        or mask.shape[1] not in (1, channels)
        or mask.shape[0] not in (1, batch)
    ):
        leading = f"1 or {channels}" if input.dim() == 3 else f"1 or {batch}, 1 or {channels}"
        raise ValueError(
            f"the mask of an input {tuple(input.shape)} must be ({leading}, {height}, {width}) or ({height}, {width}), "
            f"got {tuple(given.shape)}"
        )
    if mask.device != image.device:
        raise ValueError(f"the mask must be on the device of the input, {image.device}, got {mask.device}")
    return mask != 0


def _part_of_image(conv: BorderConv) -> Tensor:
    """Taps for each that lies in the image, 0 where none does: (1, 1, Ho, Wo), in single precision at least.

    The product of one vector for each axis: it depends on nothing but sizes, and needs no convolution.
    """
    vectors = []
    for size, (before, _), taps, step, spacing, outputs in zip(
        conv.size, conv.widths, conv.weight.shape[2:], conv.stride, conv.dilation, conv.output_size, strict=True
    ):
        first = torch.arange(outputs, device=conv.image.device) * step - before
        pixels = first[:, None] + torch.arange(taps, device=conv.image.device) * spacing
        vectors.append(_ratio(((pixels >= 0) & (pixels < size)).sum(1), taps, conv.image))
    rows, columns = vectors
    return (rows[:, None] * columns)[None, None]


def _part_of_mask(conv: BorderConv, seen: Tensor) -> Tensor:
    """Numbers of a window for each that is seen, 0 where none is: (B or 1, 1 or groups, Ho, Wo)."""
    sets = conv.groups if seen.shape[1] > 1 else 1
    counts = seen.unflatten(1, (sets, -1)).sum(2, dtype=_precise(conv.image))
    counts = pad(counts, conv.widths)
    # Sums, along one axis and then the other, as autocast would round the result of a convolution.
    for axis, (taps, step, spacing, outputs) in enumerate(
        zip(conv.weight.shape[2:], conv.stride, conv.dilation, conv.output_size, strict=True), 2
    ):
        last = (outputs - 1) * step + 1
        index: list[slice] = [slice(None)] * axis
        total = counts[(*index, slice(0, last, step))]
        for tap in range(1, taps):
            total = total + counts[(*index, slice(tap * spacing, tap * spacing + last, step))]
        counts = total
    return _ratio(counts, conv.weight[0, 0].numel() * (seen.shape[1] // sets), conv.image)


def _ratio(counts: Tensor, most: int, like: Tensor) -> Tensor:
    ratio = most / counts.clamp(min=1).to(_precise(like))
    return torch.where(counts > 0, ratio, 0)


def _precise(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


def _all_see_something(conv: BorderConv) -> bool:
    """Whether no window can have all of its taps outside the image."""
    for size, width, extent, spacing in zip(conv.size, conv.widths, conv.extents, conv.dilation, strict=True):
        # Taps that are no further apart than the image is wide cannot leave it between them. To compare a size that is
        # a symbol would bind what is exported to the answer.
        fits = spacing == 1 or (isinstance(size, int) and spacing <= size)
        if not fits or max(width) >= extent:
            return False
    return True


def _scaled(y: Tensor, part: Tensor, bias: Tensor | None, sees_all: bool) -> Tensor:
    """``y * part + bias``, and 0 where ``part`` is, rounded once."""
    precise = y.to(part.dtype)
    if part.shape[1] > 1:
        part = part.repeat_interleave(y.shape[1] // part.shape[1], 1)
    if bias is None:
        return (precise * part).to(y.dtype)
    scaled = torch.addcmul(bias.to(part.dtype)[:, None, None], precise, part)
    return (scaled if sees_all else torch.where(part != 0, scaled, 0)).to(y.dtype)
