"""The corner of a photo as filters see it whose border is treated in each way, and how far that is from the truth."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from convswap.border_errors import MARGIN, ORDERS
from convswap.border_methods import Border, borders, filters
from convswap.border_words import method_words

ZOOM = 4
GAP, LABEL, HEADER = 6, 190, 58
"""Pixels between the panels, for the names on the left, and for what stands above."""


WORDS = {"gaussian": "Gaussian", "sobel": "Sobel, across", "laplacian": "Laplacian"}


def picture(photos: Mapping[str, Tensor], corner: int) -> Image.Image:
    """A row for each way to treat the border, and for each photo (C, H, W) and filter two panels: output and error.

    Above them is the truth. Errors are red where an output is too large and blue where it is too small; colours are at
    their deepest where replicate is at its worst.
    """
    panels = {title: _panels(image.mean(0), corner) for title, image in photos.items()}
    names = [*next(iter(next(iter(panels.values())).values()))]
    side = corner * ZOOM + GAP
    columns = 2 * sum(map(len, panels.values()))
    page = Image.new("RGB", (LABEL + columns * side + GAP, HEADER + len(names) * side), "white")
    pen, font, small = ImageDraw.Draw(page), ImageFont.load_default(15), ImageFont.load_default(13)
    for row, name in enumerate(names):
        words = method_words(name).replace("−", "-")  # which the font has
        pen.text((GAP, HEADER + row * side + side // 2), words, "black", font, anchor="lm")
    x = LABEL
    for title, of_photo in panels.items():
        pen.text((x, 8), title, "black", font)
        for filter_name, rows in of_photo.items():
            pen.text((x, 32), f"{WORDS[filter_name]}, and its error", "black", small)
            for row, name in enumerate(names):
                for place, panel in enumerate(rows[name]):
                    corner_at = (x + place * side, HEADER + row * side)
                    page.paste(panel, corner_at)
                    pen.rectangle((*corner_at, *(at + corner * ZOOM - 1 for at in corner_at)), outline="lightgrey")
            x += 2 * side
    return page


def _panels(image: Tensor, corner: int) -> dict[str, dict[str, list[Image.Image]]]:
    """For each filter, for the truth and for each method, what it gives in the upper left corner, and its error."""
    whole = image[None, None]
    found: dict[str, dict[str, list[Image.Image]]] = {}
    for name, kernel in filters().items():
        beyond = MARGIN - kernel.shape[-1] // 2
        end = MARGIN + corner + kernel.shape[-1] // 2
        truth = F.conv2d(whole[..., beyond:end, beyond:end], kernel)[0, 0]
        got = borders(whole[..., MARGIN:-MARGIN, MARGIN:-MARGIN], kernel, ORDERS, {}, seed=0)
        outputs = {method: _in_place(drawn[0], truth) for method, drawn in got.items()}
        worst = (outputs["replicate"] - truth).abs().max()
        low, high = (truth.min(), truth.max()) if name == "gaussian" else (-truth.abs().max(), truth.abs().max())
        grey = partial(_grey, low=low, high=high)
        found[name] = {"the truth": [_enlarged(grey(truth))]}
        for method, output in outputs.items():
            found[name][method] = [_enlarged(grey(output)), _enlarged(_red_and_blue((output - truth) / worst))]
    return found


def _in_place(border: Border, truth: Tensor) -> Tensor:
    """The corner with a method's outputs where windows cross the border: elsewhere all give the truth."""
    top, _, left, _ = (strip[0, 0] for strip in border)
    pad, corner = len(top), len(truth)
    output = truth.clone()
    output[:pad] = top[:, :corner]
    output[pad:, :pad] = left[: corner - pad]
    return output


def _grey(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Black for ``low``, white for ``high``."""
    return ((values - low) / (high - low)).expand(3, -1, -1)


def _red_and_blue(values: Tensor) -> Tensor:
    """Red from 0 to 1, blue from 0 to -1."""
    return torch.stack([1 + values.clamp(max=0), 1 - values.abs(), 1 - values.clamp(min=0)])


def _enlarged(levels: Tensor) -> Image.Image:
    small: Image.Image = to_pil_image(levels.clamp(0, 1).float())
    return small.resize((ZOOM * small.width, ZOOM * small.height), Image.Resampling.NEAREST)
