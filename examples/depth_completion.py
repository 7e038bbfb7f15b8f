"""Complete sparse depth: the kernels that spread it are generated from the photo (Tang et al. 2019, arXiv 1908.01238).

A small encoder–decoder gets a photo and the depth of 5 % of its pixels. It is trained twice from the same start, with
the same crops and learning rate: as it is, which is to concatenate the features of photo and depth, and with three
convolutions of its depth branch converted so that the photo's features guide them as well. That takes further
parameters; ``--wider`` also trains a plain net that has about as many. `examples.depth_scenes` makes the crops, of the
sample photos, with synthetic depth. Run with ``python -m examples.depth_completion``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.utils import save_image

import convswap
from convswap import Swap

from .depth_scenes import PARTS, Batch, Scenes, rough_depth

LEARNING_RATE = 5e-3
"""The best of 2.5e-3, 5e-3 and 1e-2 for the plain net, on validation crops; the guided one is trained with it too."""

WIDER = 26
"""Channels of the photo's branch with which a plain net has about as many parameters as the guided one."""


def dense(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A convolution and a leaky ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(0.1))


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A depthwise convolution, a 1×1 convolution and a leaky ReLU."""
    depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(inputs, outputs, 1), nn.LeakyReLU(0.1))


class CompletionNet(nn.Module):
    """A branch for the photo and one for depth, which corrects the rough depth that it is given."""

    def __init__(self, colour: int = 16, channels: int = 8) -> None:
        super().__init__()
        self.rgb1 = dense(3, colour)
        self.rgb2 = dense(colour, colour, stride=2)
        self.rgb3 = dense(2 * colour, colour)
        self.depth1 = dense(3 + colour, channels)
        self.depth2 = separable(channels, channels, stride=2)
        self.depth3 = separable(channels + colour, channels)
        self.depth4 = separable(2 * channels + colour, channels)
        self.head = nn.Conv2d(channels + 3, 1, 5, padding=4, dilation=2)

    def forward(self, rgb: Tensor, rough: Tensor, samples: Tensor) -> Tensor:
        """Depth from a photo (B, 3, H, W), rough depth (B, 1, H, W) and what `inputs` tells of the samples."""
        rgb1 = self.rgb1(rgb)
        rgb2 = self.rgb2(rgb1)
        rgb3 = self.rgb3(torch.cat([rgb1, F.interpolate(rgb2, scale_factor=2.0)], 1))
        depth1 = self.depth1(torch.cat([samples, rgb1], 1))
        depth3 = self.depth3(torch.cat([self.depth2(depth1), rgb2], 1))
        depth4 = self.depth4(torch.cat([depth1, F.interpolate(depth3, scale_factor=2.0), rgb3], 1))
        correction: Tensor = self.head(torch.cat([depth4, samples], 1))
        return rough + correction


def inputs(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What a net gets: photo, rough depth, and in three channels its contrast, the deviation of samples, their mask."""
    rough = rough_depth(batch.sparse, batch.mask)
    contrast = rough - F.avg_pool2d(F.pad(rough, (8, 8, 8, 8), mode="replicate"), 17, 1)
    return (batch.rgb - 0.5) / 0.25, rough, torch.cat([contrast, (batch.sparse - rough) * batch.mask, batch.mask], 1)


def guided(net: nn.Module, batch: Batch, hidden: int = 16) -> nn.Module:
    """The same net with the photo's features guiding its depth branch; its function is the same until it is trained."""
    rules = [
        Swap("depth3.0", "guided_channelwise", guide="rgb2", hidden=hidden),
        Swap("depth4.0", "guided_channelwise", guide="rgb3", hidden=hidden),
        Swap("head", "guided_local", guide="rgb3", hidden=hidden),
    ]
    return convswap.convert(net, rules, example_inputs=inputs(batch))


