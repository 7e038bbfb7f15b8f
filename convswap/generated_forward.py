"""Modules whose forward runs the code of edited graphs, and that are otherwise what they were.

The module's class becomes a generated subclass of its own class: ``isinstance``, methods, state-dict keys, copies and
pickles stay as they are.
"""

from __future__ import annotations

import copyreg
import importlib
import inspect
import keyword
import linecache
import re
import types
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

from torch import fx, nn

from .errors import ConvswapError, ModelError

_CODE = "_convswap_forward"

FURTHER_INPUTS = "_convswap_further_inputs"
"""Where the ``meta`` of graph modules says which of their inputs are further ones."""

_EVALUATION, _TRAINING = "_convswap_evaluation", "_convswap_training"


@dataclass(frozen=True, eq=False)
class GraphCode:
    """A graph as Python code: ``source`` defines ``forward(self, ...)``, with these ``names`` around it."""

    source: str
    names: Mapping[str, Any]
    arguments: tuple[str, ...]

    @classmethod
    def of(cls, graph: fx.Graph, arguments: tuple[str, ...]) -> GraphCode:
        """The code of ``graph``; ``arguments`` is what its placeholders are given, in words of Python.

        Raises:
            ModelError: if a module has a name that cannot be written in code, or an argument one that the code has.
        """
        check_names(graph)
        code = graph.python_code("self")
        for name in ("self", *code.globals):
            if name in arguments:
                raise ModelError(f"an input of the model is called {name!r}, which its code needs for something else")
        return cls(code.src, dict(code.globals), arguments)

    def function(self, label: str) -> Any:
        """The function itself; ``label`` stands for the file in tracebacks."""
        names = dict(self.names)
        _execute(self.source, names, label)
        return names["forward"]

    def __reduce__(self) -> tuple[Any, ...]:
        names = {name: _refer(value) for name, value in self.names.items()}
        return _code_from, (self.source, names, self.arguments)


@dataclass(frozen=True, eq=False)
class GuidedForward:
    """How a module's forward was changed.

    Attributes:
        base: the class that the module had, and its generated class is derived from.
        routes: of guided layers, by their names relative to the module, the guides, likewise relative.
        inputs: names of the inputs that forward has been given in addition.
        evaluation, training: what it runs in either mode.
    """

    base: type[nn.Module]
    routes: Mapping[str, str]
    inputs: tuple[str, ...]
    evaluation: GraphCode
    training: GraphCode

    @cached_property
    def subclass(self) -> type[nn.Module]:
        """The generated class: named as ``base`` is.

        Raises:
            ModelError: if there cannot be one.
        """
        contents = {
            "__module__": self.base.__module__,
            "__qualname__": self.base.__qualname__,
            "__doc__": self.base.__doc__,
            "__reduce_ex__": _reduce,
            "forward": self._forward(),
            _CODE: self,
        }
        try:
            return types.new_class(self.base.__name__, (self.base,), exec_body=lambda space: space.update(contents))
        except Exception as error:  # whatever the class's own code, or its metaclass's, asks for
            raise ModelError(
                f"no class can be derived from {self.base.__name__} to hand guides in ({type(error).__name__}: {error})"
            ) from error

    def _forward(self) -> Any:
        """A function with the signature of the base's forward, and the further inputs after it."""
        label = f"guided {self.base.__qualname__}"
        signature = inspect.signature(self.base.forward)
        own = next(iter(signature.parameters))  # usually self
        parameters, defaults = _with_inputs(signature, self.inputs)
        names: dict[str, Any] = {
            **defaults,
            _EVALUATION: self.evaluation.function(f"{label}, evaluation"),
            _TRAINING: self.training.function(f"{label}, training"),
        }
        source = (
            f"def forward({parameters}):\n"
            f"    if {own}.training:\n"
            f"        return {_TRAINING}({', '.join((own, *self.training.arguments))})\n"
            f"    return {_EVALUATION}({', '.join((own, *self.evaluation.arguments))})\n"
        )
        _execute(source, names, label)
        return names["forward"]

    def constants(self) -> set[str]:
        """Names of the tensors that tracing has found in the code, and that the module holds for this forward."""
        sources = (self.evaluation.source, self.training.source)
        return {name for source in sources for name in re.findall(r"\bself\.(_tensor_constant\d+)\b", source)}

    def __reduce__(self) -> tuple[Any, ...]:
        return GuidedForward, (self.base, self.routes, self.inputs, self.evaluation, self.training)

    def __deepcopy__(self, memo: dict[int, Any]) -> GuidedForward:
        return self  # nothing of it changes, and it holds no tensors


def check_names(graph: fx.Graph) -> None:
    """Make sure that the names of modules and tensors that ``graph`` refers to can be written in Python code.

    Raises:
        ModelError: naming one that cannot.
    """
    for node in graph.nodes:
        for name in str(node.target).split(".") if node.op in ("call_module", "get_attr") else ():
            if keyword.iskeyword(name) or not (name.isidentifier() or _PLAIN_NAME.fullmatch(name)):
                raise ModelError(
                    f"the name {name!r} in {node.target!r} cannot be written in the code of a graph: rename that module"
                )


