"""What all guided convolutions have in common, and how they get a hypernet."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._base import UsesKernels, parameter_like
from ._geometry import IntOrInts, Padding, effective_size, output_size, pad_widths
from .hypernet.generator import Hypernet, HypernetFactory
from .hypernet_conv import HypernetConv2d
from .ops._load import want_kernels
from .own_net import make_net


class GuidedLayer(UsesKernels):
    """Base of the convolutions that are handed their kernels, made by a hypernet from a guide.

    They hold no kernel; a ``bias`` of their own is a parameter (Co) or None and is added to the generated one.
    """

    dims = 2

    spatial: ClassVar[bool] = False
    """Whether there are kernels for each pixel."""

    bias: nn.Parameter | None

    _place: Tensor
    """An empty buffer on the layer's device and in its dtype, which no state dict has."""

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
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        if min(in_channels, out_channels) < 1:
            raise ValueError(f"in_channels and out_channels must be at least 1, got {in_channels} and {out_channels}")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        # It holds nothing, but goes where the layer goes, and tells where a hypernet made later belongs.
        self.register_buffer("_place", torch.empty(0, device=device, dtype=dtype), persistent=False)
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self._want_kernels()

    @property
    def weight_shape(self) -> tuple[Any, ...]:
        """Shape of the kernels that a call takes for one sample, without the pixels."""
        raise NotImplementedError

    @property
    def fan_in(self) -> int:
        """Products that each output sums."""
        return self.in_channels // self.groups * self.kernel_size[0] * self.kernel_size[1]

    @property
    def fan_out(self) -> int:
        """Outputs that each input reaches, at stride 1."""
        return self.out_channels // self.groups * self.kernel_size[0] * self.kernel_size[1]

    def output_size(self, input_size: tuple[int, ...]) -> tuple[int, ...]:
        """(Ho, Wo) for an input of this (H, W)."""
        extents = effective_size(self.kernel_size, self.dilation)
        return output_size(input_size, pad_widths(self.padding, extents, self.stride, input_size), extents, self.stride)

    @classmethod
    def unsupported_reason(cls, conv: nn.Module, **options: Any) -> str | None:
        reason = super().unsupported_reason(conv)
        if reason is not None:
            return reason
        source: Any = conv
        channels = source.in_channels, source.out_channels
        return None if min(channels) >= 1 else f"it has {channels[0]} input and {channels[1]} output channels"

    @classmethod
    def from_conv(
        cls,
        conv: nn.Module,
        *,
        generator: torch.Generator | None = None,
        guide_channels: int | None = None,
        hidden: int = 8,
        hypernet: HypernetFactory | None = None,
        generate_bias: bool = False,
    ) -> HypernetConv2d:
        """Make this layer and a hypernet that together compute what ``conv`` computes, whatever the guide.

        The hypernet's last map starts with weight zero, and with the convolution's kernel as its bias; the
        convolution's bias becomes the layer's own. The guide has an effect from the first optimiser step on.

        Args:
            conv: the convolution; weights are copied.
            generator: a CPU generator for the rest of the hypernet; the global one by default.
            guide_channels: of the guide; ``conv.in_channels`` by default, for a convolution that guides itself.
            hidden: features that the kernels are made from.
            hypernet: a function of the numbers of guide channels and of features, to a net of one's own from the guide
                (B, guide_channels, H, W) to features (B, hidden) or (B, hidden, h, w).
            generate_bias: whether a bias is generated as well.

        Raises:
            ValueError: where `unsupported_reason` gives a reason.
        """
        return cls._from_conv(conv, generator, guide_channels, hidden, hypernet, generate_bias)

    def with_hypernet(
        self,
        guide_channels: int | None = None,
        *,
        hidden: int = 8,
        hypernet: HypernetFactory | None = None,
        generate_bias: bool = False,
        init: str = "fan_in",
        relu: bool = True,
        generator: torch.Generator | None = None,
    ) -> HypernetConv2d:
        """This layer and a new hypernet that guides it, on its device and in its dtype.

        Args:
            guide_channels, hidden, hypernet, generate_bias, generator: as in `from_conv`.
            init: how the last map is drawn: ``"fan_in"`` keeps the second moment of what goes forward, ``"fan_out"``
                that of the gradients (`hyperfan_in_`, `hyperfan_out_`), both for a guide of unit-normal numbers that
                has nothing to do with the input. Where the guide is averaged over space first (`GuidedConv2d`,
                `GuidedDepthWiseConv2d`), its means are to be unit-normal. Where the features of pixels are averaged
                (generated biases, the second factor of `SeparableGuidedConv2d`), it is to be the same everywhere. What
                varies over space is smaller in a mean, and so are the kernels that are made from that.
            relu: whether a ReLU follows the convolution, which the second moment is then kept through.

        Raises:
            ValueError: for an unknown ``init`` or numbers out of range.
            RuntimeError: if a net of one's own fails on guides of 16x16 pixels, from which the size of its features is
                found.
        """
        return self._with_hypernet(guide_channels, hidden, hypernet, generate_bias, init, relu, generator)

    @classmethod
    def _from_conv(
        cls,
        conv: nn.Module,
        generator: torch.Generator | None,
        guide_channels: int | None,
        hidden: int,
        hypernet: HypernetFactory | None,
        generate_bias: bool,
        **options: Any,
    ) -> HypernetConv2d:
        source = cls._check_conv(conv, **options)
        layer = cls._like(source)
        if source.bias is not None:
            layer.bias = parameter_like(source.bias.detach().clone(), source.bias)
        made = layer._make_hypernet(guide_channels, hidden, hypernet, generate_bias, generator, **options)
        layer._load_kernel(made, source.weight.detach(), generator)
        for module, name in made.carried():
            getattr(module, name).requires_grad_(source.weight.requires_grad)
        return HypernetConv2d(layer, made).train(source.training)

    def _with_hypernet(
        self,
        guide_channels: int | None,
        hidden: int,
        hypernet: HypernetFactory | None,
        generate_bias: bool,
        init: str,
        relu: bool,
        generator: torch.Generator | None,
        **options: Any,
    ) -> HypernetConv2d:
        made = self._make_hypernet(guide_channels, hidden, hypernet, generate_bias, generator, **options)
        self._hyperfan(made, init, relu, generator)
        return HypernetConv2d(self, made).train(self.training)

    @classmethod
    def _like(cls, conv: Any) -> Any:
        """A layer with the geometry of ``conv``, without a bias, on its device and in its dtype."""
        make: Any = cls  # the constructors differ
        return make(
            *cls._constructor_arguments(conv),
            padding_mode=conv.padding_mode,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )

    @classmethod
    def _constructor_arguments(cls, conv: Any) -> tuple[Any, ...]:
        channels = conv.in_channels, conv.out_channels
        return *channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups

    def _make_hypernet(
        self,
        guide_channels: int | None,
        hidden: int,
        factory: HypernetFactory | None,
        generate_bias: bool,
        generator: torch.Generator | None,
        **options: Any,
    ) -> Hypernet:
        """A hypernet that generates zeros for this layer."""
        device, dtype = self._place.device, self._place.dtype
        channels = self.in_channels if guide_channels is None else guide_channels
        body = None
        if factory is not None:
            body = make_net(factory, "hypernet", channels, hidden, device, dtype, generator)
        common: dict[str, Any] = {
            "hidden": hidden,
            "bias_channels": self.out_channels if generate_bias else None,
            "bias_start": self.bias is None,
            "body": body,
            "generator": generator,
            "device": device,
            "dtype": dtype,
        }
        return self._hypernet(channels, common, **options)

    def _hypernet(self, guide_channels: int, common: dict[str, Any]) -> Hypernet:
        raise NotImplementedError

    def _load_kernel(self, hypernet: Any, kernel: Tensor, generator: torch.Generator | None) -> None:
        """Have the hypernet start from a convolution's weight."""
        with torch.no_grad():
            hypernet.expand.bias.copy_(self._to_rows(kernel).flatten())

    def _kernel(self, hypernet: Any) -> Tensor:
        """The kernel at zero guide contribution, in the shape and order of a convolution's weight."""
        return self._from_rows(hypernet.expand.bias)

    def _constant_kernel(self, hypernet: Any) -> Tensor:
        """The part of the kernel that is the same for all guides, likewise.

        Raises:
            ValueError: if what the layer computes with such a kernel is no convolution.
        """
        return self._kernel(hypernet)

    def _to_rows(self, kernel: Tensor) -> Tensor:
        """A convolution's weight in the order of the rows of ``expand``."""
        return kernel

    def _from_rows(self, rows: Tensor) -> Tensor:
        return rows.view(self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def _whole_bias(self, generated: Tensor | None) -> Tensor | None:
        """The layer's own and the generated bias together, (Co) or (B, Co)."""
        if self.bias is None or generated is None:
            return self.bias if generated is None else generated
        return generated + self.bias

    def _hyperfan(self, hypernet: Any, init: str, relu: bool, generator: torch.Generator | None) -> None:
        hypernet.hyperfan(init, self.fan_in, self.fan_out, relu, generator)

    def _want_kernels(self) -> None:
        if self.spatial:
            want_kernels(self._place)

    def extra_repr(self) -> str:
        return super().extra_repr() if self.bias is None else f"{super().extra_repr()}, bias=True"
