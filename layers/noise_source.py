"""A generator as a part of a module."""

from __future__ import annotations

import torch
from torch import nn


class NoiseSource(nn.Module):
    """Holds a generator, which ``torch.fx`` cannot pass to a function, while it can pass a module.

    It is copied and pickled as its generator is, and has no state beside it: it adds nothing to state dicts, and moves
    to no other device. A copy draws what this one would have drawn.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"the generator of noise must be a torch.Generator, got {type(generator).__name__}")
        self.generator = generator

    def extra_repr(self) -> str:
        return f"device={str(self.generator.device)!r}"


def standard_normal(
    shape: tuple[int, ...], device: torch.device, source: torch.Generator | NoiseSource | None
) -> torch.Tensor:
    """Standard normal numbers on ``device``, drawn on that of the generator; on meta nothing is drawn.

    They are of single precision, so that they are the same ones for layers of every dtype.
    """
    generator = source.generator if isinstance(source, NoiseSource) else source
    if generator is None or device.type == "meta":
        return torch.randn(shape, dtype=torch.float32, device=device)
    return torch.randn(shape, dtype=torch.float32, device=generator.device, generator=generator).to(device)
