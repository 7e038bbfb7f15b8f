"""Convolution whose kernels are predicted for each patch (Keep-up-sharma, Dynamic-Layers)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from ._base import Conv, ConvLayer, making_parameters
from ._geometry import IntOrInts, Padding, effective_size, memory_format, stored_as
from .frozen import frozen_conv
from .patch_dynamic_conv import patch_dynamic_conv2d
from .patch_dynamic_predictors import PatchPredictors
from .patch_dynamic_sizes import published_sizes
from .reverted import Lost, all_zero, parameter_of, reverted_conv

torch.fx.wrap("patch_dynamic_conv2d")

PatchOrder = Literal["channels", "published"]


class PatchDynamicConv2d(ConvLayer):
    """Convolution that looks at each patch with a kernel predicted from it, one predictor for each output channel.

    A predictor is ``HybridDense(D, hidden), BatchNorm1d, HybridDense(hidden, hidden), BatchNorm1d, Linear(hidden, D)``
    with ``D = (in_channels / groups) kh kw``. It reads a patch p, and the output is the mean over D of p times what it
    gives, plus that of an ordinary convolution of the same geometry, ``similar_conv``. The batch norms are over all
    patches of a batch; for a single patch their running statistics are used in training too.

    Shape: (B, in_channels, H, W) to (B, out_channels, Ho, Wo), or both without B, as in ``nn.Conv2d``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in
            ``nn.Conv2d``; ``padding="same"`` is allowed with any stride. ``bias`` is that of ``similar_conv``.
        hidden: units of each of the two hidden layers of a predictor.
        similar_conv: whether there is the ordinary convolution.
        patch_order: ``"channels"`` takes the numbers of a patch in the order (C, kh, kw). ``"published"`` does what
            published checkpoints were trained with: the tensor of all patches, (B, C, Ho, Wo, kw, kh), is cut into
            rows of D numbers as it lies in memory, so that a row has numbers of several patches, predictions are put
            back in the same way, and ``padding="same"`` puts an odd pixel ahead of the patches. It needs explicit
            patches, and more time and memory.

    Parameters:
        similar_conv: an ``nn.Conv2d``, whose weight and bias are the layer's, or None.
        predictors: a `PatchPredictors`, which holds those of all outputs in a few tensors. ``named_parameters`` has
            their names, ``predictors.first_weight`` and so on; state dicts have the published ones,
            ``predictors.{o}.{0..4}.*``. Its tensors are read by the layer, and its own ``forward`` never runs:
            ``fully_shard`` and what else hooks into modules must be given the layer as a whole.

    Raises:
        ValueError: for arguments that fit no convolution, ``hidden`` below 1, or an unknown order.
    """

    similar_conv: Any
    predictors: PatchPredictors

    dims = 2
    new_parameter_names = ("predictors",)

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
        hidden: int = 16,
        similar_conv: bool = True,
        patch_order: PatchOrder = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        if patch_order not in get_args(PatchOrder):
            raise ValueError(f"patch_order must be one of {', '.join(get_args(PatchOrder))}, got {patch_order!r}")
        self.hidden = hidden
        self.patch_order = patch_order
        self.similar_conv = self._similar(bias, device, dtype) if similar_conv else None
        features = in_channels // groups * self.kernel_size[0] * self.kernel_size[1]
        self.predictors = PatchPredictors(out_channels, features, hidden, device, dtype)

    def _similar(self, bias: bool, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Module:
        shape = self.out_channels, self.in_channels // self.groups, *self.kernel_size
        weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        offset = nn.Parameter(torch.empty(self.out_channels, device=device, dtype=dtype)) if bias else None
        window = effective_size(self.kernel_size, self.dilation)
        geometry = self.stride, self.padding, self.dilation, self.groups, self.padding_mode, window
        conv = frozen_conv(weight, offset, *geometry)
        if not weight.is_meta:
            conv.reset_parameters()
        return conv

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as ``nn.Conv2d`` and ``nn.Linear`` do."""
        if self.similar_conv is not None:
            self.similar_conv.reset_parameters()
        self.predictors.reset_parameters()

    @classmethod
    def from_conv(cls, conv: nn.Module, *, generator: torch.Generator | None = None, hidden: int = 16) -> Self:
        """Make a layer that computes what ``conv`` computes: the predictors' last maps are 0.

        Args:
            conv: the convolution; weights are copied.
            generator: a CPU generator for the first maps of the predictors; the global one by default.
            hidden: as in the constructor.
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
            hidden=hidden,
            device="meta",
            dtype=source.weight.dtype,
        )
        similar: Any = layer.similar_conv
        for name in ("weight", "bias"):
            value = getattr(source, name)
            if value is not None:
                setattr(similar, name, nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad))
        layer.predictors.to_empty(device=source.weight.device)
        layer.predictors.reset_parameters(generator)
        nn.init.zeros_(layer.predictors.last_weight)
        nn.init.zeros_(layer.predictors.last_bias)
        return layer.train(source.training)

    @classmethod
    def from_published(
        cls,
        state_dict: Mapping[str, Tensor],
        prefix: str = "",
        in_channels: int = 3,
        stride: IntOrInts = 1,
        padding: Padding = 0,
        dilation: IntOrInts = 1,
        padding_mode: str = "zeros",
        *,
        kernel_size: IntOrInts | None = None,
    ) -> Self:
        """Make a layer in the published order from a published state dict, in evaluation mode.

        Numbers of outputs and of hidden units, the kernel size, the dtype, and whether there is a ``similar_conv`` with
        or without bias are read off the tensors.

        Args:
            state_dict: of a whole model, or of the layer alone. Tensors are copied.
            prefix: of the layer's names in it, with its dot, as in ``"c1."``.
            in_channels, stride, padding, dilation, padding_mode: as in the constructor.
            kernel_size: of layers without ``similar_conv`` whose kernels are not square.

        Raises:
            TypeError: if anything under the prefix is no tensor.
            ValueError: naming what is missing, left over, or does not fit.
        """
        own = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        sizes = published_sizes(own, prefix, in_channels, kernel_size)
        layer = cls(
            in_channels,
            sizes.outputs,
            sizes.kernel_size,
            stride,
            padding,
            dilation,
            sizes.groups,
            sizes.bias,
            padding_mode,
            hidden=sizes.hidden,
            similar_conv=sizes.similar_conv,
            patch_order="published",
            device=sizes.device,
            dtype=sizes.dtype,
        )
        try:
            layer.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"the tensors under {prefix!r} are no PatchDynamicConv2d: {error}") from error
        return layer.eval()

    @property
    def weight(self) -> nn.Parameter | None:
        """The weight of ``similar_conv``, (out_channels, in_channels / groups, kh, kw), or None without it."""
        weight: nn.Parameter | None = None if self.similar_conv is None else self.similar_conv.weight
        return weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias of ``similar_conv``, (out_channels), or None without one."""
        bias: nn.Parameter | None = None if self.similar_conv is None else self.similar_conv.bias
        return bias

    def forward(self, input: Tensor) -> Tensor:
        return patch_dynamic_conv2d(
            input,
            self.predictors,
            self.similar_conv,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.padding_mode,
            self.patch_order,
        )

    def revert(self) -> Conv:
        """The plain convolution of this geometry with the part of all kernels that is the same for all patches.

        That is ``similar_conv``, and the bias of each predictor's last map. In the published order, where the kernels
        for a patch are of no convolution, it is ``similar_conv`` alone. Nothing is shared with the layer.

        Raises:
            ValueError: in the published order, without a ``similar_conv``.
        """
        own, mean = self.similar_conv, self.predictors.last_bias
        if own is None and self.patch_order == "published":
            raise ValueError(
                "it has no convolution (similar_conv=False), and kernels in the published order are of none"
            )
        with making_parameters():
            precise = torch.promote_types(mean.dtype, torch.float32)
            predicted = mean.to(precise).view(-1, self.in_channels // self.groups, *self.kernel_size)
            predicted = predicted / self.predictors.features
            if own is None:
                return reverted_conv(self, parameter_of(predicted, mean), None)
            kernel = own.weight
            if self.patch_order == "channels":
                kernel = stored_as(kernel.to(precise) + predicted, memory_format(kernel))
            bias = None if own.bias is None else parameter_of(own.bias, own.bias)
            return reverted_conv(self, parameter_of(kernel, own.weight), bias)

    def lost_by_reverting(self) -> Lost:
        """What `revert` leaves out: the part of the predicted kernels that depends on the patch."""
        maps = self.predictors
        unused = all_zero(maps.last_weight) and (self.patch_order == "channels" or all_zero(maps.last_bias))
        return Lost(("the kernels that it predicts for each patch",), "exact" if unused else "approximate")

    def carried_parameters(self) -> dict[str, tuple[tuple[nn.Module, str], ...]]:
        """For ``"weight"`` and ``"bias"`` the (module, parameter name) pairs that hold what a convolution has there."""
        conv = self.similar_conv
        held = {name: getattr(self, name) for name in ("weight", "bias")}
        return {name: () if conv is None or value is None else ((conv, name),) for name, value in held.items()}

    def extra_repr(self) -> str:
        order = "" if self.patch_order == "channels" else f", patch_order={self.patch_order!r}"
        return f"{super().extra_repr()}, hidden={self.hidden}{order}"
