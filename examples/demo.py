"""Convert real weights on the command line, then classify photos with the original and the converted model.

Run with ``make demo`` or ``python -m examples.demo``.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights

import convswap
from convswap.input_files import read_input

from .networks import mobilenet_v2
from .samples import PHOTOS, mobilenet_v2_checkpoint, photo


def main(folder: Path = Path("demo-out")) -> int:
    """Convert, classify, and return 0 if both models give every photo the same class."""
    checkpoint = mobilenet_v2_checkpoint()
    folder.mkdir(exist_ok=True)
    converted_file = folder / "mobilenet_v2-dynamic.safetensors"
    convert_on_the_command_line(checkpoint, converted_file, folder / "report.html")

    original = mobilenet_v2()
    converted = convswap.load(converted_file)
    return 0 if classify_photos(original, converted) else 1


def convert_on_the_command_line(checkpoint: Path, out: Path, report: Path) -> None:
    """Run ``convswap convert``, and show the command."""
    arguments = ["convert", str(checkpoint), "--model", "torchvision:mobilenet_v2", "--to", "dynamic", "--force"]
    arguments += ["--out", str(out), "--report", str(report), "--verify", str(photo("coffee"))]
    print(f"$ convswap {shlex.join(arguments)}\n", flush=True)
    subprocess.run([sys.executable, "-m", "convswap", *arguments], check=True)


@torch.no_grad()
def classify_photos(original: nn.Module, converted: nn.Module) -> bool:
    """Print what both models see in each photo; whether they always agree."""
    categories = MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    table = Table("photo", "original", "converted", "largest logit difference", title="\nFirst forward pass", box=None)
    agree, largest = True, 0.0
    original.eval()
    converted.eval()
    for name in PHOTOS:
        batch = read_input(original, photo(name))
        before: Tensor = original(batch)
        after: Tensor = converted(batch)
        difference = (after - before).abs().max().item()
        largest = max(largest, difference)
        agree &= bool(before.argmax() == after.argmax())
        table.add_row(name, _best(before, categories), _best(after, categories), f"{difference:.1e}")
    console = Console()
    console.print(table)
    verdict = "the same classes" if agree else "NOT the same classes"
    console.print(f"{verdict}; largest difference of a logit {largest:.1e}", style="green" if agree else "red")
    return agree


def _best(logits: Tensor, categories: list[str]) -> str:
    probability, index = logits.softmax(1).max(1)
    return f"{categories[int(index)]} ({probability.item():.0%})"


if __name__ == "__main__":
    sys.exit(main())
