"""What trained networks see in photos when their zero padding is replaced, without any training.

Both networks were trained with zeros around every map. Each other padding is a change that they have not been prepared
for, which tells how much they lean on the border: the larger the order of the extrapolation, the more noise of the
feature maps is amplified there, layer by layer (`convswap.verify` says by how much activations grow). Fine-tune after a
conversion like this one. Run with ``python -m examples.padded_photos``.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights

import convswap
from convswap.input_files import read_input

from . import networks
from .samples import PHOTOS, photo

NETWORKS = {"mobilenet_v2": networks.mobilenet_v2, "efficientnet_lite0": networks.efficientnet_lite0}

CONVERSIONS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "padding_free, order 0": ("padding_free", {"order": 0}),
    "padding_free, order 1": ("padding_free", {"order": 1}),
    "padding_free, order 2": ("padding_free", {"order": 2}),
    "extrapolated": ("extrapolated", {}),
    "partial": ("partial", {}),
    "random_pad": ("random_pad", {}),
    "explicit_boundary": ("explicit_boundary", {}),
}


class Outcome(NamedTuple):
    """What one network makes of the photos with one padding.

    Attributes:
        padding: what the convolutions were converted to; "original" for none.
        seen: category and probability for each photo.
        layers: convolutions converted.
        growth: the most that the greatest activation of a layer has grown.
        interior_error: greatest relative error of a layer where its window lies within the image.
    """

    padding: str
    seen: tuple[tuple[str, float], ...]
    layers: int = 0
    growth: float = 1.0
    interior_error: float = 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="python -m examples.padded_photos")
    parser.add_argument("--network", choices=NETWORKS, action="append", help="which (default: both)")
    parser.add_argument("--photo", choices=PHOTOS, action="append", help="which (default: all)")
    given = parser.parse_args(arguments)
    photos = given.photo or list(PHOTOS)
    for name in given.network or NETWORKS:
        Console().print(_table(name, photos, outcomes(NETWORKS[name](), photos)))


@torch.no_grad()
def outcomes(model: nn.Module, photos: Sequence[str]) -> Iterator[Outcome]:
    """What a model sees in photos as it is, and with each other padding."""
    batch = torch.cat([read_input(model, photo(name)) for name in photos])
    yield Outcome("original", _seen(model(batch)))
    for words, (to, options) in CONVERSIONS.items():
        torch.manual_seed(0)  # of the random padding
        new = convswap.convert(model, to, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the growth that it warns of is in the table
            checks = convswap.verify(model, new, batch).layers
        growth = max(check.growth or 0.0 for check in checks)
        yield Outcome(words, _seen(new(batch)), len(checks), growth, max(check.relative_error for check in checks))


def _seen(logits: Tensor) -> tuple[tuple[str, float], ...]:
    categories = MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    best = logits.softmax(1).max(1)
    return tuple((categories[int(i)], float(p)) for p, i in zip(best.values, best.indices, strict=True))


def _table(network: str, photos: Sequence[str], rows: Iterator[Outcome]) -> Table:
    """Nothing in it is cut off where it is narrow: names are broken between words, categories where they must be."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("padding", width=max(len(word) for name in CONVERSIONS for word in name.split()))
    for name in photos:
        table.add_column(name, overflow="fold")
    for heading in ("interior error", "growth"):
        table.add_column(heading, width=len(heading.split()[0]))
    for row in rows:
        converted = [f"{row.interior_error:.0e}", f"{row.growth:.3g}"] if row.layers else []
        table.title = f"\n{network}" + (f", {row.layers} convolutions converted" if row.layers else "")
        table.add_row(row.padding, *(f"{what} ({how:.0%})" for what, how in row.seen), *converted)
    return table


if __name__ == "__main__":
    main()
