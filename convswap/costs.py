"""What a convolution or the layer that takes its place costs, without allocating it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from .conv_classes import CONVS, Conv, unknown_class_reason
from .layers import ConvLayer, HypernetConv2d
from .layers.ops._define import register_flop_formulas
from .modules import evaluation_mode
from .sites import ConvCall, ConvSite
from .throwaway import throwaway_copy, untouched_randomness


@dataclass(frozen=True)
class Cost:
    """What a layer costs.

    Attributes:
        parameters: number of its parameters.
        parameter_bytes: their size.
        multiply_adds: of all its calls for one sample, as torch's ``FlopCounterMode`` counts them (matrix products and
            convolutions); None if shapes are unknown, or code of the user's in the layer needs more than shapes.
        activation_bytes: what it keeps for the backward pass of one sample besides its parameters; None if unknown.
        kernel_bytes: of the kernels that all its calls generate for one sample; 0 for a layer whose kernel is the same
            for all samples, None if unknown.
    """

    parameters: int
    parameter_bytes: int
    multiply_adds: int | None
    activation_bytes: int | None
    kernel_bytes: int | None = None


def conv_cost(site: ConvSite, seen: dict[Any, int | None] | None = None) -> Cost:
    """What the convolution of ``site`` costs as it is.

    Args:
        site: the convolution.
        seen: what has been found out about others of a model, and is added to.
    """
    # To ask for a parametrised weight computes it, and may change buffers, as spectral_norm does.
    if not site.parametrised and nn.parameter.is_lazy(site.module.weight):
        return Cost(0, 0, None, None, 0)
    return Cost(*parameters_of(site.module), site.multiply_adds, _kept_of_seen(site, seen) if site.calls else None, 0)


def geometry(conv: Conv) -> tuple[Any, ...]:
    """What makes a plain convolution, but for its numbers."""
    return (
        *(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation),
        *(conv.groups, conv.padding_mode, conv.bias is None, conv.weight.dtype, conv.weight.requires_grad),
    )


def _kept_of_seen(site: ConvSite, seen: dict[Any, int | None] | None) -> int | None:
    """`_kept_by_conv`, asked once of convolutions that are alike. Code of the user's may go by anything."""
    conv = site.module
    if seen is None or site.parametrised or "forward" in conv.__dict__ or unknown_class_reason(conv) is not None:
        return _kept_by_conv(site)
    key = (type(conv), geometry(conv), site.calls, site.batch)
    if key not in seen:
        seen[key] = _kept_by_conv(site)
    return seen[key]


def _kept_by_conv(site: ConvSite) -> int | None:
    """Bytes that the convolution keeps of one sample: its input, unless code of its own pads it or makes a weight."""
    conv = site.module
    if type(conv) in CONVS and conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
        numbers = sum(math.prod(call.input_shape) for call in site.calls)
        return numbers * conv.weight.element_size() // site.batch
    mode = FakeTensorMode()
    try:
        with untouched_randomness(), mode:
            copied = throwaway_copy(conv, mode).eval()
            shapes = [(_samples(call, site.batch), *call.input_shape[1:]) for call in site.calls]
            return sum(_forward_pass(copied, shape)[1] for shape in shapes)
    except Exception:  # a class of the user's own may do what only numbers can tell
        return None


