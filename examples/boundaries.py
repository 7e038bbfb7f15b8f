"""What each way to treat the border of a photo gets wrong there, and by how much padding-free convolution is better.

A photo is cropped, and the crop filtered with its border treated in each way; the truth is the whole photo filtered,
and then cropped. All is done twice: with the photo as it is, noise and all, and with the photo blurred before, as the
polynomials of padding-free convolution are made for smooth images. Then a network is converted, whose report shows the
same for the photo that it is verified on. Run with ``python -m examples.boundaries``; it writes a picture and the
report into a folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.models import mobilenet_v2
from torchvision.transforms.functional import pil_to_tensor

import convswap
from convswap.atomic import write_atomically, write_text
from convswap.border_errors import LEAST_SIZE, MARGIN, BorderErrors, FilterErrors, border_errors
from convswap.border_rich import table as error_table
from convswap.border_words import columns, filter_words

from .arguments import count, positive
from .boundary_pictures import picture
from .samples import PHOTOS, mobilenet_v2_checkpoint, photo

OTHERS = ("zeros", "reflect", "replicate", "circular", "partial", "random", "extrapolated")
"""What padding-free convolution is compared with."""

HEIGHT = 300
"""Rows that each of the photos has."""

LEAST_CORNER = 4
"""Pixels on each side of the corner that is drawn, at least."""

BLURS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Standard deviations, in pixels, for which is shown when padding-free convolution is the best."""


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, BorderErrors]]:
    """Print the tables, write the picture and the report, and return the errors: of each photo, raw and smooth."""
    args = _arguments(argv)
    console = Console()
    photos = {name: read_photo(photo(name), args.height) for name in args.photos}
    kinds = {
        kind: {name: blurred(image, deviation, reach(args.blur)) for name, image in photos.items()}
        for kind, deviation in (("raw", 0.0), ("smooth", args.blur))
    }
    found = {kind: {name: border_errors(image) for name, image in images.items()} for kind, images in kinds.items()}
    titles = {"raw": "as it is", "smooth": f"blurred by {args.blur:g} pixels"}
    for kind, errors in found.items():
        for name, of_photo in errors.items():
            console.print(f"\n[bold]{name}, {titles[kind]}: error at the border, relative to the true outputs there")
            console.print(error_table(of_photo), *verdict(of_photo), sep="\n")
    first = args.photos[0]
    console.print(blur_table(photos[first], first))

    args.folder.mkdir(exist_ok=True)
    shown = {f"{first}, {titles[kind]}": inner(kinds[kind][first]) for kind in ("smooth", "raw")}
    drawn = picture(shown, args.corner)
    write_atomically(args.folder / "boundaries.png", lambda path: drawn.save(path, format="PNG"), overwrite=True)
    write_text(args.folder / "report.html", network_report(photo(first), args.order), overwrite=True)
    console.print(
        f"\n{args.folder / 'boundaries.png'} shows a corner of the middle of {first}, as each filter sees it, ", end=""
    )
    console.print(f"{args.folder / 'report.html'} is the report of MobileNetV2 with padding-free layers")
    return found


def read_photo(path: Path, height: int) -> Tensor:
    """A photo (3, H, W) in [0, 1]: so many rows from its middle, and the columns that there are."""
    with Image.open(path) as image:
        pixels: Tensor = pil_to_tensor(image.convert("RGB"))
    start = max(0, pixels.shape[1] - height) // 2
    return pixels[:, start : start + height].double() / 255


def reach(deviation: float) -> int:
    """Pixels on each side that a blur takes in."""
    return round(4 * deviation)


def blurred(image: Tensor, deviation: float, cut: int) -> Tensor:
    """``image`` (C, H, W) blurred by a Gaussian, without so many pixels on each side, of which the blur needs some."""
    radius = reach(deviation)
    rest = cut - radius
    image = image[:, rest : image.shape[1] - rest, rest : image.shape[2] - rest]
    if radius == 0:
        return image
    at = torch.arange(-radius, radius + 1, dtype=image.dtype)
    weights = (-at.square() / (2 * deviation**2)).exp()
    kernel = (weights / weights.sum()).view(1, 1, 1, -1)
    for _ in range(2):  # along each axis, as the other is the last one then
        image = F.conv2d(image[:, None], kernel)[:, 0].mT
    return image


