"""The small nets that weigh the kernels of attended convolutions for each sample."""

from __future__ import annotations

import math
import operator
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .hypernet.init import draw_linear, zero_linear
from .reverted import all_zero

torch.fx.wrap("pooled")
torch.fx.wrap("with_batch")


class Tempered(nn.Module):
    """Base of the attentions whose logits are divided by ``temperature``, a buffer.

    High values make the attentions nearly equal, so that at first all kernels train: it starts high and is lowered.

    Raises:
        TypeError: if the temperature is no number.
        ValueError: if it is not positive and finite, in the precision of the attention too.
    """

    temperature: Tensor

    def __init__(self, temperature: float, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        value = checked_temperature(temperature, "temperature")
        check_precision(value, "temperature", torch.get_default_dtype() if dtype is None else dtype)
        self.register_buffer("temperature", torch.full((), value, device=device, dtype=dtype))


def checked_temperature(value: object, name: str) -> float:
    """The temperature as a float.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is not positive and finite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return number


def check_precision(temperature: float, name: str, dtype: torch.dtype) -> None:
    """Raise a ValueError if this dtype has no such number: what rounds to 0 would give NaN, what overflows no gradient.

    Numbers below the smallest normal one count as 0, as some devices take them for that.
    """
    if not torch.finfo(dtype).tiny <= temperature <= torch.finfo(dtype).max:
        raise ValueError(f"{name}={temperature} is no temperature that {dtype} can hold")


def checked_count(value: object, name: str, least: int) -> int:
    """The whole number itself.

    Raises:
        TypeError: if it is none.
        ValueError: if it is less than ``least``.
    """
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    number = operator.index(value)  # type: ignore[arg-type]
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


class KernelAttention(Tempered):
    """``softmax(fc2(relu(fc1(mean of x over space))) / temperature)`` (Chen et al. 2020, arXiv 1912.03458, eq. 3).

    Shape: x (B, C, *size) to (B, kernels).

    Args:
        in_channels: C.
        kernels: number of kernels to weigh.
        hidden: width of the hidden layer.
        dims: number of spatial axes of x.
        temperature: divisor of the logits, kept as a buffer. High values make the weights nearly uniform.
        body: a net of the user's own in the place of ``fc1`` and the ReLU, from (B, C, *size) to (B, hidden), or to
            (B, hidden, *any), of which the mean over space is taken.
        generator: a CPU generator for the random start; the global one by default.

    Half of the hidden units start as the negatives of the others, so that for every input some unit is alive: of a few
    independent ones, all fed with the non-negative means that follow a ReLU, often none is.
    """

    def __init__(
        self,
        in_channels: int,
        kernels: int,
        hidden: int,
        dims: int,
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        body: nn.Module | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(temperature, device, dtype)
        self.in_channels = in_channels
        self.dims = dims
        self.axes = tuple(range(-dims, 0))
        self.body = body
        if body is None:
            self.fc1 = zero_linear(in_channels, hidden, True, device, dtype)
        self.fc2 = zero_linear(hidden, kernels, True, device, dtype)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights: uniform within one over the root of the fan-in, as ``nn.Linear`` does.

        A body of the user's own is left alone.
        """
        if self.body is None:
            draw_mirrored(self.fc1, generator)
        draw_linear(self.fc2, generator)

    def make_neutral(self) -> None:
        """Zero the last layer: every kernel then has weight 1 / kernels, whatever the input and the temperature."""
        zero(self.fc2)

    def is_neutral(self) -> bool:
        """Whether every input has the attention of `neutral`."""
        return all_zero(*self.fc2.parameters())

    def neutral(self) -> dict[str, Tensor]:
        """The attention at zero logits, for any sample."""
        return {"kernel": constant(self.fc2, 1 / self.fc2.out_features)}

    def forward(self, x: Tensor) -> Tensor:
        if self.body is None:
            hidden = F.relu(self.fc1(x.mean(self.axes)))
        else:
            hidden = pooled(self.body(with_batch(x, self.dims)), self.fc2.in_features, x, self.dims)
        return torch.softmax(self.fc2(hidden) / self.temperature, dim=-1)

    def extra_repr(self) -> str:
        return f"kernels={self.fc2.out_features}"


class RoutingAttention(nn.Module):
    """``sigmoid(fc(mean of x over space))`` (Yang et al. 2019, arXiv 1904.04971, eq. 2).

    Shape: x (B, C, *size) to (B, kernels).

    Args:
        in_channels: C.
        kernels: number of kernels to weigh.
        dims: number of spatial axes of x.
        generator: a CPU generator for the random start; the global one by default.
    """

    def __init__(
        self,
        in_channels: int,
        kernels: int,
        dims: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.axes = tuple(range(-dims, 0))
        self.fc = zero_linear(in_channels, kernels, True, device, dtype)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights: uniform within one over the root of the fan-in, as ``nn.Linear`` does."""
        draw_linear(self.fc, generator)

    def make_neutral(self) -> None:
        """Zero the layer: every kernel then has weight 1/2, whatever the input."""
        zero(self.fc)

    def is_neutral(self) -> bool:
        """Whether every input has the attention of `neutral`."""
        return all_zero(*self.fc.parameters())

    def neutral(self) -> dict[str, Tensor]:
        """The attention at zero logits, for any sample."""
        return {"kernel": constant(self.fc, 0.5)}

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc(x.mean(self.axes)))

    def extra_repr(self) -> str:
        return f"kernels={self.fc.out_features}"


class OmniAttention(Tempered):
    """Four attentions of one descriptor ``h = relu(fc(mean of x over space))`` (Li et al. 2022, arXiv 2209.07947).

    Of the input channels, the filters and the taps ``2 sigmoid(head(h) / temperature)``, which is 1 at zero logits, and
    of the kernels ``softmax(head(h) / temperature)`` (sec. 3.2 of the paper, which has no factor 2).

    Shape: x (B, in_channels, *size) to a dict with ``"channel"`` (B, in_channels), ``"filter"`` (B, filters),
    ``"position"`` (B, taps) and ``"kernel"`` (B, kernels), or those of them that there are heads for.

    Args:
        in_channels: channels of x.
        filters, taps, kernels: numbers to attend to; there is no head, but None, for no filters, one tap or one kernel.
        hidden: width of the descriptor.
        dims: number of spatial axes of x.
        temperature: divisor of all logits, kept as a buffer.
        generator: a CPU generator for the random start; the global one by default.

    Half of the hidden units start as the negatives of the others, as in `KernelAttention`.
    """

    def __init__(
        self,
        in_channels: int,
        filters: int,
        taps: int,
        kernels: int,
        hidden: int,
        dims: int,
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(temperature, device, dtype)
        self.axes = tuple(range(-dims, 0))
        self.fc = zero_linear(in_channels, hidden, True, device, dtype)
        self.channel_fc = zero_linear(hidden, in_channels, True, device, dtype)
        self.filter_fc = zero_linear(hidden, filters, True, device, dtype) if filters > 0 else None
        self.position_fc = zero_linear(hidden, taps, True, device, dtype) if taps > 1 else None
        self.kernel_fc = zero_linear(hidden, kernels, True, device, dtype) if kernels > 1 else None
        self.reset_parameters(generator)

    def heads(self) -> dict[str, nn.Linear]:
        """The last maps by what they attend to."""
        named = {name: getattr(self, f"{name}_fc") for name in ("channel", "filter", "position", "kernel")}
        return {name: head for name, head in named.items() if head is not None}

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights: uniform within one over the root of the fan-in, as ``nn.Linear`` does."""
        draw_mirrored(self.fc, generator)
        for head in self.heads().values():
            draw_linear(head, generator)

    def make_neutral(self) -> None:
        """Zero the last maps: kernels then have equal weights, and all else 1, whatever the input and temperature."""
        for head in self.heads().values():
            zero(head)

    def is_neutral(self) -> bool:
        """Whether every input has the attentions of `neutral`."""
        return all_zero(*(parameter for head in self.heads().values() for parameter in head.parameters()))

    def neutral(self) -> dict[str, Tensor]:
        """The attentions at zero logits, for any sample."""
        return {
            name: constant(head, 1 / head.out_features if name == "kernel" else 1.0)
            for name, head in self.heads().items()
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        descriptor = F.relu(self.fc(x.mean(self.axes)))
        logits = {name: head(descriptor) / self.temperature for name, head in self.heads().items()}
        return {
            name: torch.softmax(value, -1) if name == "kernel" else 2 * torch.sigmoid(value)
            for name, value in logits.items()
        }

    def extra_repr(self) -> str:
        return f"of {', '.join(self.heads())}"


def draw_mirrored(linear: nn.Linear, generator: torch.Generator | None) -> None:
    """Draw the linear map before a ReLU, the second half of its outputs the negatives of the first."""
    if linear.weight.is_meta:
        return
    draw_linear(linear, generator)
    half = linear.out_features // 2
    with torch.no_grad():
        for parameter in (linear.weight, linear.bias):
            parameter[half : 2 * half] = -parameter[:half]


def zero(linear: nn.Linear) -> None:
    """Set weight and bias to zero."""
    for parameter in linear.parameters():
        if not parameter.is_meta:
            nn.init.zeros_(parameter)


def constant(linear: nn.Linear, value: float) -> Tensor:
    """A tensor of this value in the place of what ``linear`` makes of one sample; whole, if that is sharded."""
    return torch.full((linear.out_features,), value, dtype=linear.weight.dtype, device=linear.weight.device)


def with_batch(x: Tensor, dims: int) -> Tensor:
    """(B, C, *size) itself; (C, *size) as (1, C, *size)."""
    return x[None] if x.dim() == dims + 1 else x


def pooled(features: Tensor, hidden: int, x: Tensor, dims: int) -> Tensor:
    """The mean over space of what a net of the user's own made of ``x``: (B, hidden), or (hidden) if x has no B.

    Raises:
        ValueError: if the features have another number of channels.
    """
    if not isinstance(features, Tensor) or features.dim() < 2 or features.shape[1] != hidden:
        made = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise ValueError(f"the attention's body must return (B, hidden={hidden}) or (B, {hidden}, *size), got {made}")
    rows = features if features.dim() == 2 else features.flatten(2).mean(2)
    return rows[0] if x.dim() == dims + 1 else rows