class CostOnDemand:
    """The cost of ``layer``, which is on the meta device, found out when it is first asked for.

    Copied and pickled as the plain `Cost` it stands for.
    """

    def __init__(
        self, layer: nn.Module, calls: Sequence[ConvCall], batch: int, *, besides: nn.Module | None = None
    ) -> None:
        """Hold ``layer`` until its cost is asked for.

        Args:
            layer: a layer on the meta device.
            calls: those of the convolution that it takes the place of, in a pass of ``batch`` samples.
            batch: see ``calls``.
            besides: a layer whose parameters are not counted again where this one shares them.
        """
        counted = set() if besides is None else set(map(id, besides.parameters()))
        self.parameters, self.parameter_bytes = parameters_of(layer, counted)
        self.layer, self._calls, self._batch = layer, calls, batch

    @cached_property
    def cost(self) -> Cost:
        """The cost of the layer when it is called with the inputs of the convolution's calls, in evaluation mode."""
        kernel_bytes = generated_bytes(self.layer, self._calls, self._batch)
        unknown = Cost(self.parameters, self.parameter_bytes, None, None, kernel_bytes)
        if not self._calls:
            return unknown
        multiply_adds = activation_bytes = 0
        try:
            with evaluation_mode(self.layer), untouched_randomness():
                for call in self._calls:
                    flops, kept = _forward_pass(self.layer, (_samples(call, self._batch), *call.input_shape[1:]))
                    multiply_adds += flops // 2
                    activation_bytes += kept
        except Exception:  # hypernets and layers of the user's own may branch on numbers, or hold tensors of a device
            return unknown
        return replace(unknown, multiply_adds=multiply_adds, activation_bytes=activation_bytes)

    def __eq__(self, other: object) -> bool:
        return self.cost == known(other) if isinstance(other, Cost | CostOnDemand) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.cost)

    def __repr__(self) -> str:
        return repr(self.cost)

    def __reduce__(self) -> tuple[type[Cost], tuple[int | None, ...]]:
        return Cost, astuple(self.cost)


def generated_bytes(layer: nn.Module, calls: Sequence[ConvCall], batch: int) -> int | None:
    """Bytes of the kernels that ``layer`` generates for one sample in all ``calls`` of a pass of ``batch`` samples.

    None where there are kernels for each pixel and no calls that tell how many pixels.
    """
    numbers = generated_numbers(layer, calls, batch)
    return None if numbers is None else sum(numbers) * next(layer.parameters()).element_size()


def generated_numbers(layer: nn.Module, calls: Sequence[ConvCall], batch: int) -> list[int] | None:
    """Numbers of the kernels that ``layer`` generates for one sample in each of ``calls``, or None as above.

    For a layer that has the same number of them whatever the size of its input, one call is assumed if there is none.
    """
    if not isinstance(layer, ConvLayer):
        return [0]
    if calls:
        return [layer.generated_numbers(call.input_shape[-layer.dims :]) * _samples(call, batch) for call in calls]
    if isinstance(layer, HypernetConv2d) and layer.conv.spatial:
        return None
    return [layer.generated_numbers((1,) * layer.dims)]


def known(cost: Cost | CostOnDemand) -> Cost:
    """The cost itself."""
    return cost.cost if isinstance(cost, CostOnDemand) else cost


def _samples(call: ConvCall, batch: int) -> int:
    """What one sample of the model is to a layer that may be called with windows or scales of it."""
    return max(1, call.input_shape[0] // batch)


def parameters_of(module: nn.Module, counted: set[int] | None = None) -> tuple[int, int]:
    """How many parameters a module has, and their bytes.

    Args:
        module: the module.
        counted: identities of parameters that are not counted again; those that are counted are added.
    """
    counted = set() if counted is None else counted
    parameters = [parameter for parameter in module.parameters() if id(parameter) not in counted]
    counted.update(map(id, parameters))
    return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)


def _forward_pass(layer: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """FLOPs of a forward pass, and bytes of the tensors saved for the backward pass that are no parameters.

    Of a layer whose tensors are fake, or on the meta device: nothing is computed.
    """
    parameter = next(layer.parameters())
    own = {held.untyped_storage()._cdata for held in layer.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        _FlopCounter() as counter,
    ):
        empty = partial(torch.empty, dtype=parameter.dtype, device=parameter.device, requires_grad=True)
        guides = []
        if isinstance(layer, HypernetConv2d) and layer.guide is not None:
            guides.append(empty((input_shape[0], layer.guide_channels, *input_shape[2:])))
        layer(empty(input_shape), *guides)
    return counter.flops, sum(saved.values())


class _FlopCounter(TorchDispatchMode):
    """Counts as torch's ``FlopCounterMode`` does, by its formulas, without its bookkeeping by module, which is slow."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry

        register_flop_formulas()
        self.flops = 0
        self.formulas = flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = self.formulas.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result
