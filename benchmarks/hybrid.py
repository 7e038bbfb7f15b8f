"""Convolution with a kernel predicted for each patch against the published way: ``python -m benchmarks.hybrid``.

Published is: cut out all patches, then for each output run its predictor on them, built of ``nn.Linear``, ``torch.pow``
and ``nn.BatchNorm1d``, and take the mean product. The floor is what the matrix products alone need at the rate of a
large one. Memory is what is allocated at a time beside what there was, kept results included.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from convswap.layers import HybridDense, PatchDynamicConv2d

from .timing import forward_and_backward, table_row, times

COLUMNS = [
    "layer", "pass", "published, ms", "ours, ms", "products alone, ms", "published ÷ ours",
    "published, MB", "ours, MB", "published ÷ ours",
]  # fmt: skip


def rows(rounds: int = 5) -> Iterator[str]:
    """The table in Markdown, line by line."""
    yield table_row(COLUMNS)
    yield table_row(["---"] * 2 + ["---:"] * 7)
    for batch, layer, size in (
        (1, PatchDynamicConv2d(3, 4, 8, stride=8, hidden=512), 224),
        (4, PatchDynamicConv2d(3, 4, 8, stride=8, hidden=512), 224),
        (1, PatchDynamicConv2d(3, 4, 8, stride=8), 224),
        (1, PatchDynamicConv2d(4, 192, 2, padding="same"), 28),
        (1, PatchDynamicConv2d(64, 64, 3, padding=1), 56),
    ):
        _vary(layer)
        published = _Published(layer)
        x = torch.randn(batch, layer.in_channels, size, size)
        each = f"{layer.in_channels}→{layer.out_channels} {layer.kernel_size[0]}×{layer.kernel_size[1]}"
        name = f"{each}, hidden {layer.hidden}, on {batch}×{size}²"
        yield from _compared(name, layer, published, x, rounds)


def _compared(name: str, layer: nn.Module, published: nn.Module, x: Tensor, rounds: int) -> Iterator[str]:
    for evaluated in (True, False):
        runs: dict[str, Callable[[], object]] = {}
        for key, module in (("published", published), ("ours", layer)):
            module.train(not evaluated)
            if evaluated:
                runs[key] = partial(_evaluated, module, x)
            else:
                runs[key] = forward_and_backward(partial(module, x), list(module.parameters()))
        with FlopCounterMode(display=False) as counter:
            runs["published"]()
        taken = times({**runs, "product": _product}, rounds)
        floor = counter.get_total_flops() * taken["product"] / _PRODUCT_FLOPS
        milliseconds = [f"{1e3 * value:.1f}" for value in (taken["published"], taken["ours"], floor)]
        peaks = {key: peak_bytes(run) for key, run in runs.items()}
        megabytes = [f"{peaks[key] / 1e6:.1f}" for key in ("published", "ours")]
        ratios = [f"{one['published'] / one['ours']:.1f}" for one in (taken, peaks)]
        which = "evaluation" if evaluated else "training, fwd + bwd"
        yield table_row([name, which, *milliseconds, ratios[0], *megabytes, ratios[1]])


@torch.no_grad()
def _evaluated(module: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = module(x)
    return y


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes of tensors that are made and held at a time while something runs, its result included."""
    with _Held() as held:
        kept = run()
    del kept
    return int(held.peak)


class _Held(TorchDispatchMode):
    """Counts the bytes of tensors from when an operation returns them until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {value.untyped_storage()._cdata for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in given:
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return

        def freed(_: object) -> None:
            self.now -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


_SIDE = 1024
_PRODUCT_FLOPS = 2 * _SIDE**3
_FACTOR = torch.randn(_SIDE, _SIDE)


def _product() -> Tensor:
    return _FACTOR @ _FACTOR


def _vary(layer: PatchDynamicConv2d) -> None:
    """Powers and statistics as after some training, not 1 and 0."""
    for name, value in layer.predictors.state_dict().items():
        if name.endswith(("powers", "running_var")):
            nn.init.uniform_(value, 0.5, 1.5)


class _Published(nn.Module):
    """A loop over the predictors of a layer, whose parameters are copied, on patches that are cut out."""

    def __init__(self, ours: PatchDynamicConv2d) -> None:
        super().__init__()
        features, hidden = ours.predictors.features, ours.hidden
        self.similar_conv = ours.similar_conv
        self.padding: Any = ours.padding
        self.predictors = nn.ModuleList(
            nn.Sequential(
                _PlainDense(features, hidden),
                nn.BatchNorm1d(hidden),
                _PlainDense(hidden, hidden),
                nn.BatchNorm1d(hidden),
                nn.Linear(hidden, features),
            )
            for _ in range(ours.out_channels)
        )
        self.load_state_dict(ours.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        conv = self.similar_conv
        y: Tensor = conv(x)
        if self.padding == "same":
            x = F.pad(x, (0, conv.kernel_size[1] - 1, 0, conv.kernel_size[0] - 1))
        amounts = 0 if self.padding == "same" else self.padding
        patches = F.unfold(x, conv.kernel_size, 1, amounts, conv.stride).mT.flatten(0, 1)
        outputs = [(predictor(patches) * patches).mean(1) for predictor in self.predictors]
        return y + torch.stack(outputs, 1).view(x.shape[0], *y.shape[2:], -1).permute(0, 3, 1, 2)


class _PlainDense(HybridDense):
    def forward(self, input: Tensor) -> Tensor:
        z = F.linear(input, self.weight, self.bias)
        h = self.muls * torch.pow(z.relu() + 1e-8, self.powers.clip(-10, 10))
        return torch.copysign(h.nan_to_num(), z)


def main() -> None:
    torch.set_num_threads(1)
    for row in rows():
        print(row, flush=True)


if __name__ == "__main__":
    main()
