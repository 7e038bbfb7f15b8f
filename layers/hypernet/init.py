"""Random starts of hypernets: hyperfan initialisation (Chang et al. 2020, "Principled Weight Initialization for
Hypernetworks", ICLR)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._base import normal_like


def hyperfan_in_(
    weight: Tensor,
    fan_in: int,
    mean_square: float,
    relu: bool = True,
    bias_generated: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the last linear map of a hypernet so that the convolution it guides keeps the forward second moment.

    Normal with variance ``c / (s * fan_in * n * mean_square)``; c is 2 with ``relu``, else 1, and s is 2 with
    ``bias_generated``, else 1. The map that generates the bias has the same with ``fan_in=1``.

    Args:
        weight: (numbers generated, n), filled in place.
        fan_in: inputs that each output of the convolution sums over, (Ci / groups) * taps.
        mean_square: E[e^2] of the features e that the map reads. Not their variance: after an activation their mean is
            not zero.
        relu: whether a ReLU follows the convolution; the second moment after it is then that of the input.
        bias_generated: whether the convolution's bias is generated as well, and half of the second moment its part.
        generator: a CPU generator; the global one by default.

    Raises:
        ValueError: if ``fan_in`` or ``mean_square`` is not positive.
    """
    return _draw(weight, fan_in, mean_square, (2 if relu else 1) / (2 if bias_generated else 1), generator)


def hyperfan_out_(
    weight: Tensor,
    fan_out: int,
    mean_square: float,
    relu: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the last linear map of a hypernet so that the convolution it guides keeps the gradient's second moment.

    Normal with variance ``c / (fan_out * n * mean_square)``, c and the other arguments as in `hyperfan_in_`.

    Args:
        weight: (numbers generated, n), filled in place.
        fan_out: outputs that each input of the convolution reaches, (Co / groups) * taps.
        mean_square, relu, generator: as in `hyperfan_in_`.

    Raises:
        ValueError: if ``fan_out`` or ``mean_square`` is not positive.
    """
    return _draw(weight, fan_out, mean_square, 2 if relu else 1, generator)


def check_init(init: str) -> None:
    """Raise a ValueError unless this is the name of one of the two."""
    if init not in ("fan_in", "fan_out"):
        raise ValueError(f'init must be "fan_in" or "fan_out", got {init!r}')


def _draw(weight: Tensor, fan: int, mean_square: float, gain: float, generator: torch.Generator | None) -> Tensor:
    if fan < 1:
        raise ValueError(f"the fan must be at least 1, got {fan}")
    if not 0 < mean_square < math.inf:
        raise ValueError(
            f"the mean square of the features must be positive, got {mean_square}: the hypernet's body gives "
            "nothing that kernels could be made from"
        )
    std = math.sqrt(gain / (fan * weight.shape[1] * mean_square))
    with torch.no_grad():
        return weight.copy_(normal_like(tuple(weight.shape), weight, generator).mul_(std))


def zero_linear(
    inputs: int, outputs: int, bias: bool, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Linear:
    """An ``nn.Linear`` of zeros. No generator is used."""
    linear = nn.Linear(inputs, outputs, bias, device="meta", dtype=dtype)
    place = torch.get_default_device() if device is None else torch.device(device)
    if place.type == "meta":
        return linear
    linear = linear.to_empty(device=place)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear


def draw_linear(linear: nn.Linear, generator: torch.Generator | None) -> None:
    """Uniform within one over the root of the fan-in, as ``nn.Linear`` does, from ``generator``."""
    bound = linear.in_features**-0.5
    for parameter in linear.parameters():
        if not parameter.is_meta:
            start = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            with torch.no_grad():
                parameter.copy_(start.uniform_(-bound, bound, generator=generator))


def leaky_relu_samples(weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    """Samples of f(weight g + bias), f being the leaky ReLU, for unit-normal g, in double precision on the CPU.

    They are always the same, 2**14 rows.
    """
    # The triangular factor has the same product with itself, and as many rows at most as there are features.
    factor = torch.linalg.qr(weight.double().cpu().T, mode="r").R
    normal = torch.randn(2**14, factor.shape[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return F.leaky_relu(normal @ factor + bias.double().cpu(), slope)


def leaky_relu_mean_square(mean: Tensor, variance: Tensor, slope: float) -> Tensor:
    """E[f(z)^2] for normal z of this mean and variance, f being the leaky ReLU."""
    std = variance.clamp_min(1e-30).sqrt()
    ratio = mean / std
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    whole = mean.square() + variance
    positive = whole * torch.special.ndtr(ratio) + mean * std * density
    second_moment: Tensor = positive + slope**2 * (whole - positive)
    return second_moment
