"""DCLS layers that have their positions in common, as the blocks of a stage do in the paper (arXiv 2112.03740)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ._base import Conv
from ._geometry import IntOrInts
from .dcls import Dcls1d, Dcls2d, Dcls3d
from .dcls_kernel import Version

LayerT = TypeVar("LayerT", Dcls1d, Dcls2d, Dcls3d)


def layers_with_shared_positions(
    layer_class: type[LayerT],
    convs: Sequence[Conv],
    *,
    generator: torch.Generator | None = None,
    kernel_count: int | None = None,
    dilated_kernel_size: IntOrInts | None = None,
    version: Version = "v1",
) -> list[LayerT]:
    """Make a layer from each convolution, all with the same ``P`` and ``SIG``: one ``nn.Parameter`` each.

    With fewer elements than taps the taps are chosen jointly: of each kernel those with the largest sum of squared
    weights over all convolutions.

    With FSDP, layers that hold the same parameter must be in one group: ``fully_shard(stage)`` for what contains all of
    them, or ``fully_shard([block, other_block, …])``, before the model around it. Moving layers to the meta device and
    back (``to_empty``) separates what they share, as it does with all parameters that modules have in common.

    Args:
        layer_class: `Dcls1d`, `Dcls2d` or `Dcls3d`.
        convs: convolutions with kernels of one shape and dilation, and weights of one dtype on one device.
        generator, kernel_count, dilated_kernel_size, version: as for ``layer_class.from_conv``. Random positions are
            drawn once.

    Raises:
        ValueError: if the convolutions differ in what must be common, or ``from_conv`` does not take one of them.
    """
    _check_alike(convs)
    # With as many elements as taps or more there is nothing to choose.
    few = kernel_count is not None and len(convs) > 0 and kernel_count < convs[0].weight[0, 0].numel()
    ranking = _importance(convs) if few else None
    layers: list[LayerT] = []
    for conv in convs:
        # The positions of all but the first layer are given up: they need not be drawn from the same generator.
        own = generator if not layers else torch.Generator().manual_seed(0)
        layers.append(layer_class._from_conv(conv, own, kernel_count, dilated_kernel_size, version, ranking))
    for layer in layers[1:]:
        layer.P, layer.SIG = layers[0].P, layers[0].SIG
    return layers


def _importance(convs: Sequence[Conv]) -> Tensor:
    """How much each tap matters to all convolutions together, shaped as their weights."""
    weights = [conv.weight.detach().to(torch.promote_types(conv.weight.dtype, torch.float32)) for conv in convs]
    greatest = torch.stack([weight.abs().max() for weight in weights]).max().clamp_min(1e-30)
    importance = torch.zeros_like(weights[0])
    for weight in weights:
        importance += (weight / greatest).square()
    return importance


def _check_alike(convs: Sequence[Conv]) -> None:
    for conv in convs[1:]:
        for what, one, other in (
            ("kernels of one shape", convs[0].weight.shape, conv.weight.shape),
            ("one dilation", convs[0].dilation, conv.dilation),
            ("one dtype", convs[0].weight.dtype, conv.weight.dtype),
            ("one device", convs[0].weight.device, conv.weight.device),
        ):
            if one != other:
                raise ValueError(f"to share positions, convolutions must have {what}; these have {one} and {other}")
