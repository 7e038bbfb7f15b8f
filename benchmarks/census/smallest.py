"""The smallest model of each family, and the smallest input that a model takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from convswap.conv_classes import CONVS
from convswap.errors import ConvswapError
from convswap.inputs import default_input_shape
from convswap.throwaway import cleared_caches, throwaway_copy, untouched_randomness

from .catalogue import build, families, family
from .file import CENSUS, read_census
from .prepared import SEED, as_if_trained
from .reasons import in_words
from .results import versions

SIZES = (32, 48, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 512)
"""Pixels on each axis that are tried, in this order."""

FRAMES = (4, 8, 16, 32)

FEW_BOXES: dict[str, dict[str, float]] = {
    "rcnn": {
        **{"box_score_thresh": 0.0, "box_detections_per_img": 4},
        **{"rpn_post_nms_top_n_test": 50, "rpn_post_nms_top_n_train": 50},
    },
    "": {"score_thresh": 0.0, "detections_per_img": 10, "topk_candidates": 20},
}
"""Arguments of detection models by a part of their names: with random weights they find no box at all, or look into a
thousand of each image."""

Kind = Literal["image", "two images", "list of images"]


@dataclass(frozen=True)
class SmallestInput:
    """An input that a model takes, and what it must be built with for that.

    Attributes:
        shape: of one sample, without the batch.
        kind: what the model is called with.
        arguments: of the model's constructor.
    """

    shape: tuple[int, ...]
    kind: Kind = "image"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = "×".join(map(str, self.shape)) + ("" if self.kind == "image" else f", {self.kind}")
        named = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        return f"{words} ({named})" if named else words

    def model(self, name: str) -> nn.Module:
        """The architecture on the CPU with the statistics of a trained one, in evaluation mode."""
        with untouched_randomness():
            torch.manual_seed(SEED)
            return as_if_trained(build(name, "cpu", **self.arguments)).eval()

    def call(self, batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
        """Positional arguments: standard normal images, of detection models with values from 0 to 1."""
        generator = torch.Generator().manual_seed(SEED)
        if self.kind == "list of images":
            return ([torch.rand(self.shape, generator=generator, dtype=dtype) for _ in range(batch)],)
        number = 2 if self.kind == "two images" else 1
        return tuple(torch.randn(batch, *self.shape, generator=generator, dtype=dtype) for _ in range(number))


def smallest_models(known: Mapping[str, tuple[int, int]] | None = None) -> list[str]:
    """The model with the fewest parameters of each family that has convolutions, torchvision's first.

    Args:
        known: numbers of convolutions and parameters by name; by default what the census' file has of the structure.
            The other models are built on the meta device, which takes some minutes for all.
    """
    if known is None:
        known = _known_structure()
    found = []
    for names in families().values():
        sizes = {name: known.get(name) or _sizes(name) for name in names}
        with_convs = [name for name in names if sizes[name][0]]
        if with_convs:
            found.append(min(with_convs, key=lambda name: sizes[name][1]))
    return found


def _known_structure() -> dict[str, tuple[int, int]]:
    content = read_census(CENSUS)
    if content.get("versions") != versions():
        return {}
    records = {name: record for name, record in content.get("structure", {}).items() if "failure" not in record}
    return {name: (sum(record.get("sites", {}).values()), record["parameters"]) for name, record in records.items()}


def _sizes(name: str) -> tuple[int, int]:
    try:
        model = build(name)
    except ConvswapError:  # the structural census names it
        return 0, 0
    return (
        sum(isinstance(module, CONVS) for module in model.modules()),
        sum(parameter.numel() for parameter in model.parameters()),
    )


def smallest_input(name: str, model: nn.Module | None = None, least: int = 0, frames: int = 0) -> SmallestInput:
    """The smallest input that an architecture takes in evaluation mode, of those that are tried.

    Args:
        name: of the architecture.
        model: it, as it is built without arguments; it is built if it is not given.
        least: pixels on each axis that it must have at least.
        frames: that videos must have at least.

    Raises:
        ConvswapError: if it takes none of them.
    """
    failure = ""
    model = build(name) if model is None else model
    for candidate in _candidates(name, model, least, frames):
        try:
            _run(name, build(name, **candidate.arguments) if candidate.arguments else model, candidate)
        except Exception as error:  # models refuse inputs in every way there is
            failure = in_words(error)
        else:
            return candidate
    raise ConvswapError(f"{name} takes none of the inputs that were tried; the last one failed with {failure}")


def _candidates(name: str, model: nn.Module, least: int, frames: int) -> Iterator[SmallestInput]:
    kind = family(name)
    sizes = [size for size in SIZES if size >= least] or [SIZES[-1]]
    lengths = [length for length in FRAMES if length >= frames] or [FRAMES[-1]]
    if kind.startswith("torchvision:detection."):
        boxes = FEW_BOXES["rcnn" if "rcnn" in kind else ""]
        if "ssd" not in kind:  # those have one size
            for size in sizes:
                yield SmallestInput((3, size, size), "list of images", {"min_size": size, "max_size": size, **boxes})
        yield SmallestInput((3, 320, 320), "list of images", boxes)
    elif kind.startswith("torchvision:optical_flow."):
        yield from (SmallestInput((3, size, size), "two images") for size in sizes)
    elif kind == "torchvision:video.mvit":
        for size in sizes:
            for length in lengths:  # its position embeddings are of one size
                given = {"spatial_size": (size, size), "temporal_size": length}
                yield SmallestInput((3, length, size, size), arguments=given)
        yield SmallestInput((3, 16, 224, 224))  # mvit_v2_s takes no other
    elif kind.startswith("torchvision:video."):
        yield from (SmallestInput((3, length, size, size)) for size in sizes for length in lengths)
    else:
        yield from _images(kind, model, sizes)


def _images(kind: str, model: nn.Module, sizes: list[int]) -> Iterator[SmallestInput]:
    """Images of growing size; of models that are built for one, they are built for it, until it is the usual one."""
    config: Any = getattr(model, "default_cfg", None) or {}
    channels, default = (default_input_shape(model) or (3, 224, 224))[::2]
    argument = {"torchvision:vision_transformer": "image_size"}.get(kind, "img_size")
    built_for_one = bool(config.get("fixed_input_size")) or argument == "image_size"
    for size in sorted({*sizes, default} if default >= sizes[0] or built_for_one else sizes):
        shape = (channels, size, size)
        if size >= default or not built_for_one:
            yield SmallestInput(shape)
        if size < default and (kind.startswith("timm:") or argument == "image_size"):
            yield SmallestInput(shape, arguments={argument: size})


@torch.no_grad()
def _run(name: str, model: nn.Module, given: SmallestInput) -> None:
    """Run the model on fake tensors; detection models, whose path depends on the data, on real ones."""
    with untouched_randomness(), cleared_caches(model):
        if given.kind == "list of images":
            _check(given.model(name)(*given.call()))
            return
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        copied = throwaway_copy(model, mode).eval()
        device = next(model.parameters()).device
        with mode:
            inputs = [torch.empty(value.shape, device=device) for value in given.call()]
            _check(copied(*inputs))


def _check(output: Any) -> None:
    for tensor in torch.utils._pytree.tree_leaves(output):
        if isinstance(tensor, Tensor) and not tensor.numel():
            raise ValueError("nothing comes out")
