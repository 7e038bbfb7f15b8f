"""Subclasses of torch's convolutions that are known, and the plain convolution that each amounts to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConvswapError
from .layers._geometry import effective_size, normalise_padding, pad_widths
from .layers.frozen import StridedSameConv1d, StridedSameConv2d, StridedSameConv3d
from .layers.padded import PaddedConv

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FROZEN = (StridedSameConv1d, StridedSameConv2d, StridedSameConv3d)


def plain_conv(conv: Conv) -> Conv:
    """A torch convolution that computes what ``conv``, of a known class, computes now.

    ``conv`` itself if its class only names torch's. Otherwise a new module that shares what can be shared:
    TensorFlow's SAME padding becomes ``padding="same"`` with any stride (which torch's own forward refuses, but our
    layers take), and weight standardisation is folded into the weight.
    """
    weight = _WEIGHTS.get(_class_path(conv))
    if weight is None:
        return conv
    return _carrier(conv, nn.Parameter(weight(conv), requires_grad=conv.weight.requires_grad), conv.bias)


def plain_on_meta(conv: Conv) -> Conv:
    """`plain_conv` without its numbers: for questions of geometry, and to build layers that allocate nothing.

    Raises:
        ConvswapError: if it is a layer of ours.
    """

    if not isinstance(conv, CONVS):  # a layer of ours, as those are that where functions of `freeze` see
        raise ConvswapError(f"a {type(conv).__name__} amounts to no plain convolution: ask its layer for its geometry")

    def emptied(parameter: Tensor | None) -> nn.Parameter | None:
        if parameter is None:
            return None
        return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)

    return _carrier(conv, emptied(conv.weight), emptied(conv.bias))


def padding_widths(conv: Conv, size: Sequence[int]) -> list[tuple[int, int]]:
    """Pixels that a plain convolution adds before and after each axis of an input of this spatial size."""
    window = effective_size(conv.kernel_size, conv.dilation)
    return pad_widths(normalise_padding(conv.padding, len(window)), window, conv.stride, size)


def conversion_note(conv: Conv) -> str | None:
    """What the report has to say about the conversion of a convolution of this class, if anything."""
    if "gain" in conv._parameters or "StdConv" in type(conv).__name__:
        return "weight standardisation folded into the weights: they train without it from here on"
    return None


def unknown_class_reason(conv: Conv) -> str | None:
    """Why nothing is known of what this convolution computes, or None if it is known."""
    if conv.weight.is_complex():
        return "its weights are complex numbers"
    if isinstance(conv, PaddedConv):
        return (
            "it extrapolates its image before it convolves, as what padding-free layers are frozen to does, and a new "
            "layer would pad in another way: convert the model as it was before it was frozen"
        )
    known = _class_path(conv) in _WEIGHTS
    base = next(kind for kind in CONVS if isinstance(conv, kind))
    kind = type(conv)
    own = {*conv._parameters, *conv._buffers, *conv._modules} - {"weight", "bias"}
    if own - ({"gain"} if known else set()):
        return f"it has more than a weight and a bias, which a new layer would lose: {', '.join(sorted(own))}"
    if not known and (kind.forward is not base.forward or kind._conv_forward is not base._conv_forward):
        return (
            f"{kind.__module__}.{kind.__qualname__} is a subclass of {base.__name__} with a forward of its own, which "
            f"is not known: replace it by a plain nn.{base.__name__} first if it computes the same"
        )
    return _inconsistency(conv) or (_unusual_padding(conv) if known else None)


def _inconsistency(conv: Any) -> str | None:
    """How attributes that were changed after construction disagree with what torch runs, or None."""
    for name in ("kernel_size", "stride", "dilation", "padding"):
        value = getattr(conv, name)
        if name == "padding" and value in ("same", "valid"):
            continue
        if not isinstance(value, tuple) or len(value) != conv.weight.dim() - 2:
            kind = "a word that torch knows or a tuple" if name == "padding" else "a tuple"
            return f"its {name} is {value!r}, not {kind} with one number for each axis: set it so"
        if name == "padding" and min(value) < 0:
            return (
                f"its padding of {value} is negative and crops the image: crop it before a convolution that pads by 0"
            )
    shape = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
    if tuple(conv.weight.shape) != shape:
        return f"its weight has shape {tuple(conv.weight.shape)}, and its attributes say {shape}: set them right"
    if type(conv) in _FROZEN:  # they pad by themselves
        return None
    if conv.padding_mode != "zeros" and list(conv._reversed_padding_repeated_twice) != _padding_that_runs(conv):
        return f"its padding was changed after construction, which {conv.padding_mode} padding does not follow"
    return None


def _padding_that_runs(conv: Any) -> list[int]:
    """What torch computes at construction for paddings other than zeros."""
    if conv.padding == "valid":
        return [0] * (2 * len(conv.kernel_size))
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [part for total in reversed(totals) for part in (total // 2, total - total // 2)]
    return [p for p in reversed(conv.padding) for _ in range(2)]


def _class_path(conv: nn.Module) -> str:
    return f"{type(conv).__module__}.{type(conv).__qualname__}"


def _pads_to_same(conv: Conv) -> bool:
    """Whether a known convolution pads its input to TensorFlow's SAME before it convolves."""
    return bool(getattr(conv, "same_pad", "Conv2dSame" in type(conv).__name__))


