"""A guided convolution together with the hypernet that makes its kernels: what takes a convolution's place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._base import Conv, ConvLayer, making_parameters
from .hypernet.fit import Fit, fit_guide
from .hypernet.generator import Hypernet
from .reverted import Lost, all_zero, parameter_of, reverted_conv

torch.fx.wrap("fit_guide")


class HypernetConv2d(ConvLayer):
    """A guided convolution and its hypernet, as one module with the geometry of a convolution.

    ``y = conv(input, *hypernet(fit_guide(guide)))`` (De Brabandere et al. 2016, arXiv 1605.09673). Made by
    ``from_conv`` and ``with_hypernet`` of the guided layers.

    Shape: input (B, in_channels, H, W) and guide (B, guide_channels, H', W') or (B, guide_channels), to
    (B, out_channels, Ho, Wo); or all without B.

    Args:
        conv: a guided layer.
        hypernet: a `Hypernet`, from the guide to what ``conv`` takes besides its input: one tensor (or pair) where its
            ``outputs`` is 1, else a tuple of so many. Where the kernels are for each pixel, it gets the guide at the
            output's size.
        guide: name of where the guide comes from, if the model hands it in; None if the input is the guide.

    Raises:
        TypeError: if ``hypernet`` is of another class.
    """

    dims = 2

    hypernet: Any
    conv: Any

    def __init__(self, conv: nn.Module, hypernet: nn.Module, guide: str | None = None) -> None:
        if not isinstance(hypernet, Hypernet):
            raise TypeError(
                f"hypernet must be a convswap.layers.hypernet.Hypernet, got {type(hypernet).__name__}: give a function "
                "that makes a net of your own to from_conv or with_hypernet (hypernet=), or call the guided layer "
                "itself with kernels from wherever"
            )
        source: Any = conv
        super().__init__(
            source.in_channels,
            source.out_channels,
            source.kernel_size,
            source.stride,
            source.padding,
            source.dilation,
            source.groups,
            source.padding_mode,
        )
        self.hypernet = hypernet
        self.conv = conv
        self.guide = guide

    @property
    def guide_channels(self) -> int:
        """Channels that the guide must have."""
        channels: int = self.hypernet.guide_channels
        return channels

    @property
    def fit(self) -> Fit | None:
        """The third argument of `fit_guide`: the convolution's geometry, or None if one kernel serves all pixels."""
        return (self.kernel_size, self.stride, self.padding, self.dilation) if self.conv.spatial else None

    @property
    def weight(self) -> Tensor:
        """The kernel at zero guide contribution, (Co, Ci / groups, kh, kw): a view of the parameter that holds it.

        Of a separable convolution it is the product of the two that do.
        """
        kernel: Tensor = self.conv._kernel(self.hypernet)
        return kernel

    @property
    def bias(self) -> nn.Parameter | None:
        """The convolution's own bias (Co), which a generated one is added to."""
        bias: nn.Parameter | None = self.conv.bias
        return bias

    def forward(self, input: Tensor, guide: Tensor | None = None) -> Tensor:
        if guide is None:
            if self.guide is not None:
                raise RuntimeError(
                    f"no guide in this call: this convolution is guided by {self.guide!r}, which only the model's own "
                    "forward hands in, and not forward_features and the like; call the model itself, or give guide="
                )
            guide = input
        fitted = fit_guide(guide, input, self.fit)
        made = self.hypernet(fitted)
        outputs = self.hypernet.outputs
        y: Tensor = self.conv(input, made) if outputs == 1 else self.conv(input, *(made[i] for i in range(outputs)))
        return y

    def revert(self) -> Conv:
        """The plain convolution of this geometry with the part of kernel and bias that is the same for all guides.

        Where a bias is generated it has one, also if the convolution that the layer was made from had none. Nothing is
        shared with the layer.

        Raises:
            ValueError: if the guided layer is no convolution for any kernels: a `SeparableGuidedConv2d` with a norm or
                a ReLU between its factors.
        """
        carried = [getattr(module, name) for module, name in self.hypernet.carried()]
        generated = None if self.hypernet.expand_bias is None else self.hypernet.expand_bias.bias
        bias = self.bias if generated is None else generated  # at most one of them is there, see `Hypernet`
        with making_parameters():
            weight = parameter_of(self.conv._constant_kernel(self.hypernet).contiguous(), *carried)
            return reverted_conv(self, weight, None if bias is None else parameter_of(bias, bias))

    def lost_by_reverting(self) -> Lost:
        """What `revert` leaves out: the hypernet, and what the guide decides."""
        last = [child.weight for name, child in self.hypernet.named_children() if name.startswith("expand")]
        what = "its kernels" if self.hypernet.expand_bias is None else "its kernels and bias"
        of = "its own input" if self.guide is None else repr(self.guide)
        return Lost((f"that {what} depend on a guide, {of}",), "exact" if all_zero(*last) else "approximate")

    def carried_parameters(self) -> dict[str, tuple[tuple[nn.Module, str], ...]]:
        """For ``"weight"`` and ``"bias"`` the (module, parameter name) pairs that hold what a convolution has there."""
        bias = () if self.bias is None else ((self.conv, "bias"),)
        return {"weight": self.hypernet.carried(), "bias": bias}

    def new_parameters(self) -> dict[str, nn.Parameter]:
        held = {getattr(module, name) for pairs in self.carried_parameters().values() for module, name in pairs}
        return {name: parameter for name, parameter in self.named_parameters() if parameter not in held}

    def generated_numbers(self, input_size: tuple[int, ...]) -> int:
        rows, columns = self.conv.output_size(input_size)
        numbers: int = self.hypernet.generated_numbers(rows * columns)
        return numbers

    def extra_repr(self) -> str:
        named = "" if self.guide is None else f", guide={self.guide!r}"
        return super().extra_repr() + named
