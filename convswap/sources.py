"""Where a model's architecture comes from, by name: torchvision, timm, or a function of the user's."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .conv_classes import CONVS
from .errors import ConvswapError, ModelError, OptionError, UnknownNameError, did_you_mean
from .report_making import describe_geometry
from .throwaway import untouched_randomness

_FORBIDDEN = frozenset(
    (
        *("pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay"),
        *("weights", "weights_backbone", "progress"),
    )
)


@dataclass(frozen=True)
class Source:
    """An architecture by name.

    Attributes:
        library: ``"torchvision"``, ``"timm"``, or the path of a module that has the factory.
        name: of the model, or of the factory.
        args: keyword arguments.
    """

    library: str
    name: str
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_code(self) -> bool:
        """Whether building it runs code of a module that the name names."""
        return self.library not in ("torchvision", "timm")

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"library": self.library, "name": self.name, "args": dict(self.args)}

    @classmethod
    def from_dict(cls, data: Any) -> Source:
        """The inverse of `to_dict`, for data of any origin.

        Raises:
            ConvswapError: if the data is no source.
        """
        if isinstance(data, Mapping):
            library, name, args = data.get("library"), data.get("name"), data.get("args")
            if isinstance(library, str) and isinstance(name, str) and isinstance(args, Mapping):
                return cls(library, name, dict(args))
        raise ConvswapError("this names no source of a model: it needs a library, a name and arguments")


def parse_source(text: str, args: Mapping[str, Any] | None = None) -> Source:
    """The source that ``torchvision:<name>``, ``timm:<name>`` or ``module.path:factory`` names.

    Raises:
        UnknownNameError: if the text is of none of these forms.
        OptionError: if the arguments are not in a dict.
    """
    library, _, name = text.partition(":") if isinstance(text, str) else ("", "", "")
    if not library or not name:
        raise _no_name(text)
    if not isinstance(args, Mapping | None):
        raise OptionError(f"the arguments of {text} must be a dict, got {args!r}")
    return Source(library, name, dict(args or {}))


def _no_name(given: Any) -> UnknownNameError:
    return UnknownNameError(f"{given!r} names no model: write torchvision:<name>, timm:<name> or module.path:factory")


def build_model(source: Source) -> nn.Module:
    """Build the architecture with random weights; nothing is downloaded, and the global generators are left alone.

    Raises:
        UnknownNameError: if there is no model of this name, naming the nearest.
        OptionError: if the model does not take these arguments.
        ModelError: if it cannot be built.
    """
    if not isinstance(source, Source):
        raise _no_name(source)
    forbidden = sorted(_FORBIDDEN & set(source.args))
    if forbidden and not source.is_code:
        raise OptionError(f"{source} is built without weights: the argument {forbidden[0]!r} is not for here")
    build = {"torchvision": _torchvision_builder, "timm": _timm_builder}.get(source.library, _factory)(source)
    with untouched_randomness():
        try:
            model = build(**source.args)
        except TypeError as error:
            raise OptionError(f"{source} does not take these arguments: {error}") from error
        except (Exception, SystemExit) as error:  # code that was written as a script may exit
            raise ModelError(f"{source} cannot be built ({type(error).__name__}: {error})") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{source} gives a {type(model).__name__}, not a torch.nn.Module")
    return model


def infer_source(model: nn.Module) -> Source | None:
    """The timm model that ``model`` says it is, or None if it does not say or is not like it any more."""
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, Mapping) or not config.get("architecture"):
        return None
    args: dict[str, Any] = {}
    classes = getattr(model, "num_classes", None)
    if isinstance(classes, int) and classes != config.get("num_classes"):
        args["num_classes"] = classes
    return Source("timm", str(config["architecture"]), args)


def builds_like(source: Source, model: nn.Module, swapped: Mapping[str, str]) -> bool:
    """Whether ``source`` builds a model with the tensors of ``model``.

    Args:
        source: where ``model`` may come from.
        model: a converted model.
        swapped: the geometry that each converted convolution had, by name.
    """
    try:
        built = build_model(source)
    except ConvswapError:
        return False

    def outline(module: nn.Module) -> dict[str, torch.Size]:
        return {
            name: tensor.shape
            for name, tensor in module.state_dict().items()
            if not any(name.startswith(f"{prefix}.") for prefix in swapped)
        }

    convs = dict(built.named_modules())
    fits = all(
        isinstance(conv := convs.get(name), CONVS) and describe_geometry(conv) == swapped[name] for name in swapped
    )
    return fits and outline(built) == outline(model)


def _torchvision_builder(source: Source) -> Any:
    from torchvision import models

    names = models.list_models()
    if source.name not in names:
        raise UnknownNameError(f"torchvision has no model {source.name!r}.{did_you_mean(source.name, names)}")
    builder = models.get_model_builder(source.name)
    takes = inspect.signature(builder).parameters
    no_weights = {name: None for name in ("weights", "weights_backbone") if name in takes}
    no_init = {"init_weights": False} if "init_weights" in takes else {}
    return lambda **args: builder(**{**no_weights, **no_init, **args})


def _timm_builder(source: Source) -> Any:
    timm: Any = importlib.import_module("timm")
    names = timm.list_models()
    if source.name.split(".")[0] not in names or ":" in source.name:
        raise UnknownNameError(f"timm has no model {source.name!r}.{did_you_mean(source.name.split('.')[0], names)}")
    return lambda **args: timm.create_model(source.name, pretrained=False, **args)


def _factory(source: Source) -> Any:
    try:
        module = importlib.import_module(source.library)
    except ImportError as error:
        raise UnknownNameError(
            f"there is no module {source.library!r} to take {source.name!r} from ({error}). "
            "Models are named torchvision:<name>, timm:<name> or module.path:factory."
        ) from error
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        raise ModelError(
            f"the module {source.library!r} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    if not hasattr(module, source.name):
        functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UnknownNameError(
            f"the module {source.library!r} has no function {source.name!r}.{did_you_mean(source.name, functions)}"
        )
    factory = getattr(module, source.name)
    if not callable(factory) or isinstance(factory, nn.Module):
        kind = type(factory).__name__
        article = "an" if kind[0].lower() in "aeiou" else "a"
        raise UnknownNameError(f"{source} is {article} {kind}, not a function that gives a torch.nn.Module")
    return factory
