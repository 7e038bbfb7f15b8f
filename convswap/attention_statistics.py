"""What the attentions of a model do over a data set: which kernels are used, and how sharply they are chosen."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention_batches import Batches, BatchRunner, Moments, watching_attentions
from .errors import ConvswapError
from .field_types import checked
from .layers.attended import AttendedConv
from .modules import unwrapped

STATISTICS_VERSION = 1


@dataclass(frozen=True)
class KernelUse:
    """How a layer has weighed its kernels.

    Attributes:
        size: spatial size of the inputs that this is of; empty if it is of all.
        samples: how often a sample was looked at: once for each call of the layer.
        mean: mean attention of each kernel.
        spread: standard deviation of each kernel's attention over the samples.
        entropy: mean over the samples of ``-sum_k p_k log p_k``, in nats, where p is the attention divided by its sum.
            That sum is 1 but for CondConv's sigmoids: there the entropy is of how the kernels share what they get.
    """

    size: tuple[int, ...]
    samples: int
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    entropy: float

    @property
    def relative_entropy(self) -> float | None:
        """The entropy, relative to that of equal weights, ``log K``: 0 to 1. None if there is only one kernel."""
        return self.entropy / math.log(len(self.mean)) if len(self.mean) > 1 else None


@dataclass(frozen=True)
class GateUse:
    """How a layer has weighed something else than kernels, over all samples and entries.

    Attributes:
        gate: what it weighs: ``"channel"``, ``"filter"`` or ``"position"``.
        mean, spread: mean and standard deviation.
        across_samples: root mean square over the entries of each one's standard deviation over the samples: 0 if the
            input makes no difference.
    """

    gate: str
    mean: float
    spread: float
    across_samples: float


@dataclass(frozen=True)
class LayerAttention:
    """What the attention of one layer has done.

    Attributes:
        name: the layer's qualified name, the first one if it has several.
        kind: its class.
        whole: over all its calls.
        sizes: apart, for each spatial size of its input, the largest first.
        gates: what else it weighs.
    """

    name: str
    kind: str
    whole: KernelUse
    sizes: tuple[KernelUse, ...]
    gates: tuple[GateUse, ...]


@dataclass(frozen=True)
class ResolutionAttention:
    """What the attentions of all layers have done at one spatial size of their inputs.

    Attributes:
        size: the size.
        layers: names of the layers.
        relative_entropy: mean over these layers, see `KernelUse`; None if each has one kernel only.
    """

    size: tuple[int, ...]
    layers: tuple[str, ...]
    relative_entropy: float | None


@dataclass(frozen=True)
class AttentionStatistics:
    """What the attentions of a model have done over a data set.

    Attributes:
        model: the model's class.
        layers: in order of first execution.
        not_run: layers that the data did not reach.
        batches, samples: of the data.
    """

    model: str
    layers: tuple[LayerAttention, ...]
    not_run: tuple[str, ...]
    batches: int
    samples: int

    def by_resolution(self) -> tuple[ResolutionAttention, ...]:
        """The layers grouped by the spatial size of their inputs, the largest first."""
        groups: dict[tuple[int, ...], list[tuple[str, KernelUse]]] = {}
        for layer in self.layers:
            for use in layer.sizes:
                groups.setdefault(use.size, []).append((layer.name, use))
        found = []
        for size in sorted(groups, key=_by_size):
            known = [use.relative_entropy for _, use in groups[size] if use.relative_entropy is not None]
            mean = sum(known) / len(known) if known else None
            found.append(ResolutionAttention(size, tuple(name for name, _ in groups[size]), mean))
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with the version of their form under ``"version"``, and `by_resolution`."""
        groups = [asdict(group) for group in self.by_resolution()]
        return {"version": STATISTICS_VERSION, **asdict(self), "by_resolution": groups}

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: Any) -> AttentionStatistics:
        """The inverse of `to_dict`, for data of any origin.

        Raises:
            ConvswapError: if the data is no statistics, or of a version that is not known.
        """
        if not isinstance(data, Mapping) or data.get("version") != STATISTICS_VERSION:
            raise ConvswapError(f"these are no attention statistics of version {STATISTICS_VERSION}")
        try:
            values = {name: value for name, value in data.items() if name not in ("version", "by_resolution")}
            if not data["layers"]:
                raise ValueError("there are no layers")
            return checked(cls(**{**values, "layers": tuple(map(_layer_from, data["layers"]))}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConvswapError(f"the attention statistics are damaged ({type(error).__name__}: {error})") from error

    def _repr_html_(self) -> str:
        from .report_html import attention_fragment

        return attention_fragment(self)

    def __rich__(self) -> Any:
        from .attention_rich import to_rich

        return to_rich(self)

    def __str__(self) -> str:
        from .attention_rich import to_text

        return to_text(self)


def attention_statistics(model: nn.Module, loader: Batches) -> AttentionStatistics:
    """Run ``model`` over a data set and see what the attentions of its layers do.

    It runs in evaluation mode, without gradients; modes and random generators are as before afterwards. A layer that is
    called several times in a pass is counted at each call.

    Args:
        model: a model with dynamic, CondConv or ODConv layers; it may be wrapped or compiled.
        loader: one tensor, or any iterable of batches: tensors, tuples or lists that start with the model's input (the
            rest, such as labels, is left alone), or dicts of keyword arguments.

    Raises:
        ConvswapError: if there is no such layer, none is reached, an attention is not finite, there are no samples, or
            the model does not run on a batch.
        TypeError: if ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    inner = unwrapped(model)
    layers = attended_layers(inner)
    if not layers:
        raise ConvswapError(
            f"{type(inner).__name__} has no layer that attends to kernels: convert it to dynamic, condconv or odconv"
        )
    notes: dict[str, _Notes] = {}
    runner = BatchRunner(inner, loader)

    def note(name: str, size: tuple[int, ...], attentions: Mapping[str, Tensor]) -> None:
        notes.setdefault(name, _Notes()).add(size, attentions)

    with watching_attentions(runner, layers, note):
        runner.run()
    if not notes:
        raise ConvswapError(f"no layer that attends to kernels was reached by the data: {', '.join(layers)}")
    return AttentionStatistics(
        model=type(inner).__name__,
        layers=tuple(found.summary(name, type(layers[name]).__name__) for name, found in notes.items()),
        not_run=tuple(name for name in layers if name not in notes),
        batches=runner.batches,
        samples=runner.samples,
    )


def attended_layers(model: nn.Module) -> dict[str, AttendedConv]:
    """The layers of ``model`` that attend to kernels, by their first qualified names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AttendedConv)}


