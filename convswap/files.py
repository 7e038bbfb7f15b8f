"""Converted models as files: one safetensors file with the weights and, as JSON, how to build what they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .atomic import write_atomically
from .carried_report import attach_report
from .checkpoint import match_precision, mismatches
from .errors import ConvswapError, FileError
from .generated_forward import guided_forward
from .guide_nodes import further_input, is_node
from .rebuilding import Rebuilding
from .report import Report, report
from .routing import route_guides
from .sources import Source, build_model, builds_like, infer_source, parse_source

METADATA_KEY = "convswap"
FILE_VERSION = 1


@dataclass(frozen=True)
class FileInfo:
    """What the metadata of a converted file says.

    Attributes:
        source: the architecture, or None if whoever saved it did not say.
        report: what was converted; its recipe rebuilds the model.
        aliases: names of tied tensors, and the names that they are stored under.
    """

    source: Source | None
    report: Report
    aliases: Mapping[str, str]


def save(
    model: nn.Module,
    path: str | Path,
    source: str | Source | None = None,
    *,
    source_args: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a converted model to one safetensors file, whole or not at all.

    Args:
        model: a converted model.
        path: the file, usually ``*.safetensors``.
        source: what builds the architecture: ``torchvision:<name>``, ``timm:<name>`` or ``module.path:factory``. timm
            models say it themselves. Without it the file needs ``load(path, model=...)``.
        source_args: keyword arguments of the source.
        overwrite: replace an existing file.

    Raises:
        ConvswapError: if the model has not been converted.
        FileError: if the file exists, cannot be written, or the model's state is more than tensors.
    """
    import safetensors.torch

    made = report(model)
    _check_parts(model)
    if source is not None and not isinstance(source, Source):
        source = parse_source(source, source_args)
    if source is None:
        inferred = infer_source(model)
        swapped = {step.name: step.geometry for step in made.swaps}
        source = inferred if inferred is not None and builds_like(inferred, model, swapped) else None
    tensors, aliases = _untie(model.state_dict())
    info = {
        "version": FILE_VERSION,
        "source": None if source is None else source.to_dict(),
        "aliases": aliases,
        "report": made.to_dict(),
    }
    try:
        metadata = {"format": "pt", METADATA_KEY: json.dumps(info)}
    except TypeError as error:
        raise FileError(f"what was converted cannot be written as JSON: {error}") from error

    def write(temporary: Path) -> None:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata)
        except safetensors.SafetensorError as error:  # how it reports a full disk
            raise OSError(str(error)) from error

    write_atomically(Path(path), write, overwrite)


def load(
    path: str | Path, model: nn.Module | None = None, *, device: str | torch.device = "cpu", trust_source: bool = False
) -> nn.Module:
    """Rebuild a converted model from its file.

    Args:
        path: a file that `save` wrote.
        model: a fresh model of the architecture, where the file does not name it or you do not want it built; it is
            converted in place and returned.
        device: where to put the result, if ``model`` is not given.
        trust_source: build an architecture whose source is ``module.path:factory``, and import functions that options
            of layers are named as likewise. That runs code that the file names, so it is not done unasked.

    Raises:
        FileError: if the file is missing, damaged, no converted model, or does not fit the architecture.
        ConvswapError: if the architecture is unknown and ``model`` is not given.
    """
    path = Path(path)
    info = read_info(path)
    if model is None:
        model = _build(path, info, trust_source).to(device)
    state = read_tensors(path, info)
    made = info.report
    rebuilding = Rebuilding(model)
    try:
        room = sum(tensor.numel() for tensor in state.values())
        for number, stage in made.recipe.stages():
            steps = rebuilding.carry_out(stage, trust_source, room, str(path))
            made = made.with_groups_of(steps, number)
        model = rebuilding.model
        problems = mismatches(model, state)
        if problems:
            lines = "\n".join(f"  {problem}" for problem in problems)
            raise FileError(f"{path} does not fit the architecture {type(model).__name__}:\n{lines}")
        route_guides(model)
    except Exception:
        rebuilding.undo()
        raise
    _separate(model, state)
    match_precision(model, state)
    model.load_state_dict(state)
    attach_report(model, made)
    return model