_PLAIN_NAME = re.compile(r"[\w \-/:+]*")


def guided_forward(module: nn.Module) -> GuidedForward | None:
    """How the forward of ``module`` was changed, or None if it was not."""
    return getattr(type(module), _CODE, None)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class that ``module`` had before its forward was changed."""
    changed = guided_forward(module)
    return type(module) if changed is None else changed.base


def further_inputs(model: nn.Module) -> tuple[str, ...]:
    """The names of the inputs that ``model`` has got in addition to those that its class takes."""
    changed = guided_forward(model)
    if changed is not None:
        return changed.inputs
    return tuple(model.meta.get(FURTHER_INPUTS, ())) if isinstance(model, fx.GraphModule) else ()


def _with_inputs(signature: inspect.Signature, inputs: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The parameters of a function as Python code, with further required ones, and the names of their defaults.

    Where the last positional one has a default already, the further ones are by keyword only.
    """
    kinds = inspect.Parameter
    given = list(signature.parameters.values())
    positional = [p for p in given if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    by_keyword = any(p.default is not kinds.empty for p in positional) or any(
        p.kind == kinds.VAR_POSITIONAL for p in given
    )
    kind = kinds.KEYWORD_ONLY if by_keyword else kinds.POSITIONAL_OR_KEYWORD
    new = [inspect.Parameter(name, kind) for name in inputs]
    at = next(
        (i for i, p in enumerate(given) if p.kind == kinds.VAR_KEYWORD or (p.kind > kind and not by_keyword)),
        len(given),
    )
    defaults: dict[str, Any] = {}
    plain = []
    for parameter in (*given[:at], *new, *given[at:]):
        default: Any = parameter.default
        if default is not kinds.empty:
            name = f"_convswap_default_{parameter.name}"
            defaults[name] = default
            default = _Name(name)
        plain.append(parameter.replace(annotation=kinds.empty, default=default))
    return str(inspect.Signature(plain))[1:-1], defaults


class _Name:
    """Shown in a signature as the name of a variable."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def _execute(source: str, names: dict[str, Any], label: str) -> None:
    file = f"<{label}, {zlib.crc32(source.encode()):08x}>"  # one for all conversions that make the same
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for tracebacks
    exec(compile(source, file, "exec"), names)


def check_class(module: nn.Module, changed: GuidedForward, before: str) -> None:
    """Make sure that ``module`` has the class whose forward was ``changed``.

    Args:
        module: the module.
        changed: its forward.
        before: what the class is needed for, for the message.

    Raises:
        ModelError: if it has another one.
    """
    if type(module) is not changed.subclass:
        raise ModelError(
            f"the class of {changed.base.__name__} was changed after it was converted, to {type(module).__name__}: "
            f"undo that before {before}"
        )


def _reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """As the base class does it, with the generated class made anew."""
    changed = guided_forward(self)
    assert changed is not None
    check_class(self, changed, "copying or pickling")
    made: Any = super(changed.subclass, self).__reduce_ex__(protocol)
    if made[0] is not copyreg.__newobj__ or made[1][0] is not type(self):  # type: ignore[attr-defined]
        raise ModelError(
            f"{changed.base.__name__} pickles and copies itself in its own way (__reduce__), which does not know of "
            "guides: use convswap.save and convswap.load"
        )
    return _new, (changed, *made[1][1:]), *made[2:]


def _new(changed: GuidedForward, *arguments: Any) -> nn.Module:
    made: nn.Module = changed.subclass.__new__(changed.subclass, *arguments)
    return made


def _refer(value: Any) -> Any:
    """What stands in a pickle for a value that code refers to: modules and functions by their names."""
    if isinstance(value, ModuleType):
        return _Reference(value.__name__, "")
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if isinstance(module, str) and isinstance(name, str):
        for candidate in (_Reference(module, name), _Reference("torch.nn.functional", name.rpartition(".")[2])):
            if candidate.found() is value:
                return candidate
    return value


@dataclass(frozen=True)
class _Reference:
    module: str
    name: str

    def found(self) -> Any:
        try:
            value: Any = importlib.import_module(self.module)
            for part in self.name.split(".") if self.name else ():
                value = getattr(value, part)
        except (ImportError, AttributeError):
            return None
        return value


def _code_from(source: str, names: Mapping[str, Any], arguments: tuple[str, ...]) -> GraphCode:
    found = {}
    for name, value in names.items():
        found[name] = value.found() if isinstance(value, _Reference) else value
        if found[name] is None:
            raise ConvswapError(f"the pickled model uses {value.module}.{value.name}, which is not there")
    return GraphCode(source, found, arguments)
