"""What all layers have in common: the geometry attributes of ``nn.Conv2d`` and the way they are made from one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ._geometry import PADDING_MODES, IntOrInts, Padding, normalise_padding, per_axis
from .ops._load import want_kernels

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d

_CONV_CLASSES: dict[int, type[Conv]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class ConvLayer(nn.Module):
    """Base of the layers that take the place of a convolution.

    It is no ``nn.Conv2d``, but has its geometry: ``in_channels, out_channels, kernel_size, stride, padding, dilation,
    groups, padding_mode``, and its forward's argument is called ``input`` too. ``padding="same"`` is allowed with any
    stride and then gives ``ceil(input / stride)`` outputs, as in TensorFlow.

    Every layer has a class method ``from_conv(conv, *, generator=None, **options)`` that makes one which computes what
    ``conv`` computes (a `BorderedConv`: in the interior) and carries its weights; ``conv.padding`` may be ``"same"``
    with any stride there. It raises ``ValueError`` where `unsupported_reason` gives a reason. Random starts come from
    ``generator``, a CPU generator.

    Most have its counterpart, ``revert()``, which makes a plain convolution with the geometry of the layer and what it
    has of the weights at present, and ``lost_by_reverting()``, which says what is left out.
    """

    dims: ClassVar[int]
    """Number of spatial axes."""

    new_parameter_names: ClassVar[tuple[str, ...]] = ()
    """Parameters that a plain convolution does not have (those that exist in this instance; see `new_parameters`)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts,
        padding: Padding,
        dilation: IntOrInts,
        groups: int,
        padding_mode: str,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must divide in_channels and out_channels, got groups={groups}, "
                f"in_channels={in_channels}, out_channels={out_channels}"
            )
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = per_axis(kernel_size, self.dims, "kernel_size")
        self.stride = per_axis(stride, self.dims, "stride")
        self.padding = normalise_padding(padding, self.dims)
        self.dilation = per_axis(dilation, self.dims, "dilation")
        self.groups = groups
        self.padding_mode: str = padding_mode
        for name in ("kernel_size", "stride", "dilation"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @classmethod
    def unsupported_reason(cls, conv: nn.Module, **options: Any) -> str | None:
        """Why ``conv`` cannot be converted to this layer, in words, or None if it can."""
        wanted = _CONV_CLASSES[cls.dims]
        if not isinstance(conv, wanted):
            return f"{cls.__name__} is made from nn.{wanted.__name__}, not from {type(conv).__name__}"
        if conv.padding_mode not in PADDING_MODES:  # as frozen padding-free layers have
            return (
                f"its padding_mode is {conv.padding_mode!r}, not one of {', '.join(PADDING_MODES)}: take the "
                "convolution or the layer that it was made from"
            )
        return None

    @classmethod
    def _check_conv(cls, conv: nn.Module, **options: Any) -> Any:
        """``conv`` itself, once it is known to be one that the layer can be made from."""
        reason = cls.unsupported_reason(conv, **options)
        if reason is not None:
            raise ValueError(f"cannot make {cls.__name__} from this module: {reason}")
        return conv

    def new_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that a plain convolution does not have, by name: those to train when all else stays."""

        def is_new(name: str) -> bool:  # of a parametrised P, what it is computed from is called parametrizations.P.…
            plain = name.replace("parametrizations.", "")
            return any(plain == new or plain.startswith(f"{new}.") for new in self.new_parameter_names)

        return {name: parameter for name, parameter in self.named_parameters() if is_new(name)}

    def generated_numbers(self, input_size: tuple[int, ...]) -> int:
        """Numbers held for one sample of this spatial size because kernels are generated; 0 if all share one."""
        return 0

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        if self.padding not in ((0,) * self.dims, "valid"):
            parts.append(f"padding={self.padding!r}")
        if self.dilation != (1,) * self.dims:
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if getattr(self, "bias", None) is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode!r}")
        return ", ".join(parts)


class UsesKernels(ConvLayer):
    """Base of the layers that compute with kernels of ours, which are loaded when they are moved, copied or unpickled.

    Their constructors call `_want_kernels` as well. In a first call it may be too late, as a compiler may look on.
    """

    def _want_kernels(self) -> None:
        want_kernels(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._want_kernels()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._want_kernels()


@contextmanager
def making_parameters() -> Iterator[None]:
    """For making parameters of others without gradients. Those made in inference mode could never be trained."""
    with torch.inference_mode(False), torch.no_grad():  # leaving that mode turns gradients on
        yield


def parameter_like(value: Tensor, original: Tensor) -> nn.Parameter:
    """A parameter that holds ``value`` in the dtype and on the device of ``original`` and trains if it did."""
    held = value.to(device=original.device, dtype=original.dtype)
    return nn.Parameter(held, requires_grad=original.requires_grad)


def root_mean_square(value: Tensor) -> Tensor:
    """Root mean square of all entries, as a 0-dim tensor, in single precision at least."""
    if value.is_meta:  # nothing to compute, and slow all the same
        return value.new_empty((), dtype=torch.promote_types(value.dtype, torch.float32))
    precise = value.detach().to(torch.promote_types(value.dtype, torch.float32))  # squares of half precision underflow
    return precise.square().mean().sqrt()


def normal_like(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers on the device of ``like``, in its dtype or in single precision where that is more.

    They are drawn on the CPU, so that every device gets the same ones from the same generator. On the meta device
    nothing is drawn.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    if like.is_meta:
        return like.new_empty(shape, dtype=dtype)
    return torch.randn(shape, generator=generator, dtype=dtype, device="cpu").to(like.device)