def _check_parts(model: nn.Module) -> None:
    """Make sure that the guides in parts that were converted on their own have names in the whole model.

    Raises:
        FileError: naming one that has none.
    """
    for name, part in model.named_modules():
        changed = guided_forward(part) if name else None
        for layer, guide in () if changed is None else changed.routes.items():
            if is_node(part, guide) or further_input(guide) is not None:
                what = "an input of that part" if further_input(guide) is not None else "a node of that part's graph"
                raise FileError(
                    f"{name}.{layer} is guided by {guide!r}, {what}, which has no name in {type(model).__name__}: save "
                    f"{name!r} alone, or convert {type(model).__name__} as a whole"
                )


def is_converted_file(path: Path) -> bool:
    """Whether ``path`` is a safetensors file that `save` wrote."""
    return _read_metadata(path) is not None if path.is_file() and path.suffix == ".safetensors" else False


def read_info(path: Path) -> FileInfo:
    """The metadata of a converted file; no weights are read.

    Raises:
        FileError: if the file is missing, damaged or no converted model.
    """
    if not path.is_file():
        raise FileError(f"there is no file {path}")
    text = _read_metadata(path)
    if text is None:
        raise FileError(f"{path} is no converted model: it has no convswap metadata. convert writes such files")
    try:
        data = json.loads(text)
        if data["version"] != FILE_VERSION:
            raise FileError(f"{path} is of version {data['version']}, and this convswap reads version {FILE_VERSION}")
        source = None if data["source"] is None else Source.from_dict(data["source"])
        return FileInfo(source, Report.from_dict(data["report"]), {str(k): str(v) for k, v in data["aliases"].items()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"{path} has damaged metadata ({type(error).__name__}: {error})") from error
    except FileError:
        raise
    except ConvswapError as error:
        raise FileError(f"{path} has damaged metadata: {error}") from error


def _read_metadata(path: Path) -> str | None:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # safetensors' own error class, or an OSError
        raise FileError(f"{path} cannot be read as safetensors: {error}") from error
    return metadata.get(METADATA_KEY)


def read_tensors(path: Path, info: FileInfo) -> dict[str, Tensor]:
    """The state dict of a converted file, tied tensors under all of their names.

    Raises:
        FileError: if the file is damaged.
    """
    import safetensors.torch

    try:
        state: dict[str, Tensor] = safetensors.torch.load_file(path)
    except Exception as error:
        raise FileError(f"{path} cannot be read as safetensors: {error}") from error
    for alias, stored in info.aliases.items():
        if stored not in state:
            raise FileError(f"{path} is damaged: {alias} is stored as {stored}, which is not there")
        state[alias] = state[stored]
    return state


def _build(path: Path, info: FileInfo, trust_source: bool) -> nn.Module:
    if info.source is None:
        raise ConvswapError(
            f"{path} does not say what builds its architecture ({info.report.model}): give a fresh model, as "
            "load(path, model=fresh_model), or --model on the command line"
        )
    if info.source.is_code and not trust_source:
        raise ConvswapError(
            f"{path} says that {info.source} builds its architecture, which would import and run that code. If you "
            "trust it: load(path, trust_source=True) or load(path, model=fresh_model), or --model on the command line"
        )
    return build_model(info.source)


def _separate(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give modules that hold one parameter parameters of their own where the file has several tensors for it."""
    first: dict[int, Tensor] = {}
    separate: dict[tuple[int, int], nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        stored = state.get(name)
        if stored is None or not stored.numel() or first.setdefault(id(parameter), stored) is stored:
            continue
        key = (id(parameter), id(stored))
        if key not in separate:
            separate[key] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        owner, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(owner), own_name, separate[key])


def _untie(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors to be stored, each once and contiguous, and the names of those that are the same tensor as another."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[Any, str] = {}
    storages: set[int] = set()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise FileError(f"{name} of the model's state is a {type(value).__name__}, and only tensors can be saved")
        if value.layout != torch.strided:
            raise FileError(f"{name} is a sparse tensor, and only dense ones can be saved")
        if value.is_meta:
            raise FileError(f"{name} is on the meta device and has no numbers to save")
        place = value.untyped_storage().data_ptr()
        key = (place, value.storage_offset(), value.shape, value.stride(), value.dtype)
        if value.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        # Views of one storage are stored apart: safetensors refuses overlapping tensors.
        stored = value.detach().contiguous()
        tensors[name] = stored.clone() if place in storages else stored
        storages.add(place)
    return tensors, aliases
