"""Fine-tune a small net on digits: as it is, and with dynamic convolutions (Chen et al. 2020, arXiv 1912.03458).

For each of several seeds a net is trained for a few epochs, and then fine-tuned twice from there, with the same batches
and learning rate: unconverted, and with its convolutions converted to have four kernels each and attention over them.
`convswap.TemperatureSchedule` lowers the attention's temperature from epoch to epoch. `convswap.attention_statistics`
tells what comes of it: at first all kernels count alike for every digit, and the entropy of the attention is the
highest that there is; the lower it ends, the more a layer chooses. Run with ``python -m examples.finetune_digits``.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import convswap

from .arguments import count, positive
from .digits import PER_CLASS, Digits, distorted, parts_of, read_digits

KERNELS = 4

RATE_BEFORE = 5e-3
"""Learning rate before fine-tuning: a low one, which leaves both nets something to learn."""

LEARNING_RATE = 2e-2
"""The best of 5e-3, 1e-2 and 2e-2 for the unconverted net, on validation digits; the dynamic one is given it too."""


class DigitNet(nn.Module):
    """Four convolutions with batch norm, the mean over space and a linear map."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        wider, widest = 2 * channels, 4 * channels
        self.conv1, self.norm1 = _conv(1, channels), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = _conv(channels, wider, stride=2), nn.BatchNorm2d(wider)
        self.conv3, self.norm3 = _conv(wider, wider), nn.BatchNorm2d(wider)
        self.conv4, self.norm4 = _conv(wider, widest, stride=2), nn.BatchNorm2d(widest)
        self.head = nn.Linear(widest, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, 1, H, W)."""
        x = F.relu(self.norm1(self.conv1(images)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.conv3(x)))
        x = F.relu(self.norm4(self.conv4(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


def train(
    net: nn.Module,
    digits: Digits,
    epochs: int,
    learning_rate: float,
    batch: int,
    seed: int,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> list[float]:
    """Train on batches that depend on the seed alone, and return the mean loss of each epoch.

    ``after_epoch`` is called with the number of each epoch, from 1, when it is over.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * math.ceil(len(digits.labels) / batch)
    optimizer = torch.optim.AdamW(net.parameters(), learning_rate)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    losses = []
    for epoch in range(1, epochs + 1):
        net.train()
        total = 0.0
        for rows in torch.randperm(len(digits.labels), generator=generator).split(batch):
            loss = F.cross_entropy(net(distorted(digits.images[rows], generator)), digits.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            total += loss.item() * len(rows)
        losses.append(total / len(digits.labels))
        after_epoch(epoch)
    return losses


@torch.no_grad()
def accuracy(net: nn.Module, digits: Digits) -> float:
    """Per cent of the digits that a net tells right."""
    net.eval()
    logits = torch.cat([net(images) for images in digits.images.split(250)])
    return 100 * (logits.argmax(1) == digits.labels).double().mean().item()


def entropies(net: nn.Module, digits: Digits) -> dict[str, float]:
    """Mean entropy of each layer's attention, in nats."""
    statistics = convswap.attention_statistics(net, digits.images.split(250))
    return {layer.name: layer.whole.entropy for layer in statistics.layers}


class Outcome(NamedTuple):
    """Of one seed: accuracies in per cent, and entropies of the dynamic net's layers in nats, by stage and layer."""

    trained: float
    unconverted: float
    dynamic: float
    entropies: dict[str, dict[str, float]]


def compare(parts: dict[str, Digits], args: argparse.Namespace, seed: int, console: Console) -> Outcome:
    """Train a net from a seed, and fine-tune it unconverted and converted."""
    training, held_out = parts["training"], parts[args.part]
    torch.manual_seed(seed)
    net = DigitNet()
    train(net, training, args.before, RATE_BEFORE, args.batch, seed)
    trained = accuracy(net, held_out)

    dynamic = convswap.convert(net, to="dynamic", example_inputs=training.images[:2], kernels=KERNELS, seed=seed)
    temperatures = convswap.TemperatureSchedule(dynamic, epochs=min(10, args.epochs))
    found: dict[str, dict[str, float]] = {}

    def note(epoch: int) -> None:
        when = f"after {epoch} epochs" if epoch else "converted"
        found[f"{when}, T = {temperatures.get_last_temperature():.3g}"] = entropies(dynamic, held_out)

    def after_epoch(epoch: int) -> None:
        if epoch in (args.epochs // 2, args.epochs):
            note(epoch)
        temperatures.step()

    note(0)
    options = args.epochs, args.learning_rate, args.batch, seed + 1000
    start = time.perf_counter()
    unconverted = copy.deepcopy(net)
    train(unconverted, training, *options)
    middle = time.perf_counter()
    train(dynamic, training, *options, after_epoch)
    end = time.perf_counter()

    outcome = Outcome(trained, accuracy(unconverted, held_out), accuracy(dynamic, held_out), found)
    console.print(
        f"seed {seed}: {trained:.1f} % when trained; fine-tuned {outcome.unconverted:.1f} % unconverted "
        f"({middle - start:.0f} s), {outcome.dynamic:.1f} % dynamic ({end - middle:.0f} s)"
    )
    return outcome


def main(argv: Sequence[str] | None = None) -> list[Outcome]:
    """Compare from several seeds, and print and return what came out."""
    args = _arguments(argv)
    parts, console = parts_of(read_digits()), Console()
    outcomes = [compare(parts, args, seed, console) for seed in range(args.seeds)]

    console.print(f"\n{args.part} digits, mean ± deviation over {args.seeds} seeds:")
    table = Table("accuracy", "%", box=None)
    table.add_row(f"trained for {args.before} epochs", _mean_and_spread([o.trained for o in outcomes]))
    table.add_row(f"{args.epochs} more, unconverted", _mean_and_spread([o.unconverted for o in outcomes]))
    table.add_row(f"{args.epochs} more, dynamic", _mean_and_spread([o.dynamic for o in outcomes]))
    table.add_row("dynamic − unconverted", _mean_and_spread([o.dynamic - o.unconverted for o in outcomes]))
    console.print(table)

    stages = list(outcomes[0].entropies)
    console.print(f"\nentropy of the attention in nats ({KERNELS} equal weights have {math.log(KERNELS):.3f}):")
    table = Table("layer", *stages, box=None)
    for layer in outcomes[0].entropies[stages[0]]:
        table.add_row(layer, *(_mean_and_spread([o.entropies[stage][layer] for o in outcomes], 3) for stage in stages))
    console.print(table)
    return outcomes


def _mean_and_spread(values: Sequence[float], places: int = 2) -> str:
    numbers = torch.tensor(values, dtype=torch.float64)
    return f"{numbers.mean():.{places}f}" + (f" ± {numbers.std():.{places}f}" if len(values) > 1 else "")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=count, default=5, help="how many nets to start from")
    parser.add_argument("--before", type=count, default=3, help="epochs of training before fine-tuning")
    parser.add_argument(
        "--epochs", type=count, default=14, help="of fine-tuning; the temperature falls in the first 10"
    )
    parser.add_argument("--batch", type=count, default=32, help="digits in a step")
    parser.add_argument("--learning-rate", type=positive, default=LEARNING_RATE, help="the highest of fine-tuning")
    parser.add_argument("--part", choices=[*PER_CLASS], default="test", help="of the digits, that nets are compared on")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
