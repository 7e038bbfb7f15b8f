"""Attention statistics in words and rows of text, for every form they are read in."""

from __future__ import annotations

from .attention_statistics import AttentionStatistics, KernelUse, LayerAttention
from .formatting import shorten

COLUMNS = ("layer", "kind", "input", "samples", "mean attention", "spread", "entropy", "of log K", "gates")
RESOLUTION_COLUMNS = ("input", "layers", "entropy, of log K")

MOST_KERNELS = 8
"""Kernels that are listed one by one."""


def headline(statistics: AttentionStatistics) -> str:
    """One line that says what was looked at."""
    return (
        f"{statistics.model}: attention of {len(statistics.layers)} layers over {statistics.samples} samples in "
        f"{statistics.batches} {'batch' if statistics.batches == 1 else 'batches'}"
    )


def remarks(statistics: AttentionStatistics) -> list[str]:
    """What must be known to read the numbers, in sentences."""
    found = ["entropy is in nats, the mean over samples; log K is that of equal weights"]
    if any(layer.kind.startswith("CondConv") for layer in statistics.layers):
        found.append(
            "CondConv's sigmoids do not sum to 1: their entropy is that of the attentions divided by their sum"
        )
    if statistics.not_run:
        found.append(f"not reached by the data: {shorten(list(statistics.not_run))}")
    return found


def rows(statistics: AttentionStatistics) -> list[tuple[str, ...]]:
    """A row for each layer, and where its inputs are of several sizes one for each; see `COLUMNS`.

    The spread is that of the kernel that has the greatest.
    """
    found: list[tuple[str, ...]] = []
    for layer in statistics.layers:
        single = len(layer.sizes) == 1
        name = layer.name or "(the model)"
        found.append((name, layer.kind, *_use(layer.sizes[0] if single else layer.whole), _gates(layer)))
        if not single:
            found += [("", "", *_use(use), "") for use in layer.sizes]
    return found


def resolution_rows(statistics: AttentionStatistics) -> list[tuple[str, ...]]:
    """A row for each spatial size; see `RESOLUTION_COLUMNS`."""
    return [
        (size(group.size), shorten([name or "(the model)" for name in group.layers]), _fraction(group.relative_entropy))
        for group in statistics.by_resolution()
    ]


def size(values: tuple[int, ...]) -> str:
    """A spatial size; of no axes, that of inputs of several sizes."""
    return "×".join(map(str, values)) or "all"


def _use(use: KernelUse) -> tuple[str, ...]:
    spread = f"{max(use.spread):.3f}"
    return (
        size(use.size),
        str(use.samples),
        _means(use),
        spread,
        f"{use.entropy:.3f}",
        _fraction(use.relative_entropy),
    )


def _means(use: KernelUse) -> str:
    if len(use.mean) <= MOST_KERNELS:
        return " ".join(f"{mean:.3f}" for mean in use.mean)
    return f"{len(use.mean)} kernels, {min(use.mean):.3f} to {max(use.mean):.3f}"


def _gates(layer: LayerAttention) -> str:
    return ", ".join(f"{gate.gate} {gate.mean:.2f}±{gate.spread:.2f}" for gate in layer.gates)


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
