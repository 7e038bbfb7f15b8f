"""Compress photos 48 times: an autoencoder whose kernels are predicted for each patch (Keep-up-sharma, Dynamic-Layers).

Its encoder makes 4 numbers of each 8×8 patch of an RGB photo, its decoder an 8×8 patch of each 2×2 of these. It is
trained on crops of the sample photos, and so is one of plain convolutions, from the same ones and with the same crops.
Both are compared on other columns of the same photos, next to what takes no training: the mean colour of each patch.
Run with ``python -m examples.autoencoder``; it writes a picture of originals and reconstructions.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor
from torchvision.utils import save_image

from convswap.layers.hybrid import Autoencoder

from .arguments import count
from .depth_scenes import PARTS
from .samples import PHOTOS, photo

PATCH = 8
HEIGHT = 256

LEARNING_RATES = {"plain convolutions": 2e-2, "kernels for each patch": 1e-2}
"""The highest: of 5e-3, 1e-2, 2e-2 and 4e-2 the plain net's best, and of 5e-3 and 1e-2 the other's, on validation."""


def read_photos() -> list[Tensor]:
    """The sample photos (3, 256, W) in [0, 1]."""
    return [_read(photo(name)) for name in PHOTOS]


def draw(photos: Sequence[Tensor], part: str, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Random crops (count, 3, size, size) of a part of the photos: of columns that no other part has."""
    crops = []
    for i in torch.randint(len(photos), (count,), generator=generator).tolist():
        _, rows, width = photos[i].shape
        start, stop = (int(width * end) for end in PARTS[part])
        y = int(torch.randint(rows - size + 1, (), generator=generator))
        x = int(torch.randint(start, stop - size + 1, (), generator=generator))
        crops.append(photos[i][:, y : y + size, x : x + size])
    return torch.stack(crops)


def plain_of(net: Autoencoder) -> nn.Sequential:
    """An autoencoder of plain convolutions: those that the layers of another one add what they predict to."""
    first, last = copy.deepcopy((net.encoder.c1.similar_conv, net.decoder.c1.similar_conv))
    # padding="same" for a kernel of even size, on which PyTorch's own convolution prints a warning
    second = nn.Conv2d(last.in_channels, last.out_channels, last.kernel_size)
    second.weight, second.bias = last.weight, last.bias
    return nn.Sequential(first, nn.ZeroPad2d((0, 1, 0, 1)), second, nn.PixelShuffle(PATCH))


def patch_means(images: Tensor) -> Tensor:
    """Each patch's mean colour, 3 numbers, in all of the patch."""
    return F.interpolate(F.avg_pool2d(images, PATCH), scale_factor=float(PATCH))


def train(
    net: nn.Module, photos: Sequence[Tensor], steps: int, learning_rate: float, batch: int, size: int, seed: int
) -> list[float]:
    """Train on crops that depend on the seed alone, and return the mean squared error of each step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), learning_rate)
    rising = max(0.1, 3 / (steps + 3))  # a tenth of the steps, but never just one: torch divides by one less
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=rising)
    losses = []
    net.train()
    for _ in range(steps):
        crops = draw(photos, "training", batch, size, generator)
        loss = F.mse_loss(net(crops), crops)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def error(reconstruct: Callable[[Tensor], Tensor], crops: Tensor) -> float:
    """Root of the mean squared error, in levels of 0 to 255."""
    squared = torch.cat([(reconstruct(some) - some).square().flatten() for some in crops.split(32)])
    return 255 * squared.mean().sqrt().item()


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train both autoencoders, write the picture, and print and return the errors on held-out crops."""
    args = _arguments(argv)
    photos, console = read_photos(), Console()
    held_out = draw(photos, args.part, args.held_out, args.size, torch.Generator().manual_seed(0))
    torch.manual_seed(args.seed)
    net = Autoencoder(patch=PATCH, hidden=args.hidden)
    nets: dict[str, nn.Module] = dict(zip(LEARNING_RATES, (plain_of(net), net), strict=True))
    errors = {"mean colour of each patch": error(patch_means, held_out)}
    table = Table("reconstruction", "parameters", "training (s)", "RMSE (of 255)", "PSNR (dB)", box=None)
    table.add_row(*errors, "", "", *_error_and_psnr(*errors.values()))
    for name, each in nets.items():
        start = time.perf_counter()
        losses = train(each, photos, args.steps, LEARNING_RATES[name], args.batch, args.size, args.seed)
        seconds = time.perf_counter() - start
        console.print(f"{name}: mean squared error {_ends(losses)}")
        errors[name] = error(each.eval(), held_out)
        parameters = sum(parameter.numel() for parameter in each.parameters())
        table.add_row(name, f"{parameters:,}", f"{seconds:.0f}", *_error_and_psnr(errors[name]))
    table.title = f"\n{args.held_out} held-out crops"
    console.print(table)
    save_picture(args.picture, held_out[: args.shown], [patch_means, *nets.values()])
    console.print(f"{args.picture} shows originals, and below them the reconstructions in this order")
    return errors


def _error_and_psnr(rmse: float) -> tuple[str, str]:
    return f"{rmse:.2f}", f"{20 * math.log10(255 / rmse):.2f}"


def _ends(losses: Sequence[float]) -> str:
    few = max(1, len(losses) // 20)
    first, last = (sum(part) / few for part in (losses[:few], losses[-few:]))
    return f"{first:.4f} in the first {few} steps, {last:.4f} in the last"


@torch.no_grad()
def save_picture(path: Path, crops: Tensor, reconstructions: Sequence[Callable[[Tensor], Tensor]]) -> None:
    """A row of crops, and below it a row for each reconstruction."""
    rows = [crops, *(reconstruct(crops) for reconstruct in reconstructions)]
    save_image(F.interpolate(torch.cat(rows).clamp(0, 1), scale_factor=2.0), path, nrow=len(crops))


def _read(path: Path) -> Tensor:
    with Image.open(path) as image:
        width = round(image.width * HEIGHT / image.height)
        small = image.convert("RGB").resize((width, HEIGHT), Image.Resampling.BOX)
    rgb: Tensor = pil_to_tensor(small)
    return rgb / 255


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=count, default=1000, help="of training")
    parser.add_argument("--size", type=count, default=64, help="of the crops in pixels, a multiple of 8")
    parser.add_argument("--batch", type=count, default=8, help="crops in a step")
    parser.add_argument("--hidden", type=count, default=16, help="units of the nets that predict kernels")
    parser.add_argument("--part", choices=[*PARTS], default="test", help="of the photos, that errors are measured on")
    parser.add_argument("--held-out", type=count, default=256, help="crops that errors are measured on")
    parser.add_argument("--shown", type=count, default=8, help="how many of them the picture shows")
    parser.add_argument("--picture", type=Path, default=Path("autoencoder.png"), help="file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the start and of the crops")
    args = parser.parse_args(argv)
    largest = HEIGHT // 4  # the test part of a photo that is as wide as it is high
    if args.size % PATCH or not PATCH <= args.size <= largest:
        parser.error(f"--size must be a multiple of {PATCH} and at most {largest}, got {args.size}")
    if not args.picture.parent.is_dir():
        parser.error(f"--picture: there is no folder {args.picture.parent}")
    return args


if __name__ == "__main__":
    main()