class _Notes:
    """What has been seen of one layer."""

    def __init__(self) -> None:
        self.kernels: dict[tuple[int, ...], Moments] = {}
        self.entropies: dict[tuple[int, ...], Moments] = {}
        self.whole, self.entropy = Moments(), Moments()
        self.gates: dict[str, Moments] = {}

    def add(self, size: tuple[int, ...], attentions: Mapping[str, Tensor]) -> None:
        gates = {name: value for name, value in attentions.items() if name != "kernel"}
        kernel = attentions.get("kernel")
        if kernel is None:  # of a single one, which counts whole
            kernel = torch.ones_like(next(iter(gates.values()))[:, :1])
        kernel = kernel.detach().to("cpu").double()
        entropy = _entropy(kernel)
        for moments, value in (
            (self.whole, kernel),
            (self.entropy, entropy),
            (self.kernels.setdefault(size, Moments()), kernel),
            (self.entropies.setdefault(size, Moments()), entropy),
        ):
            moments.add(value)
        for name, value in gates.items():
            self.gates.setdefault(name, Moments()).add(value)

    def summary(self, name: str, kind: str) -> LayerAttention:
        sizes = tuple(
            _use(size, self.kernels[size], self.entropies[size]) for size in sorted(self.kernels, key=_by_size)
        )
        gates = tuple(_gate(gate, moments) for gate, moments in self.gates.items())
        return LayerAttention(name, kind, _use((), self.whole, self.entropy), sizes, gates)


def _entropy(attention: Tensor) -> Tensor:
    """(B): of each row's shares. A row of zeros has none, and counts as equal shares."""
    total = attention.sum(1, keepdim=True)
    shares = torch.where(total > 0, attention / total, torch.full_like(attention, 1 / attention.shape[1]))
    return -torch.xlogy(shares, shares).sum(1)


def _use(size: tuple[int, ...], kernel: Moments, entropy: Moments) -> KernelUse:
    return KernelUse(
        size,
        kernel.count,
        tuple(kernel.mean.reshape(-1).tolist()),
        tuple(kernel.spread.reshape(-1).tolist()),
        max(0.0, entropy.mean.item()),
    )


def _gate(name: str, moments: Moments) -> GateUse:
    variance = moments.spread.square().mean()
    spread = (variance + moments.mean.var(correction=0)).sqrt()
    return GateUse(name, moments.mean.mean().item(), spread.item(), variance.sqrt().item())


def _by_size(size: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    return -math.prod(size), size


def _layer_from(data: Any) -> LayerAttention:
    if not data["sizes"]:
        raise ValueError("there are no sizes")
    made = LayerAttention(
        data["name"],
        data["kind"],
        _use_from(data["whole"]),
        tuple(map(_use_from, data["sizes"])),
        tuple(checked(GateUse(**gate)) for gate in data["gates"]),
    )
    return checked(made)


def _use_from(data: Any) -> KernelUse:
    made = checked(KernelUse(**data))
    if not made.mean or len(made.mean) != len(made.spread):
        raise ValueError("there must be a mean and a spread of each kernel")
    if not all(map(math.isfinite, (*made.mean, *made.spread, made.entropy))):
        raise ValueError("there is a number that is not finite")
    return made