def _unusual_padding(conv: Any) -> str | None:
    if type(conv) in _FROZEN:
        return _unusual_window(conv)
    if _pads_to_same(conv) and (isinstance(conv.padding, str) or any(conv.padding)):
        return f"it pads its input to SAME and then by {conv.padding} again"
    return None


def _unusual_window(conv: Any) -> str | None:
    """Why a convolution that a layer of ours was frozen to does not pad as ``padding="same"`` for its own kernel would.

    It pads to SAME for ``window``, and the kernel's growth besides. That is the same, but where a stride skips pixels
    between windows: those take no padding, which is not made up for by the growth.
    """
    if conv.padding != "same":
        return f"its padding was changed after construction, from 'same' to {conv.padding!r}"
    extents = effective_size(conv.kernel_size, conv.dilation)
    for extent, window, step in zip(extents, conv.window, conv.stride, strict=True):
        if extent != window and ((extent - window) % 2 or extent < window or window < step):
            return (
                f"it pads for a window of {window} pixels, from which its kernel of {extent} has grown, and with a "
                f"stride of {step} no new layer can pad so: pad its input before a plain convolution without padding"
            )
    return None


def _carrier(conv: Conv, weight: nn.Parameter | None, bias: Tensor | None) -> Conv:
    """A module of torch's class with the geometry and mode of ``conv`` and these parameters."""
    base: Any = next(kind for kind in CONVS if isinstance(conv, kind))
    carrier = base(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        0,
        conv.dilation,
        conv.groups,
        bias=False,
        device="meta",
    )
    carrier.padding_mode = conv.padding_mode  # which may be one that torch does not have
    carrier.padding = "same" if _class_path(conv) in _WEIGHTS and _pads_to_same(conv) else conv.padding
    if isinstance(carrier.padding, str | tuple):  # else it is refused
        # Of paddings other than zeros, torch runs what it has noted at construction.
        carrier._reversed_padding_repeated_twice = _padding_that_runs(carrier)
    carrier.weight = weight
    carrier.bias = bias
    plain: Conv = carrier.train(conv.training)
    return plain


@torch.no_grad()
def _standardised(conv: Any, gain: Tensor | None = None) -> Tensor:
    """Weight standardisation (Qiao et al. 2019, arXiv 1903.10520), scaled as in Brock et al. 2021, arXiv 2101.08692."""
    flat = conv.weight.flatten(1)
    variance, mean = torch.var_mean(flat, dim=1, correction=0, keepdim=True)
    flat = (flat - mean) * torch.rsqrt(variance + conv.eps)
    if gain is not None:
        flat = flat * gain.reshape(-1, 1)
    return torch.empty_like(conv.weight).copy_(flat.reshape(conv.weight.shape))


def _scaled_standardised(conv: Any) -> Tensor:
    return _standardised(conv, conv.gain * conv.scale)


def _as_it_is(conv: Any) -> Tensor:
    weight: Tensor = conv.weight
    return weight.detach()


# By class, how the weight that it convolves with comes from its parameters.
_WEIGHTS: dict[str, Callable[[Any], Tensor]] = {
    "timm.layers.conv2d_same.Conv2dSame": _as_it_is,
    "timm.layers.conv2d_same.Conv2dSameExport": _as_it_is,
    "timm.layers.std_conv.StdConv2d": _standardised,
    "timm.layers.std_conv.StdConv2dSame": _standardised,
    "timm.layers.std_conv.ScaledStdConv2d": _scaled_standardised,
    "timm.layers.std_conv.ScaledStdConv2dSame": _scaled_standardised,
    **{f"{frozen.__module__}.{frozen.__qualname__}": _as_it_is for frozen in _FROZEN},
}