def inner(image: Tensor) -> Tensor:
    """The part of a photo whose upper left corner is well within it, where there is more to see."""
    return image[:, image.shape[1] // 4 :, image.shape[2] // 4 :]


def lead(each: FilterErrors) -> tuple[float, str]:
    """How many times less the error of padding-free is than that of the best of `OTHERS`, and which one that is."""
    errors = {method: each.error(method) for method in (*OTHERS, "padding_free")}
    known = {method: error for method, error in errors.items() if error is not None}
    own = known.pop("padding_free")
    best = min(known, key=known.__getitem__)
    return known[best] / own, best


def verdict(borders: BorderErrors) -> list[str]:
    """By how much padding-free is better or worse than the next best, for each filter, in words."""
    lines = []
    for each in borders.filters:
        times, best = lead(each)
        how_much = f"{times:.1f} times less than" if times > 1 else f"{1 / times:.1f} times more than"
        lines.append(f"{filter_words(each)}: padding-free of order k−1 errs {how_much} {best}, the best above it")
    return lines


def blur_table(image: Tensor, name: str) -> Table:
    """From which blur on padding-free is the best, and what is the best of the others."""
    title = (
        f"\n{name}: how many times less padding-free of order k−1 errs than the best of the others above it, by blur"
    )
    table = Table(box=None, title=title, title_justify="left", title_style="bold")
    table.add_column("blur (pixels)", justify="right")
    for deviation in BLURS:
        borders = border_errors(blurred(image, deviation, reach(max(BLURS))))
        if not table.rows:
            for column in columns(borders)[1:]:
                table.add_column(column)
        leads = [lead(each) for each in borders.filters]
        table.add_row(f"{deviation:g}", *(f"{times:.2f} ({best})" for times, best in leads))
    return table


def network_report(path: Path, order: int) -> str:
    """The page of a converted MobileNetV2, verified on a photo."""
    net = mobilenet_v2()
    net.load_state_dict(torch.load(mobilenet_v2_checkpoint(), weights_only=True))
    return convswap.report(convswap.convert(net, "padding_free", order=order, verify=path)).to_html()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("boundaries-out"), help="to write into")
    parser.add_argument("--photos", nargs="+", choices=[*PHOTOS], default=["cat", "coffee"], help="the first is drawn")
    parser.add_argument("--height", type=count, default=HEIGHT, help="rows of the photos that are used")
    parser.add_argument("--blur", type=positive, default=2.0, help="standard deviation in pixels, of the smooth photos")
    parser.add_argument("--corner", type=count, default=24, help="pixels on each side of the corner that is drawn")
    parser.add_argument("--order", type=int, default=1, choices=[0, 1, 2], help="of the network's padding-free layers")
    args = parser.parse_args(argv)
    least = 2 * (reach(max(args.blur, *BLURS)) + MARGIN) + max(LEAST_SIZE, 2 * args.corner)
    if args.corner < LEAST_CORNER:
        parser.error(f"--corner must be at least {LEAST_CORNER}, to show more than the border, got {args.corner}")
    if least > HEIGHT:
        parser.error(
            f"--blur {args.blur:g} and --corner {args.corner} take {least} rows, and photos have {HEIGHT}: lower them"
        )
    if not least <= args.height <= HEIGHT:
        parser.error(f"--height must be from {least}, for this blur and this corner, to {HEIGHT}, got {args.height}")
    if not args.folder.parent.is_dir():
        parser.error(f"there is no folder {args.folder.parent} to make {args.folder.name} in")
    if args.folder.exists() and not args.folder.is_dir():
        parser.error(f"{args.folder} is a file: give a folder to write into")
    return args


if __name__ == "__main__":
    main()
