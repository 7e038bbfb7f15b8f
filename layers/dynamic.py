"""Dynamic convolution: attention over kernels (Chen et al. 2020, arXiv 1912.03458)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ._base import ConvLayer, normal_like, parameter_like, root_mean_square
from ._geometry import IntOrInts, Padding, memory_format
from .attention import KernelAttention
from .dynamic_conv import dynamic_conv

torch.fx.wrap("dynamic_conv")


class _DynamicConvNd(ConvLayer):
    """Convolution whose kernel is, for each sample, an attention-weighted sum of ``kernels`` learned ones.

    ``y_b = (sum_k a_bk W_k) * x_b + sum_k a_bk b_k`` with ``a = softmax(fc2(relu(fc1(mean(x)))) / temperature)``
    (eq. 2 and 3 of the paper).

    Shape: (B, in_channels, *size) to (B, out_channels, *out), or both without B, as in ``nn.Conv2d``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            ``nn.Conv2d``; ``padding="same"`` is allowed with any stride.
        kernels: K, number of kernels, at least 2.
        reduction: the attention has ``max(4, in_channels // reduction)`` hidden units.
        temperature: divisor of the attention's logits. The paper starts training at 30 and ends at 1.

    Parameters:
        weight (K * out_channels, in_channels / groups, *kernel_size): kernel k is ``weight[k * out : (k + 1) * out]``.
            One stack, not a tensor of one more axis, so that ``to(memory_format=torch.channels_last)`` applies to it.
        bias (K * out_channels) or None: stacked likewise.
        attention: a `KernelAttention`.

    Raises:
        ValueError: for arguments that fit no convolution, or fewer than 2 kernels.
    """

    new_parameter_names: ClassVar[tuple[str, ...]] = tuple(
        f"attention.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")
    )

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
        kernels: int = 4,
        reduction: int = 4,
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        _check_options(kernels, reduction, temperature)
        self.kernels = kernels
        shape = (kernels * out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(shape[0], device=device, dtype=dtype)) if bias else None
        hidden = max(4, in_channels // reduction)
        self.attention = KernelAttention(in_channels, kernels, hidden, self.dims, temperature, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each kernel and bias as ``nn.Conv2d`` does, and the attention anew."""
        if self.weight.is_meta:  # nothing to draw, and slow all the same
            return
        bound = self.weight[0].numel() ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        self.attention.reset_parameters()

    @classmethod
    def from_conv(
        cls,
        conv: nn.Module,
        *,
        generator: torch.Generator | None = None,
        kernels: int = 4,
        reduction: int = 4,
        temperature: float = 1.0,
        noise: float = 0.1,
    ) -> Self:
        """Make a layer that computes what ``conv`` computes.

        The attention starts uniform and the kernels as ``W + d_k``, where the random ``d_k`` sum to zero: the mean is
        the conv's kernel, and because the kernels differ the attention has a gradient from the first step.

        Args:
            conv: the convolution; weights are copied.
            generator: a CPU generator for the ``d_k`` and the attention; the global one by default.
            kernels, reduction, temperature: as in the constructor.
            noise: standard deviation of ``d_k`` relative to the root mean square of ``W``, at most 1.
        """
        source = cls._check_conv(conv)
        if not 0 < noise <= 1:  # beyond, the sum of the kernels would lose the digits of the conv's own
            raise ValueError(f"noise must be above 0 and at most 1, got {noise}")
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
            kernels=kernels,
            reduction=reduction,
            temperature=temperature,
            device="meta",
            dtype=source.weight.dtype,
        )
        scale = root_mean_square(source.weight)
        fan_in_scale = source.weight[0].numel() ** -0.5
        scale = torch.where(scale > 0, scale, torch.full_like(scale, fan_in_scale))
        layer.weight = parameter_like(_spread(source.weight, kernels, noise * scale, generator), source.weight)
        if source.bias is not None:
            # Copies of a zero bias stay equal: where the input is zero, noise would be all that is left.
            bias_noise = noise * root_mean_square(source.bias)
            layer.bias = parameter_like(_spread(source.bias, kernels, bias_noise, generator), source.bias)
        layer.attention.to_empty(device=source.weight.device)
        layer.attention.reset_parameters(generator)
        layer.attention.make_uniform()
        layer.attention.temperature.fill_(temperature)
        return layer.train(source.training)

    def forward(self, input: Tensor) -> Tensor:
        return dynamic_conv(
            input,
            self.weight,
            self.bias,
            self.attention(input),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.padding_mode,
        )

    def generated_numbers(self, input_size: tuple[int, ...]) -> int:
        return self.weight.numel() // self.kernels

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernels={self.kernels}"


class DynamicConv1d(_DynamicConvNd):  # noqa: D101
    __doc__ = _DynamicConvNd.__doc__

    dims = 1


class DynamicConv2d(_DynamicConvNd):  # noqa: D101
    __doc__ = _DynamicConvNd.__doc__

    dims = 2


class DynamicConv3d(_DynamicConvNd):  # noqa: D101
    __doc__ = _DynamicConvNd.__doc__

    dims = 3


def _check_options(kernels: int, reduction: int, temperature: float) -> None:
    if kernels < 2:
        raise ValueError(f"kernels must be at least 2, got {kernels}")
    if reduction < 1:
        raise ValueError(f"reduction must be at least 1, got {reduction}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive, got {temperature}")


def _spread(value: Tensor, kernels: int, std: Tensor, generator: torch.Generator | None) -> Tensor:
    """``kernels`` copies of ``value`` stacked on its first axis, each with noise of this std, the noises' sum zero."""
    source = value.detach()
    noise: Any = normal_like((kernels, *source.shape), source, generator)
    noise -= noise.mean(0)
    noise *= std * (kernels / (kernels - 1)) ** 0.5
    noise += source
    stacked: Tensor = noise.flatten(0, 1).to(source.dtype)
    return stacked.contiguous(memory_format=memory_format(source))
