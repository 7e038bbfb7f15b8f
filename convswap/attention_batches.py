"""Running a model on batches of a data set, as its loaders give them, to see what goes on inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .errors import ConvswapError
from .inputs import as_call
from .layers.attended import AttendedConv
from .modules import evaluation_mode
from .throwaway import untouched_randomness

Batches: TypeAlias = Any
"""One tensor, a dict of keyword arguments, or any iterable of batches.

A batch is a tensor; a tuple or list, of which the first element is the model's input (itself a tensor, a tuple of
arguments or a dict) and the rest, such as labels, is left alone; or a dict of keyword arguments. Tensors are moved to
the device of the model's parameters, and cast to their dtype if they are of real numbers."""


class BatchRunner:
    """Runs a model, in evaluation mode and without gradients, on each batch of some data.

    Attributes:
        batches, samples: how many it has run.
        random_state: torch's, on the CPU, before the last batch.
    """

    random_state: Tensor

    def __init__(self, model: nn.Module, data: Batches) -> None:
        """Look at nothing yet.

        Args:
            model: any model but one on the meta device.
            data: see `Batches`.

        Raises:
            ConvswapError: if it is nothing that gives batches.
        """
        self.model = model
        self.data = _iterable(data)
        self.batches = self.samples = 0
        self.parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        if self.parameter is not None and self.parameter.is_meta:
            raise ConvswapError(f"{type(model).__name__} is on the meta device, where there are no numbers to look at")

    def run(self, each: Callable[[Any, Any], None] | None = None) -> None:
        """Run all batches; ``each`` is called with each call's arguments and what the model has given.

        Raises:
            ConvswapError: if there are no batches, or the model fails on one.
        """
        self.batches = self.samples = 0
        compiled: Any = torch.compiler.set_stance  # hooks on what is compiled would not be called
        with evaluation_mode(self.model), torch.no_grad(), untouched_randomness(), compiled("force_eager"):
            for index, batch in enumerate(self.data):
                self._batch = batch
                call = self._call(batch, index)
                samples = _samples(call)
                self.random_state = torch.get_rng_state()
                output = self._output(call, index)
                self.batches += 1
                self.samples += samples
                if each is not None:
                    each(self._call(batch, index), output)  # as it was: models may change what they are given
        if not self.samples:
            raise ConvswapError(
                "the data has no samples: there were no batches, or only empty ones"
                + (" (an iterator is used up after one pass: give a list or a DataLoader)" if not self.batches else "")
            )

    def why_not_finite(self) -> str:
        """What to say of something that is not finite in the pass of the present batch."""
        if all(leaf.isfinite().all() for leaf in _tensors(self._batch)):
            return "the model has diverged"
        return f"batch {self.batches} of the data holds NaN or infinities"

    def _call(self, batch: Any, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = batch[0] if isinstance(batch, tuple | list) and batch else batch
        try:
            call = as_call(given)
        except ConvswapError:
            raise ConvswapError(
                f"batch {index} of the data is a {type(batch).__name__}"
                f"{'' if given is batch else f' that starts with a {type(given).__name__}'}: it must be a tensor, a "
                "tuple or list that starts with the model's input, or a dict of keyword arguments"
            ) from None
        parameter = self.parameter

        def placed(tensor: Tensor) -> Tensor:
            if parameter is None:
                return tensor.clone()
            dtype = parameter.dtype if tensor.is_floating_point() else None
            return tensor.to(device=parameter.device, dtype=dtype, copy=True)

        copied: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(Tensor, placed, call)
        return copied

    def _output(self, call: tuple[tuple[Any, ...], dict[str, Any]], index: int) -> Any:
        try:
            return self.model(*call[0], **call[1])
        except ConvswapError:
            raise
        except Exception as error:  # whatever the model's code raises
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in _tensors(call))
            raise ConvswapError(
                f"{type(self.model).__name__} does not run on batch {index} of the data ({shapes or 'no tensors'}): "
                f"{type(error).__name__}: {error}"
            ) from error


@contextmanager
def watching(layers: Mapping[str, nn.Module], hook: Callable[[str, Tensor, Any], None]) -> Iterator[None]:
    """Call ``hook`` with a layer's name, its input and its output at each of its calls."""

    def forward_hook(name: str) -> Callable[..., None]:
        def call(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            hook(name, args[0] if args else kwargs["input"], output)

        return call

    handles = [layer.register_forward_hook(forward_hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watching_attentions(
    runner: BatchRunner,
    layers: Mapping[str, AttendedConv],
    hook: Callable[[str, tuple[int, ...], Mapping[str, Tensor]], None],
) -> Iterator[None]:
    """Call ``hook`` with a layer's name, its input's spatial size and its attentions, at each call with samples.

    These are the attentions that the layer itself has made: a net of the user's own in them is not called twice.

    Raises:
        ConvswapError: from within the pass, if an attention is not finite.
    """
    last: dict[int, Any] = {}  # by the attention's identity: several layers may have the same

    def keep(name: str, _: Tensor, made: Any) -> None:
        last[id(layers[name].attention)] = made

    def note(name: str, input: Tensor, _: Any) -> None:
        dims, made = layers[name].dims, last.pop(id(layers[name].attention))
        attentions = made if isinstance(made, dict) else {"kernel": made}
        if input.dim() == dims + 1:
            attentions = {what: value.reshape(1, -1) for what, value in attentions.items()}
        for what, value in attentions.items():
            if not value.isfinite().all():
                raise ConvswapError(f"the {what} attention of {name!r} is not finite: {runner.why_not_finite()}")
        if input.numel():
            hook(name, tuple(input.shape[-dims:]), attentions)

    with watching({name: layer.attention for name, layer in layers.items()}, keep), watching(layers, note):
        yield


class Moments:
    """Mean and spread of vectors that come in batches, by Chan's update (which cancels nothing), in double precision.

    Attributes:
        count: vectors so far.
        mean: of each entry.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self._squares = torch.zeros((), dtype=torch.float64, device="cpu")

    def add(self, rows: Tensor) -> None:
        """Take in (count, *shape) further vectors."""
        rows = rows.detach().to("cpu").to(torch.float64)
        if not len(rows):
            return
        mean = rows.mean(0)
        squares = (rows - mean).square().sum(0)
        total = self.count + len(rows)
        apart = mean - self.mean
        self._squares = self._squares + squares + apart.square() * (self.count * len(rows) / total)
        self.mean = self.mean + apart * (len(rows) / total)
        self.count = total

    @property
    def spread(self) -> Tensor:
        """Standard deviation of each entry over all vectors."""
        return (self._squares / max(self.count, 1)).sqrt()


def _iterable(data: Batches) -> Iterable[Any]:
    if isinstance(data, Tensor | Mapping):
        return [data]
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise ConvswapError(
            f"the data must be a tensor or an iterable of batches, such as a DataLoader, got {type(data).__name__}"
        )
    # An iterator would be used up by the first pass of those that make several.
    return list(data) if isinstance(data, Iterator) else data


def _samples(call: tuple[tuple[Any, ...], dict[str, Any]]) -> int:
    """Of a call: the length of the first argument that has one, of a list of images (as of detectors) the list's."""
    for argument in (*call[0], *call[1].values()):
        if isinstance(argument, list | tuple) and argument and all(isinstance(item, Tensor) for item in argument):
            return len(argument)
        for leaf in _tensors(argument):
            if leaf.dim():
                return leaf.shape[0]
    return 0


def _tensors(call: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(call) if isinstance(leaf, Tensor)]