def train(net: nn.Module, scenes: Scenes, args: argparse.Namespace, seed: int) -> None:
    """Train on crops that depend on the seed alone, so that all nets see the same ones."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), args.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.steps, pct_start=0.1)
    for _ in range(args.steps):
        batch = scenes.draw("training", args.batch, args.size, args.density, generator)
        loss = F.smooth_l1_loss(net(*inputs(batch)), batch.depth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


class Errors(NamedTuple):
    """Root of the mean squared and mean absolute error in metres, over all pixels."""

    rmse: float
    mae: float


@torch.no_grad()
def errors(net: nn.Module, batches: Sequence[Batch]) -> Errors:
    """Errors of a net over some batches."""
    return errors_of([net(*inputs(batch)) for batch in batches], batches)


def errors_of(predicted: Sequence[Tensor], batches: Sequence[Batch]) -> Errors:
    difference = torch.cat([p - batch.depth for p, batch in zip(predicted, batches, strict=True)])
    return Errors(difference.square().mean().sqrt().item(), difference.abs().mean().item())


def main(argv: Sequence[str] | None = None) -> dict[str, list[Errors]]:
    """Train both nets from several seeds, and print and return their errors on the held-out crops."""
    args = _arguments(argv)
    scenes, console = Scenes(), Console()
    generator = torch.Generator().manual_seed(0)
    sizes = [min(64, args.held_out - start) for start in range(0, args.held_out, 64)]
    batches = [scenes.draw(args.part, crops, args.size, args.density, generator) for crops in sizes]
    found = {"rough depth": [errors_of([rough_depth(b.sparse, b.mask) for b in batches], batches)]}
    parameters, seconds = {"rough depth": 0}, {"rough depth": 0.0}
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        plain = CompletionNet()
        nets = {"plain": plain, "guided": guided(plain, batches[0])}
        if args.wider:
            nets["plain, wider"] = CompletionNet(colour=WIDER)
        for name, net in nets.items():
            before, start = errors(net, batches), time.perf_counter()
            train(net, scenes, args, seed)
            seconds[name] = seconds.get(name, 0) + time.perf_counter() - start
            after = errors(net, batches)
            found.setdefault(name, []).append(after)
            parameters[name] = sum(p.numel() for p in net.parameters())
            console.print(f"seed {seed}, {name}: RMSE {before.rmse:.4f} m untrained, {after.rmse:.4f} m trained")
        if args.picture is not None and seed == 0:
            save_picture(args.picture, nets, batches[0])
    table = Table("net", "parameters", "RMSE (m)", "MAE (m)", "training (s)", box=None)
    table.title = f"\n{args.held_out} held-out crops; mean ± deviation over {args.seeds} seeds"
    for name, values in found.items():
        rmse, mae = (_mean_and_spread([value[i] for value in values]) for i in (0, 1))
        table.add_row(name, f"{parameters[name]:,}", rmse, mae, f"{seconds[name] / len(values):.0f}")
    console.print(table)
    return found


@torch.no_grad()
def save_picture(path: Path, nets: dict[str, nn.Module], batch: Batch) -> None:
    """A row of crops for each of: photo, samples, truth, plain, guided."""
    few = Batch(*(value[:8] for value in batch))
    depths = [few.sparse, few.depth, *(net(*inputs(few)) for net in nets.values())]
    rows = [few.rgb, *((depth / 9).clamp(0, 1).expand(-1, 3, -1, -1) for depth in depths)]
    save_image(F.interpolate(torch.cat(rows), scale_factor=4.0), path, nrow=len(few.rgb))


def _mean_and_spread(values: Sequence[float]) -> str:
    numbers = torch.tensor(values)
    return f"{numbers.mean():.3f}" + (f" ± {numbers.std():.3f}" if len(values) > 1 else "")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200, help="of training")
    parser.add_argument("--seeds", type=int, default=3, help="how many starts to train from")
    parser.add_argument("--size", type=int, default=32, help="of the crops in pixels, an even number")
    parser.add_argument("--batch", type=int, default=8, help="crops in a step")
    parser.add_argument("--density", type=float, default=0.05, help="share of the pixels whose depth is given")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="the highest, of both nets")
    parser.add_argument("--part", choices=[*PARTS], default="test", help="of the photos, that errors are measured on")
    parser.add_argument("--held-out", type=int, default=512, help="crops that errors are measured on")
    parser.add_argument("--wider", action="store_true", help="train a third net, plain and of more channels")
    parser.add_argument("--picture", type=Path, help="file for a picture of what the nets make of some crops")
    args = parser.parse_args(argv)
    if args.size % 2:
        parser.error(f"--size must be even, got {args.size}: the net halves and doubles it")
    return args


if __name__ == "__main__":
    main()
