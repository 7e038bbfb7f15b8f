"""Shapes, calls and outside reads of convolutions, from one forward pass over fake tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from .sites import ConvCall


@dataclass
class Measurement:
    """What a forward pass showed.

    Attributes:
        calls: for each convolution, by name, its calls; in order of first execution.
        readers: for each convolution, where its parameters were used other than in its own forward.
        functional: for each module, the convolution functions that its own forward calls.
        batch: samples in the pass.
        input_shape: shape of its first tensor.
        failure: why it stopped early, or None.
    """

    calls: dict[str, list[ConvCall]] = field(default_factory=dict)
    readers: dict[str, str] = field(default_factory=dict)
    functional: dict[str, str] = field(default_factory=dict)
    batch: int = 1
    input_shape: tuple[int, ...] | None = None
    failure: str | None = None


def measure(
    model: nn.Module,
    convs: dict[str, nn.Module],
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    mode: FakeTensorMode | None,
) -> Measurement:
    """Run ``model``, a throwaway copy, and watch its convolutions.

    Args:
        model: the copy.
        convs: its convolutions by name.
        inputs: positional and keyword arguments.
        mode: the mode its parameters are fakes of; None to run on real numbers.
    """
    result = Measurement()
    args, kwargs = inputs
    images = None
    tensors: list[Tensor] = []
    tree_map_only(Tensor, tensors.append, (args, kwargs))
    if tensors:
        result.input_shape = tuple(tensors[0].shape)
        result.batch = max(1, tensors[0].shape[0]) if tensors[0].dim() else 1
        images = _length_of_list((*args, *kwargs.values()), tensors[0])
    # Clones, as the model's code may change its input in place.
    args, kwargs = tree_map_only(Tensor, Tensor.clone if mode is None else mode.from_tensor, (args, kwargs))
    watch = _Watch(model, convs, result)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(watch.hooks())
            if mode is not None:
                stack.enter_context(mode)
            stack.enter_context(watch)
            model(*args, **kwargs)
    except (DynamicOutputShapeException, DataDependentOutputException) as error:
        result.failure = f"what runs depends on the data from some point on, where shapes end ({_told(error)})"
    except Exception as error:  # whatever the model's code raises
        result.failure = _told(error)
    if images is not None and _takes_batches_of_images(result):
        result.batch = images
    return result


def _told(error: Exception) -> str:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return f"{type(error).__name__}: {first_line}"[:300]


def _length_of_list(values: Sequence[Any], first: Tensor) -> int | None:
    """How many there are in the list of what may be images, tensors of three axes, that the first tensor leads."""
    for given in values:
        if isinstance(given, list | tuple) and given and given[0] is first and first.dim() == 3:
            return len(given)
    return None


def _takes_batches_of_images(result: Measurement) -> bool:
    """Whether a list of tensors of three axes is one of images: else they may be sequences, of a batch each."""
    first_calls = next(iter(result.calls.values()), None)
    return first_calls is None or len(first_calls[0].input_shape) == 4


class _Watch(TorchFunctionMode):
    """Notes calls of convolutions, and uses of their parameters outside of them."""

    def __init__(self, model: nn.Module, convs: dict[str, nn.Module], result: Measurement) -> None:
        super().__init__()
        self.model = model
        self.result = result
        self.conv_names = {id(conv): name for name, conv in convs.items()}
        self.owners: dict[int, set[str]] = {}
        for name, conv in convs.items():
            for parameter in conv.parameters(recurse=False):
                self.owners.setdefault(id(parameter), set()).add(name)
        self.running: list[str] = []

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Hooks on every module, which tell whose forward is running."""
        handles = []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name)))
            handles.append(module.register_forward_hook(self._leave(name, module), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            self.running.append(name)

        return hook

    def _leave(self, name: str, module: Any) -> Callable[..., None]:
        is_conv = id(module) in self.conv_names

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.running.pop()
            if is_conv and isinstance(output, Tensor):
                given = (args[0] if args else kwargs["input"]).shape
                batchless = (1,) if len(given) == len(output.shape) == len(module.kernel_size) + 1 else ()
                if batchless:
                    self.result.batch = 1
                macs = conv_multiply_adds(module, output.shape)
                call = ConvCall((*batchless, *given), (*batchless, *output.shape), macs)
                self.result.calls.setdefault(self.conv_names[id(module)], []).append(call)

        return hook

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _HARMLESS:
            here = self.running[-1] if self.running else ""
            for value in _flat(args, kwargs):
                owners = self.owners.get(id(value), ())
                if here not in owners:
                    for owner in owners:
                        self.result.readers.setdefault(owner, here)
            if func in _CONV_FUNCTIONS and here not in self.conv_names.values():
                self.result.functional.setdefault(here, func.__name__)
        return func(*args, **(kwargs or {}))


def _flat(args: Sequence[Any], kwargs: dict[str, Any] | None) -> Iterator[Any]:
    for value in (*args, *(kwargs or {}).values()):
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def conv_multiply_adds(conv: Any, output_shape: Sequence[int]) -> int:
    """Multiply-adds of a convolution that gives an output of this shape, without the bias."""
    per_output: int = math.prod(conv.kernel_size) * conv.in_channels // conv.groups
    return math.prod(output_shape) * per_output


# A model may ask where and in what precision a weight is: the new layer's weight answers likewise.
PLACEMENT_ATTRIBUTES = ("dtype", "device", "requires_grad")
_HARMLESS = frozenset(vars(torch._C.TensorBase)[name].__get__ for name in PLACEMENT_ATTRIBUTES)

_CONV_FUNCTIONS = frozenset(
    (
        *(F.conv1d, F.conv2d, F.conv3d),
        *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    )
)
