"""What the layers have in common that mix kernels by attention: the stack of kernels, and what it freezes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._base import Conv, UsesKernels, making_parameters, normal_like, parameter_like, root_mean_square
from ._geometry import IntOrInts, Padding, effective_size, memory_format
from .attention import checked_count
from .dcls_bounds import gathered
from .dynamic_conv import mix_kernels
from .frozen import frozen_conv
from .reverted import Lost


class AttendedConv(UsesKernels):
    """Base of the layers whose kernel is, for each sample, an attention-weighted sum of ``kernels`` learned ones.

    Parameters:
        weight (K * out_channels, in_channels / groups, *kernel_size): kernel k is ``weight[k * out : (k + 1) * out]``.
            One stack, not a tensor of one more axis, so that ``to(memory_format=torch.channels_last)`` applies to it.
        bias (K * out_channels) or None: stacked likewise.
        attention: the small net that makes the attentions of an input.
    """

    new_parameter_names: ClassVar[tuple[str, ...]] = ("attention",)

    least_kernels: ClassVar[int] = 1
    """Fewer kernels could not learn to be attended to."""

    kernels: int
    attention: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts,
        padding: Padding,
        dilation: IntOrInts,
        groups: int,
        bias: bool,
        padding_mode: str,
        *,
        kernels: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        kernels = checked_count(kernels, "kernels", self.least_kernels)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        self.kernels = kernels
        shape = (kernels * out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(shape[0], device=device, dtype=dtype)) if bias else None
        self._draw_kernels()
        self._want_kernels()

    def _draw_kernels(self) -> None:
        """Draw each kernel and bias as ``nn.Conv2d`` does."""
        if self.weight.is_meta:  # nothing to draw, and slow all the same
            return
        bound = self.weight[0].numel() ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def reset_parameters(self) -> None:
        """Draw each kernel and bias as ``nn.Conv2d`` does, and the attention anew."""
        self._draw_kernels()
        self.attention.reset_parameters()

    @classmethod
    def _start(
        cls, conv: nn.Module, part: float, noise: float, generator: torch.Generator | None, **options: Any
    ) -> Any:
        """A layer with the geometry of ``conv`` and kernels that scatter around its own; the attention is on meta.

        Kernel k starts as ``part * (W + d_k)``, where the random ``d_k`` sum to zero, the biases likewise.

        Args:
            conv: any module; refused if it is no convolution that the layer can be made from.
            part: one over what a neutral attention gives all kernels together.
            noise: standard deviation of ``d_k``, relative to the root mean square of ``W``.
            generator: a CPU generator; the global one by default.
            options: further arguments of the constructor.

        Raises:
            ValueError: where `unsupported_reason` gives a reason, or for a noise that cannot be.
        """
        source = cls._check_conv(conv)
        if not 0 < noise <= 1:  # beyond, the sum of the kernels would lose the digits of the conv's own
            raise ValueError(f"noise must be above 0 and at most 1, got {noise}")
        geometry = source.kernel_size, source.stride, source.padding, source.dilation, source.groups
        layer: Any = cls(
            *(source.in_channels, source.out_channels, *geometry, source.bias is not None, source.padding_mode),
            device="meta",
            dtype=source.weight.dtype,
            **options,
        )
        kernels = layer.kernels
        scale = root_mean_square(source.weight)
        fan_in_scale = source.weight[0].numel() ** -0.5
        scale = torch.where(scale > 0, scale, torch.full_like(scale, fan_in_scale))
        layer.weight = parameter_like(_spread(source.weight, kernels, part, noise * scale, generator), source.weight)
        if source.bias is not None:
            # Copies of a zero bias stay equal: where the input is zero, noise would be all that is left.
            bias_noise = noise * root_mean_square(source.bias)
            layer.bias = parameter_like(_spread(source.bias, kernels, part, bias_noise, generator), source.bias)
        layer._want_kernels()
        return layer.train(source.training)

    def attentions(self, input: Tensor) -> dict[str, Tensor]:
        """What the layer multiplies with for this input, as applied, one row for each sample.

        Args:
            input: (B, in_channels, *size), or without B, which gives one row.

        Returns:
            ``"kernel"`` (B, kernels), and whatever else the layer attends to.
        """
        made = self.attention(input if input.dim() == self.dims + 2 else input[None])
        return made if isinstance(made, dict) else {"kernel": made}

    def neutral_attentions(self) -> dict[str, Tensor]:
        """The attentions at zero logits, without an axis for samples: those that ``from_conv`` starts with."""
        made: dict[str, Tensor] = self.attention.neutral()
        return made

    def freeze(self, attentions: Mapping[str, Tensor] | None = None) -> Conv:
        """The plain convolution that this layer is if every sample has the same attentions.

        An ``nn.ConvNd``; with ``padding="same"`` and a stride, which that does not have, a subclass of our own. Nothing
        is shared with the layer. Of a layer that is sharded, as by FSDP, each process gets the whole convolution; all
        of them must call this.

        Args:
            attentions: as `attentions` returns them, without the axis for samples: one row, or the mean over many. By
                default those at zero logits.

        Raises:
            ValueError: if they are not the ones that this layer has, each in its shape.
        """
        with making_parameters():
            given = self._checked(attentions)
            whole = gathered(self)
            precise = torch.promote_types(whole.weight.dtype, torch.float32)
            given = {name: value.to(device=whole.weight.device, dtype=precise) for name, value in given.items()}
            bias = None if whole.bias is None else whole.bias.to(precise)
            weight, bias = self._at(given, whole.weight.to(precise), bias)
            weight = weight.to(self.weight.dtype).contiguous(memory_format=memory_format(whole.weight))
            conv = frozen_conv(
                nn.Parameter(weight, whole.weight.requires_grad),
                None
                if bias is None or whole.bias is None
                else nn.Parameter(bias.to(whole.bias.dtype), whole.bias.requires_grad),
                self.stride,
                self.padding,
                self.dilation,
                self.groups,
                self.padding_mode,
                effective_size(self.kernel_size, self.dilation),
            )
        return conv.train(self.training)

    def revert(self) -> Conv:
        """The plain convolution that this layer is at neutral attention, as `freeze` makes it without arguments."""
        return self.freeze()

    def lost_by_reverting(self) -> Lost:
        """What `revert` leaves out: the attention, and with it by what the kernels differ."""
        kernels = f", and the differences of its {self.kernels} kernels" if self.kernels > 1 else ""
        return Lost(
            (f"its attention to the input{kernels}",), "exact" if self.attention.is_neutral() else "approximate"
        )

    def _at(self, attentions: dict[str, Tensor], weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The kernel and bias of a sample with these attentions, from the stacks of all."""
        kernel = attentions.get("kernel", weight.new_ones(1))
        return mix_kernels(weight, kernel[None])[0], None if bias is None else kernel @ bias.view(self.kernels, -1)

    def _checked(self, attentions: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        own = self.neutral_attentions()
        if attentions is None:
            return own
        if attentions.keys() != own.keys():
            raise ValueError(f"attentions must be those of {', '.join(own) or 'nothing'}, got {', '.join(attentions)}")
        for name, value in attentions.items():
            if value.shape != own[name].shape:
                raise ValueError(
                    f"the attention {name!r} must be of shape {tuple(own[name].shape)}, without samples, got "
                    f"{tuple(value.shape)}"
                )
        return dict(attentions)

    def generated_numbers(self, input_size: tuple[int, ...]) -> int:
        return self.weight.numel() // self.kernels

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernels={self.kernels}"


def _spread(value: Tensor, kernels: int, part: float, std: Tensor, generator: torch.Generator | None) -> Tensor:
    """``part * (value + noise)``, ``kernels`` times on its first axis, with noises of this std that sum to zero."""
    source = value.detach()
    if source.is_meta:  # nothing to compute, and slow all the same
        shape = kernels * source.shape[0], *source.shape[1:]
        return torch.empty(shape, dtype=source.dtype, device="meta", memory_format=memory_format(source))
    noise: Any = normal_like((kernels, *source.shape), source, generator)
    noise -= noise.mean(0)
    noise *= std * (kernels / max(kernels - 1, 1)) ** 0.5  # a single kernel has none
    noise += source
    noise *= part
    stacked: Tensor = noise.flatten(0, 1).to(source.dtype)
    return stacked.contiguous(memory_format=memory_format(source))
